"""Every page in light and dark, on a desk and on a phone: nothing that axe calls serious."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Page, StorageState, expect
from tests.browser.chromium import DESKTOP, PHONE, visiting
from tests.browser.scenery import MIB, Images, disk, url_of
from tests.fakes.image_server import Behaviour
from tests.integration.daemon_process import ServiceProcess
from tests.integration.service_api import namespace

#: What axe says of a page at best: nothing of these.
_BAD = {"serious", "critical"}
_LONG = "an-image-with-a-name-that-is-longer-than-what-a-phone-can-show-in-one-line-of-text"
PAGES = {
    "overview": "/",
    "images": "/images",
    "no-match": "/images?q=nothing-is-like-this",
    "download": "/new-image",
    "upload": "/new-image?from=upload",
    "export": "/new-image?from=export",
    "clone": "/new-image?from=clone",
    "image": "/images/ready-one",
    "failed-image": "/images/failed-one",
    "moving-image": "/images/moving-one",
    "awaiting-image": "/images/awaiting-one",
    "long-name": f"/images/{_LONG}",
    "delete": "/images/ready-one/delete",
    "restore": "/restore?image=ready-one",
    "claim": "/restore/done?image=ready-one&namespace=looks&name=data",
    "no-claim": "/restore/done?image=ready-one&namespace=looks&name=nothing",
    "volumes": "/volumes",
    "handle": "/handle",
    "missing": "/images/nothing",
    "login": "/login?ended=1",
}


@pytest.fixture(scope="module")
def furnished(service: ServiceProcess) -> Iterator[ServiceProcess]:
    """A service with something of everything."""
    images = Images(service)
    with namespace(service.api, "looks") as own:
        images.make("ready-one", disk(8 * MIB))
        images.make(_LONG)
        images.begin("failed-one", images.serve(b"", Behaviour(status=404)).url)
        moving = images.serve_slowly(disk(8 * MIB), name="moving.img", pause_after=2 * MIB)
        images.begin("moving-one", moving.url)
        images.begin_upload("awaiting-one", 8 * MIB)
        own.claim("data", "64Mi", volumeMode="Block")
        own.snapshot_class("snap", type="snap")
        own.bound("data")
        own.snapshot("kept", claim="data", cls="looks-snap")
        own.ready("kept")
        yield service
    images.remove_all()


async def serious(page: Page) -> list[str]:
    """Return what axe finds: rule, elements."""
    found = (await Axe().run(page)).response["violations"]
    return [
        f"{v['id']}: {v['help']}: {[node['html'][:160] for node in v['nodes'][:4]]}"
        for v in found
        if v["impact"] in _BAD
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_axe_finds_nothing_serious(
    browser: Browser, furnished: ServiceProcess, signed_in: StorageState, scheme: str
) -> None:
    complaints = {}
    for size in (DESKTOP, PHONE):
        options = {"viewport": size, "color_scheme": scheme, "storage_state": signed_in}
        async with visiting(browser, url_of(furnished), **options) as visitor:
            visitor.expect_complaint("status of 404")
            for name, path in PAGES.items():
                page = await visitor.go(path)
                await expect(page.locator("h1")).to_have_count(1)
                if found := await serious(page):
                    complaints[name, size["width"]] = found
            page = await visitor.go(PAGES["image"])
            await page.get_by_role("link", name="Delete…").click()
            await expect(page.get_by_role("dialog")).to_be_visible()
            if found := await serious(page):
                complaints["question", size["width"]] = found
    assert complaints == {}


async def test_a_phone_never_scrolls_sideways(
    browser: Browser, furnished: ServiceProcess, signed_in: StorageState
) -> None:
    too_wide = {}
    options = {"viewport": PHONE, "has_touch": True, "storage_state": signed_in}
    async with visiting(browser, url_of(furnished), **options) as visitor:
        visitor.expect_complaint("status of 404")
        for name, path in PAGES.items():
            page = await visitor.go(path)
            await expect(page.locator("h1")).to_have_count(1)
            width = await page.evaluate("document.documentElement.scrollWidth")
            if width > PHONE["width"]:
                too_wide[name] = width
        page = await visitor.go(PAGES["long-name"])
        await page.get_by_role("link", name="Delete…").click()
        question = page.get_by_role("dialog")
        await expect(question).to_be_visible()
        assert await question.evaluate("d => d.scrollWidth <= d.clientWidth")
        assert await question.evaluate("d => d.getBoundingClientRect().width") < PHONE["width"]
    assert too_wide == {}


async def test_the_theme_stays_as_it_was_chosen(
    browser: Browser, service: ServiceProcess, signed_in: StorageState
) -> None:
    options = {"color_scheme": "light", "storage_state": signed_in}
    async with visiting(browser, url_of(service), **options) as visitor:
        page = await visitor.go("/")
        background = "getComputedStyle(document.documentElement).backgroundColor"
        light = await page.evaluate(background)
        await page.get_by_role("button", name="Change between light and dark").click()
        dark = await page.evaluate(background)
        assert dark != light
        await visitor.go("/images")
        assert await page.evaluate(background) == dark


async def test_pages_work_without_scripts(
    browser: Browser, furnished: ServiceProcess, signed_in: StorageState
) -> None:
    options = {"java_script_enabled": False, "storage_state": signed_in}
    async with visiting(browser, url_of(furnished), **options) as visitor:
        page = await visitor.go("/images")
        await page.get_by_label("Name or source").fill("ready")
        await page.get_by_role("button", name="Filter").click()
        await expect(page.get_by_text("1 of 5 images")).to_be_visible()
        await page.get_by_role("link", name="ready-one").click()
        await page.get_by_role("link", name="Delete…").click()
        await page.get_by_role("link", name="Keep it").click()
        await page.get_by_role("button", name="Verify now").click()
        await expect(page.get_by_text("Verification asked for")).to_be_visible()
