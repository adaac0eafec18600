"""Two browsers at once, and a user without a mouse."""

from __future__ import annotations

from playwright.async_api import Page, expect
from tests.browser.chromium import Visitor
from tests.browser.scenery import Images, disk


async def test_two_browsers_see_each_other_s_changes(
    visitor: Visitor, other_visitor: Visitor, images: Images
) -> None:
    served = images.serve(disk(), name="shared.img")
    one, other = await visitor.go("/new-image"), await other_visitor.go("/images")
    await one.get_by_label("URL").fill(served.url)
    await one.get_by_label("Name").fill("shared-one")
    await one.get_by_role("button", name="Make the image").click()
    link = other.get_by_role("link", name="shared-one", exact=True)
    await expect(link).to_be_visible()
    await link.click()
    await expect(other.locator(".state-line")).to_contain_text("ready")
    await expect(one.locator(".state-line")).to_contain_text("ready")

    await visitor.go("/images")
    await other.get_by_role("link", name="Delete…").click()
    await other.get_by_role("button", name="Delete the image").click()
    await expect(one.get_by_role("link", name="shared-one", exact=True)).to_have_count(0)


async def press_until_focused(page: Page, name: str, *, role: str = "link") -> None:
    """Press Tab until something has the focus, which it must get."""
    for _ in range(40):
        await page.keyboard.press("Tab")
        focused = await page.evaluate(
            "[document.activeElement.tagName, document.activeElement.innerText.trim()]"
        )
        if focused[1] == name and focused[0] == {"link": "A", "button": "BUTTON"}[role]:
            return
    raise AssertionError(f"Tab never reaches the {role} {name}")


async def test_the_main_flow_needs_no_mouse(visitor: Visitor, images: Images) -> None:
    served = images.serve(disk(), name="typed.img")
    page = await visitor.go("/")
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(page.locator("#main")).to_be_focused()
    await visitor.go("/images")
    await press_until_focused(page, "New image")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name="New image")).to_be_visible()
    for _ in range(40):
        await page.keyboard.press("Tab")
        if await page.evaluate("document.activeElement.id") == "url":
            break
    await page.keyboard.type(served.url)
    await expect(page.locator("#checked")).to_contain_text("Reachable")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name="typed")).to_be_visible()
    await expect(page.locator(".state-line")).to_contain_text("ready")
    await press_until_focused(page, "Delete…")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name="Delete typed?")).to_be_visible()
    await press_until_focused(page, "Delete the image", role="button")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name="Backing images")).to_be_visible()
