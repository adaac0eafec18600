"""The list of images: filter, sort, and rows that change by themselves."""

from __future__ import annotations

import json
import re
from pathlib import Path

from playwright.async_api import Locator, expect
from tests.browser.chromium import Visitor
from tests.browser.scenery import MIB, Images, disk, manifest, qcow2
from tests.fakes.image_server import Behaviour
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
