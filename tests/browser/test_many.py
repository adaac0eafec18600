"""Five thousand images: the list is whole, and quick enough to be told in a line.

On the page and a real embedded API server in this process, without controllers: so the images'
status can be written, and stays.
"""

from __future__ import annotations

import asyncio
import dataclasses
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest_asyncio
from playwright.async_api import Browser, expect
from tests.browser.chromium import Visitor, visiting
from tests.integration.web_site import Running, running_site

from shorthorn.domain.models import (
    BackingImage,
    BackingImageSpec,
    BackingImageStatus,
    Condition,
    CopyState,
    DiskFileStatus,
    Meta,
)

IMAGES = 5000
_AT_ONCE = 16
_READY = Condition("Ready", True, "Ready", "", datetime(2026, 1, 1, tzinfo=UTC))


@pytest_asyncio.fixture(loop_scope="session", scope="module")
async def crowded(tmp_path_factory) -> AsyncIterator[Running]:
    """A site with thousands of images."""
    async with running_site(tmp_path_factory.mktemp("many")) as running:
        gate = asyncio.Semaphore(_AT_ONCE)

        async def make(number: int) -> None:
            async with gate:
                await make_image(running, number)

        await asyncio.gather(*(make(number) for number in range(IMAGES)))
        images = running.registries.images
        await running.until(images, lambda: sum(i.is_ready for i in images.cached()) == IMAGES)
        yield running


async def make_image(running: Running, number: int) -> None:
    """Make an image that is ready, of a size that tells its number."""
    name = f"image-{number:04}"
    spec = BackingImageSpec("download", {"url": f"https://example.org/{name}.qcow2"})
    status = BackingImageStatus(
        uuid=f"{number:08}",
        size_bytes=(number + 1) << 20,
        virtual_size_bytes=10 << 30,
        format="qcow2",
        disk_file_status={"pool": DiskFileStatus(CopyState.READY, 100)},
        conditions=(_READY,),
    )
    images = running.registries.images
    made = await images.create(BackingImage(Meta(name), spec))
    await images.update_status(dataclasses.replace(made, status=status))


@pytest_asyncio.fixture(loop_scope="session")
async def visitor(browser: Browser, crowded: Running) -> AsyncIterator[Visitor]:
    """Somebody who is signed in."""
    async with visiting(browser, crowded.url) as made:
        await made.page.goto(f"{crowded.url}/login?once={crowded.links.make()}")
        await expect(made.page.get_by_role("heading", name="Overview")).to_be_visible()
        yield made


async def test_the_list_of_thousands(visitor: Visitor, record_property) -> None:
    page = await visitor.go("/images")
    rows = page.locator("tbody tr")
    await expect(rows).to_have_count(100)
    await expect(page.get_by_text(re.compile("^5.000 images"))).to_be_visible()
    painted_ms = await page.evaluate(
        "performance.getEntriesByName('first-contentful-paint')[0].startTime"
    )
    record_property(f"first paint of a list of {IMAGES} images", f"{painted_ms:.0f} ms")

    await page.get_by_role("link", name="Next →").click()
    await expect(page.get_by_text("Page 2 of 50")).to_be_visible()
    await expect(rows.first).to_contain_text("image-0100")
    await page.get_by_role("link", name="Last »").click()
    await expect(page.get_by_text("Page 50 of 50")).to_be_visible()
    await expect(rows.last).to_contain_text("image-4999")
    await page.get_by_label("Go to page").fill("7")
    await page.get_by_role("button", name="Go", exact=True).click()
    await expect(page.get_by_text("Page 7 of 50")).to_be_visible()
    await expect(rows.first).to_contain_text("image-0600")
    await page.get_by_role("link", name="« First").click()
    await expect(page.get_by_text("Page 1 of 50")).to_be_visible()
    await page.get_by_role("link", name="Size", exact=True).click()
    await page.get_by_role("link", name="Size", exact=True).click()
    await expect(rows.first).to_contain_text("image-4999")
    await page.get_by_label("Name or source").fill("image-42")
    await expect(page.get_by_text(re.compile("^100 of 5.000 images"))).to_be_visible()
    await expect(page.get_by_text("Page 1 of")).to_have_count(0)
    await expect(rows.first).to_contain_text("image-4299")


async def test_one_of_thousands_changes_and_one_comes(visitor: Visitor, crowded: Running) -> None:
    page = await visitor.go("/images?page=50")
    await expect(page.locator("tbody tr").last).to_contain_text("image-4999")
    images = crowded.registries.images
    image = images.find_cached("image-4999")
    assert image is not None
    status = dataclasses.replace(image.status, size_bytes=7 << 40)
    await images.update_status(dataclasses.replace(image, status=status))
    await expect(page.locator("#image-image-4999")).to_contain_text("7 TiB")
    await make_image(crowded, IMAGES)
    await expect(page.get_by_text(re.compile("^5.001 images"))).to_be_visible()
