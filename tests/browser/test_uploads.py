"""Uploads from a browser: with pauses, over reloads, 2 GiB over a line that breaks."""

from __future__ import annotations

import random
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, expect
from tests.browser.chromium import Visitor, chromium, visiting
from tests.browser.conftest import cookies_of
from tests.browser.scenery import MIB, Images, disk, url_of
from tests.browser.uploading import begin, is_there, leave, offsets_sent, reach, set_speed
from tests.fakes.tcp_proxy import Proxy, proxy
from tests.integration import storage
from tests.integration.daemon_process import ServiceProcess, running
from tests.integration.service_api import SYSTEM

GIB = 1 << 30
#: Bytes a second of the slow lines below, and a file that takes a while over them.
_SLOW = 12 * MIB
_FILE_BYTES = 80 * MIB
_LOST = "net::ERR_"


@pytest.fixture(scope="module")
def service() -> Iterator[ServiceProcess]:
    """A service with room for large files."""
    storage.require(storage.XFS)
    root = Path(tempfile.mkdtemp(prefix="shorthorn-uploads-"))
    try:
        with running(root / "data", pool_size="3G") as process:
            yield process
    finally:
        shutil.rmtree(root)


@pytest_asyncio.fixture(loop_scope="session")
async def visitor(
    browser: Browser, service: ServiceProcess, images: Images
) -> AsyncIterator[Visitor]:
    """Somebody who is signed in, and leaves a page where something runs."""
    cookies = await cookies_of(browser, service)
    async with visiting(browser, url_of(service), storage_state=cookies) as made:
        made.page.on("dialog", leave)
        yield made


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "My Disk.img"
    path.write_bytes(disk(_FILE_BYTES))
    return path


async def test_a_file_becomes_an_image(visitor: Visitor, images: Images, file: Path) -> None:
    page = await visitor.go("/new-image?from=upload")
    await page.get_by_label("File").set_input_files(file)
    await expect(page.get_by_label("Name")).to_have_value("my-disk")
    await page.get_by_role("button", name="Upload").click()
    await is_there(page, images, "my-disk", file)


async def test_a_taken_name_is_said_before_a_byte_is_sent(
    visitor: Visitor, images: Images, file: Path
) -> None:
    visitor.expect_complaint("status of 409")
    images.make("taken")
    page = await begin(visitor, file, "taken")
    await expect(page.get_by_role("alert")).to_contain_text("already")
    await expect(page.get_by_role("button", name="Upload")).to_be_enabled()


async def test_a_file_that_is_no_image_is_refused(
    visitor: Visitor, images: Images, tmp_path: Path
) -> None:
    visitor.expect_complaint("status of 4")
    bad = tmp_path / "hostile.qcow2"
    bad.write_bytes(b"QFI\xfb" + bytes(range(256)) * 4096)
    page = await begin(visitor, bad, "hostile")
    await expect(page.get_by_text(re.compile("refused|not|cannot|invalid")).first).to_be_visible()
    images.api.wait("BackingImage", SYSTEM, "hostile", lambda i: "False" in str(i))


async def test_pause_and_go_on(visitor: Visitor, images: Images, file: Path) -> None:
    await set_speed(visitor, _SLOW)
    page = await begin(visitor, file, "paused")
    await reach(page, 0.2)
    await page.get_by_role("button", name="Pause").click()
    await expect(page.get_by_text(re.compile("^Paused at .* of 80.0 MiB"))).to_be_visible()
    await set_speed(visitor, -1)
    await page.get_by_role("button", name="Go on").click()
    await is_there(page, images, "paused", file)


async def test_after_a_reload_the_same_file_goes_on(
    visitor: Visitor, images: Images, file: Path, tmp_path: Path
) -> None:
    await set_speed(visitor, _SLOW)
    page = await begin(visitor, file, "reloaded")
    await reach(page, 0.5)
    await visitor.go("/images/reloaded")
    await expect(page.get_by_text("Choose the same file to go on: My Disk.img")).to_be_visible()
    other = tmp_path / "other.img"
    other.write_bytes(bytes(MIB))
    await page.get_by_label("File").set_input_files(other)
    await expect(page.get_by_role("alert")).to_contain_text("another file")
    await set_speed(visitor, -1)
    offsets = offsets_sent(page)
    await page.get_by_label("File").set_input_files(file)
    await is_there(page, images, "reloaded", file)
    assert min(offsets) > 0


@pytest.fixture
def large_file() -> Iterator[Path]:
    """2 GiB, with noise here and there."""
    folder = Path(tempfile.mkdtemp(prefix="shorthorn-large-"))
    path = folder / "large.img"
    noise = random.Random(7)
    with path.open("wb") as stream:
        stream.truncate(2 * GIB)
        for start in range(0, 2 * GIB, 64 * MIB):
            stream.seek(start)
            stream.write(noise.randbytes(MIB))
    yield path
    shutil.rmtree(folder)


async def test_two_gib_over_a_line_that_breaks_in_the_middle(
    service: ServiceProcess, images: Images, large_file: Path
) -> None:
    port = url_of(service).rpartition(":")[2]
    async with proxy(f"127.0.0.1:{port}") as line:
        through = f"--host-resolver-rules=MAP localhost:{port} {line.address}"
        async with chromium(through) as browser:
            cookies = await cookies_of(browser, service)
            for cookie in cookies["cookies"]:
                cookie["domain"] = "localhost"
            url = f"http://localhost:{port}"
            async with visiting(browser, url, storage_state=cookies) as visitor:
                visitor.expect_complaint(_LOST)
                visitor.page.on("dialog", leave)
                page = await begin(visitor, large_file, "large")
                await reach(page, 0.45)
                offsets = offsets_sent(page)
                await cut_and_heal(page, line)
                image = await is_there(page, images, "large", large_file)
    assert min(offsets) > 0.4 * 2 * GIB
    assert image["status"]["virtualSize"] == 2 * GIB


async def cut_and_heal(page: Page, line: Proxy) -> None:
    """Lose the line for as long as it takes for the page to say so."""
    line.broken.set()
    line.break_off()
    await expect(page.get_by_text("trying again…")).to_be_visible()
    line.broken.clear()
