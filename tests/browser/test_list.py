"""The list of images: filter, sort, and rows that change by themselves."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from playwright.async_api import Browser, Locator, StorageState, expect
from tests.browser.chromium import Visitor, visiting
from tests.browser.scenery import MIB, Images, disk, manifest, qcow2, url_of
from tests.fakes.image_server import Behaviour
from tests.integration.daemon_process import ServiceProcess
from tests.integration.kubectl import Kubectl
from tests.integration.service_api import SYSTEM


def row(visitor: Visitor, name: str) -> Locator:
    return visitor.page.get_by_role("row").filter(
        has=visitor.page.get_by_role("link", name=name, exact=True)
    )


def names(visitor: Visitor) -> Locator:
    return visitor.page.locator("tbody th a")


async def test_the_first_look_says_how_to_begin(visitor: Visitor) -> None:
    page = await visitor.go("/images")
    await expect(page.get_by_text("There are no images yet.")).to_be_visible()
    await page.get_by_role("link", name="Make the first image").click()
    await expect(page.get_by_role("heading", name="New image")).to_be_visible()


async def test_filter_and_sort(visitor: Visitor, images: Images, tmp_path: Path) -> None:
    images.make("alpha", disk(8 * MIB))
    images.make("beta", qcow2(tmp_path, disk(4 * MIB)))
    images.begin("gamma", images.serve(b"", Behaviour(status=404)).url)
    page = await visitor.go("/images")
    await expect(names(visitor)).to_have_text(["alpha", "beta", "gamma"])

    await page.get_by_label("Name or source").fill("bet")
    await expect(names(visitor)).to_have_text(["beta"])
    await expect(page.get_by_text("1 of 3 images")).to_be_visible()
    assert page.url.endswith("q=bet&state=&source=&sort=name")
    await page.get_by_label("Name or source").fill("nothing")
    await expect(page.get_by_text("No image is like that.")).to_be_visible()
    await page.get_by_role("link", name="Show all").click()

    await page.get_by_label("State").select_option("ready")
    await expect(names(visitor)).to_have_text(["alpha", "beta"])
    await page.get_by_role("link", name="Virtual size").click()
    await expect(names(visitor)).to_have_text(["beta", "alpha"])
    await expect(page.get_by_role("columnheader", name="Virtual size")).to_have_attribute(
        "aria-sort", "ascending"
    )
    await page.get_by_role("link", name="Virtual size").click()
    await expect(names(visitor)).to_have_text(["alpha", "beta"])
    await expect(page.get_by_label("State")).to_have_value("ready")
    await page.reload()
    await expect(names(visitor)).to_have_text(["alpha", "beta"])


@pytest.mark.parametrize("has_scripts", [True, False])
async def test_a_phone_sorts_by_a_field_and_has_no_hidden_tab_stops(
    browser: Browser,
    service: ServiceProcess,
    signed_in: StorageState,
    images: Images,
    has_scripts: bool,
) -> None:
    images.make("first", disk(8 * MIB))
    images.make("second", disk(4 * MIB))
    size = {"width": 360, "height": 740}
    options = {"viewport": size, "storage_state": signed_in, "java_script_enabled": has_scripts}
    async with visiting(browser, url_of(service), **options) as visitor:
        page = await visitor.go("/images")
        await expect(names(visitor)).to_have_text(["first", "second"])
        await expect(page.locator("thead a:visible")).to_have_count(0)
        await page.get_by_label("Sort by").select_option("Size")
        if not has_scripts:
            await page.get_by_role("button", name="Filter").click()
        await expect(names(visitor)).to_have_text(["second", "first"])
        await page.get_by_label("Sort by").select_option("Name, descending")
        if not has_scripts:
            await page.get_by_role("button", name="Filter").click()
        await expect(names(visitor)).to_have_text(["second", "first"])
        await expect(page.get_by_label("Sort by")).to_have_value("-name")
        await expect(page.get_by_role("columnheader", name="Name")).to_have_attribute(
            "aria-sort", "descending"
        )
        links = page.get_by_role("navigation", name="Main").get_by_role("link")
        boxes = [await link.bounding_box() for link in await links.all()]
        assert len({box["y"] for box in boxes if box}) == 1


async def test_what_a_filter_found_is_announced(visitor: Visitor, images: Images) -> None:
    images.make("heard")
    images.make("unheard")
    page = await visitor.go("/images")
    count = page.get_by_role("status").filter(has_text="2 images")
    await count.evaluate("element => { window.count = element; }")
    await page.get_by_label("Name or source").fill("unh")
    await expect(page.get_by_text("1 of 2 images")).to_be_visible()
    images.remove("heard")
    await expect(page.get_by_text("1 image", exact=True)).to_be_visible()
    assert await page.evaluate("window.count.isConnected && window.count.textContent") == "1 image"


async def test_a_column_says_what_shared_means(visitor: Visitor, images: Images) -> None:
    images.make("sharing")
    page = await visitor.go("/images")
    heading = page.get_by_role("columnheader", name="Shared")
    await expect(heading).to_have_attribute("title", re.compile("other files use as well"))
    for path in ("/images", "/images/sharing"):
        await visitor.go(path)
        await expect(page.get_by_text("they take room once")).to_be_visible()


async def test_an_image_made_elsewhere_appears_moves_and_goes(
    visitor: Visitor, images: Images, kubectl: Kubectl
) -> None:
    served = images.serve_slowly(disk(8 * MIB), name="live.img", pause_after=6 * MIB)
    page = await visitor.go("/images?q=live")
    await expect(page.get_by_text("No image")).to_be_visible()
    await page.evaluate("window.isTheSamePage = true")

    await kubectl("create", "-f", "-", stdin=json.dumps(manifest("live", served.url)))
    live = row(visitor, "live")
    await expect(live.get_by_text("in progress")).to_be_visible()
    progress = live.get_by_role("progressbar")
    await expect(progress).to_have_attribute("value", re.compile("^[1-7][0-9]?$"))
    served.resume.set()
    await expect(live.get_by_text("ready", exact=True)).to_be_visible()
    await expect(progress).to_have_count(0)
    await expect(live.get_by_role("cell").nth(1)).to_contain_text("8 MiB")

    await kubectl("delete", "backingimage", "live", "-n", SYSTEM)
    await expect(live).to_have_count(0)
    await expect(page.get_by_text("No image")).to_be_visible()
    assert await page.evaluate("window.isTheSamePage")


async def test_a_row_keeps_the_focus_when_it_changes(visitor: Visitor, images: Images) -> None:
    served = images.serve(disk(), Behaviour(pause_after=MIB), name="held.img")
    images.begin("held", served.url)
    page = await visitor.go("/images")
    link = page.get_by_role("link", name="held", exact=True)
    await expect(row(visitor, "held").get_by_role("progressbar")).to_be_visible()
    await link.focus()
    served.resume.set()
    await expect(row(visitor, "held").get_by_text("ready", exact=True)).to_be_visible()
    await expect(link).to_be_focused()
