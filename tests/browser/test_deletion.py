"""Deleting asks in place: a dialog for keyboards and screen readers, and a page wherever it cannot.

Aspects: focus goes in, stays in and comes back; Escape, Enter; what is unusual leads to the page;
a question outlives changes behind it; new tabs.
"""

from __future__ import annotations

import re

import pytest
from playwright.async_api import Locator, Page, Route, expect
from tests.browser.chromium import Visitor
from tests.browser.scenery import Images
from tests.integration.kubectl import Kubectl
from tests.integration.service_api import SYSTEM

QUESTION = re.compile("/images/asked/delete$")


async def opened(page: Page) -> Locator:
    """Ask by keyboard; return the dialog."""
    await page.get_by_role("link", name="Delete…").press("Enter")
    question = page.get_by_role("dialog", name="Delete asked?")
    await expect(question).to_be_visible()
    return question


async def test_focus_goes_in_stays_in_and_comes_back(visitor: Visitor, images: Images) -> None:
    images.make("asked")
    page = await visitor.go("/images/asked")
    question = await opened(page)
    assert await question.get_attribute("aria-describedby") == "consequences"
    await expect(question.locator("#consequences")).to_contain_text("This cannot be undone")
    keep = question.get_by_role("button", name="Keep it")
    await expect(keep).to_be_focused()
    inside = "document.activeElement.matches('body, dialog, dialog *')"
    reached = set()
    for _ in range(6):
        await page.keyboard.press("Tab")
        assert await page.evaluate(inside)
        reached.add(await page.evaluate("document.activeElement.textContent.trim()"))
    assert {"Keep it", "Delete the image"} <= reached
    await page.keyboard.press("Escape")
    await expect(page.locator("dialog")).to_have_count(0)
    await expect(page.get_by_role("link", name="Delete…")).to_be_focused()

    question = await opened(page)
    await page.keyboard.press("Enter")
    await expect(page.locator("dialog")).to_have_count(0)
    await expect(page.get_by_role("link", name="Delete…")).to_be_focused()
    await expect(page).to_have_url(re.compile("/images/asked$"))
    assert images.ready("asked")


async def test_a_question_outlives_changes_behind_it(
    visitor: Visitor, images: Images, kubectl: Kubectl
) -> None:
    images.make("asked")
    page = await visitor.go("/images/asked")
    question = await opened(page)
    link = await page.query_selector("#delete")
    assert link is not None
    await kubectl(
        *("annotate", "backingimage", "asked", "-n", SYSTEM),
        "shorthorn.io/verify-at=2026-01-01T00:00:00Z",
    )
    swap = "{target: '#main', select: '#main', swap: 'outerHTML'}"
    await page.evaluate(f"htmx.ajax('GET', location.pathname, {swap})")
    await expect(page.get_by_text("Verification asked for")).to_be_attached()
    assert not await link.evaluate("link => link.isConnected")
    await expect(question).to_be_visible()
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("link", name="Delete…")).to_be_focused()
    images.ready("asked")


@pytest.mark.parametrize("trouble", ["no answer", "refused"])
async def test_what_cannot_be_asked_in_place_is_asked_on_a_page(
    visitor: Visitor, images: Images, trouble: str
) -> None:
    visitor.expect_complaint("Failed to load resource")
    images.make("asked")
    page = await visitor.go("/images/asked")

    async def only_in_place(route: Route) -> None:
        if "x-dialog" not in route.request.headers:
            await route.continue_()
        elif trouble == "refused":
            await route.fulfill(status=503, body="not now")
        else:
            await route.abort()

    await page.route("**/delete", only_in_place)
    await page.get_by_role("link", name="Delete…").click()
    await expect(page).to_have_url(QUESTION)
    await page.get_by_role("link", name="Keep it").click()
    await expect(page).to_have_url(re.compile("/images/asked$"))


async def test_who_is_not_signed_in_any_more_is_led_to_the_login(
    visitor: Visitor, images: Images
) -> None:
    visitor.expect_complaint("status of 401", "EventSource's response has a")
    images.make("asked")
    # Its event stream is open by then: one that cannot be opened leads to the login by itself.
    async with visitor.page.expect_response(lambda response: "/events?" in response.url):
        page = await visitor.go("/images/asked")
    await visitor.context.clear_cookies()
    await page.get_by_role("link", name="Delete…").click()
    await expect(page).to_have_url(re.compile("/login"))


async def test_the_page_can_be_had_in_a_tab_of_its_own(visitor: Visitor, images: Images) -> None:
    images.make("asked")
    page = await visitor.go("/images/asked")
    async with visitor.context.expect_page() as opening:
        await page.get_by_role("link", name="Delete…").click(modifiers=["Control"])
    other = await opening.value
    await expect(other.get_by_role("heading", name="Delete asked?", level=1)).to_be_visible()
    await expect(page.locator("dialog")).to_have_count(0)
