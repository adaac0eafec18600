"""Takes pictures of each page of the web page, of a service with something of everything.

Called by scripts/screenshots with the folder to put them into.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from playwright.async_api import Page, expect
from tests.browser.chromium import PHONE, chromium, visiting
from tests.browser.conftest import cookies_of
from tests.browser.scenery import MIB, Images, disk, url_of
from tests.fakes.image_server import Behaviour
from tests.integration.daemon_process import ServiceProcess, running
from tests.integration.service_api import Namespace, namespace


@dataclass(frozen=True)
class Picture:
    """One file: of which page, how large, and what is typed before."""

    name: str
    path: str
    height: int = 760
    scheme: str = "light"
    is_phone: bool = False
    is_stranger: bool = False


_HANDLE = "bi://backing?backingImageDataSourceType=download&backingImage=debian-12"
PICTURES = (
    Picture("login", "/login", 560, is_stranger=True),
    Picture("overview", "/", 860),
    Picture("images", "/images", 640),
    Picture("images-dark", "/images", 640, scheme="dark"),
    Picture("images-phone", "/images", 844, is_phone=True),
    Picture("new-image", "/new-image", 700),
    Picture("upload", "/images/win-2025", 860),
    Picture("image", "/images/debian-12", 900),
    Picture("image-phone", "/images/debian-12", 844, is_phone=True),
    Picture("delete", "/images/debian-12", 640),
    Picture("restore", "/restore?image=debian-12", 720),
    Picture("volumes", "/volumes", 560),
    Picture("handle", "/handle", 760),
)


def main(folder: Path) -> None:
    """Take all pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="shorthorn-") as scratch,
        running(Path(scratch) / "data", pool_size="2G") as service,
        furnished(service),
    ):
        asyncio.run(take(service, folder))


def qcow2_of(content: bytes, virtual_size: str) -> bytes:
    """Return a qcow2 image with some content on a larger disk."""
    with tempfile.TemporaryDirectory() as folder:
        raw, made = Path(folder) / "raw", Path(folder) / "qcow2"
        raw.write_bytes(content)
        subprocess.run(["truncate", "-s", virtual_size, raw], check=True)
        command = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(made)]
        subprocess.run(command, check=True)
        return made.read_bytes()


@contextlib.contextmanager
def furnished(service: ServiceProcess) -> Iterator[None]:
    """Something of everything, as a user would have it."""
    images = Images(service)
    with contextlib.closing(_Servers(images)), namespace(service.api, "prod") as prod:
        images.make("debian-12", qcow2_of(disk(96 * MIB), "4G"))
        images.make("ubuntu-24.04", qcow2_of(disk(128 * MIB, seed=2), "3G"))
        images.make("ci-runner", disk(160 * MIB, seed=3))
        images.begin("fedora-44", images.serve(b"", Behaviour(status=404), name="f44.img").url)
        arriving = images.serve_slowly(disk(32 * MIB), name="rocky-10.img", pause_after=22 * MIB)
        images.begin("rocky-10", arriving.url)
        images.begin_upload("win-2025", 700 * MIB)
        furnish_volumes(prod)
        yield


class _Servers:
    def __init__(self, images: Images) -> None:
        self.close = images.remove_all


def furnish_volumes(own: Namespace) -> None:
    """Volumes of an image, a blank one with a snapshot, and an image of that one."""
    own.snapshot_class("images", type="bi")
    own.snapshot_class("snapshots", type="snap")
    own.content("debian-12", _HANDLE, snapshot="debian-12")
    own.snapshot("debian-12", content="prod-debian-12")
    own.ready("debian-12")
    for name in ("web-0", "web-1"):
        own.claim(name, "4Gi", snapshot="debian-12", volumeMode="Block")
    own.claim("postgres", "1Gi", volumeMode="Block")
    for name in ("web-0", "web-1", "postgres"):
        own.bound(name)
    own.snapshot("nightly", claim="postgres", cls="prod-snapshots")
    own.ready("nightly")


async def take(service: ServiceProcess, folder: Path) -> None:
    async with chromium("--hide-scrollbars") as browser:
        cookies = await cookies_of(browser, service)
        for picture in PICTURES:
            width = PHONE["width"] if picture.is_phone else 1280
            options = {
                "viewport": {"width": width, "height": picture.height},
                "color_scheme": picture.scheme,
                "device_scale_factor": 1,
            }
            if not picture.is_stranger:
                options["storage_state"] = cookies
            async with visiting(browser, url_of(service), **options) as visitor:
                page = await visitor.go(picture.path)
                await prepare(page, picture.name)
                path = folder / f"{picture.name}.png"
                await page.screenshot(path=path)
                print(f"{path}: {path.stat().st_size >> 10} KiB")


async def prepare(page: Page, name: str) -> None:
    """Type what the picture shows."""
    await expect(page.locator("h1")).to_have_count(1)
    if name == "new-image":
        await page.goto("/images", wait_until="load")
        source = await page.locator("#image-debian-12 .source .message").inner_text()
        await page.goto("/new-image")
        await page.get_by_label("URL").fill(source)
        await expect(page.locator("#checked")).to_contain_text("Reachable")
        await expect(page.get_by_label("Name")).to_have_value("debian-12")
    if name == "delete":
        await page.get_by_role("link", name="Delete…").click()
        await expect(page.get_by_role("dialog", name="Delete debian-12?")).to_be_visible()
    if name == "handle":
        await page.get_by_label("Handle", exact=True).fill(_HANDLE)
        await expect(page.get_by_text("names something")).to_be_visible()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
