"""What a visitor does to upload a file, and how a test follows it."""

from __future__ import annotations

import functools
import hashlib
import re
from pathlib import Path

from playwright.async_api import Dialog, Page, Request, expect
from tests.browser.chromium import Visitor
from tests.browser.scenery import Images
from tests.integration.service_api import Object


async def set_speed(visitor: Visitor, bytes_per_second: int) -> None:
    """Make the visitor's line slow. -1: as fast as it is."""
    line = await visitor.context.new_cdp_session(visitor.page)
    limits = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": bytes_per_second}
    await line.send("Network.emulateNetworkConditions", {"offline": False, **limits})


async def leave(dialog: Dialog) -> None:
    """Leave a page where something runs."""
    assert dialog.type == "beforeunload"
    await dialog.accept()


async def begin(visitor: Visitor, file: Path, name: str, *, checksum: str | None = None) -> Page:
    """Choose a file in the form and start. `checksum`: what is expected; None: the file's own."""
    page = await visitor.go("/new-image?from=upload")
    await page.get_by_label("File").set_input_files(file)
    await page.get_by_label("Name").fill(name)
    await page.get_by_label("Expected SHA-512").fill(
        sha512_of(file) if checksum is None else checksum
    )
    await page.get_by_role("button", name="Upload").click()
    return page


@functools.cache
def sha512_of(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha512").hexdigest()


def offsets_sent(page: Page) -> list[int]:
    """Return where pieces begin that are sent from now on; the list grows."""
    offsets: list[int] = []

    def note(request: Request) -> None:
        if "upload-offset" in request.headers:
            offsets.append(int(request.headers["upload-offset"]))

    page.on("request", note)
    return offsets


async def reach(page: Page, fraction: float) -> None:
    """Wait until so much was sent."""
    await page.evaluate(
        """(fraction) => new Promise((resolve) => {
            const look = () => {
                const bar = document.querySelector("[data-upload-running] progress");
                if (bar && bar.max > 1 && bar.value / bar.max >= fraction) resolve();
                else requestAnimationFrame(look);
            };
            look();
        })""",
        fraction,
    )


async def is_there(page: Page, images: Images, name: str, file: Path) -> Object:
    """Wait for the image's page to say that it is ready; its bytes are the file's."""
    await expect(page).to_have_url(re.compile(f"/images/{name}$"))
    await expect(page.locator(".state-line").get_by_text("ready", exact=True)).to_be_visible(
        timeout=60_000
    )
    image = images.ready(name)
    assert image["status"]["checksum"] == sha512_of(file)
    return image
