"""Signing in: by a link that is good once, by a token; and signing out."""

from __future__ import annotations

from playwright.async_api import Browser, expect
from tests.browser.chromium import Visitor, visiting
from tests.browser.conftest import login_link
from tests.browser.scenery import url_of
from tests.integration.daemon_process import ServiceProcess

_REFUSED = "status of 403"


async def test_a_link_signs_in_once(
    stranger: Visitor, browser: Browser, service: ServiceProcess
) -> None:
    link = login_link(service)
    page = stranger.page
    await page.goto(link)
    await expect(page.get_by_role("heading", name="Overview")).to_be_visible()
    await page.get_by_role("link", name="Images").first.click()
    await expect(page.get_by_role("heading", name="Backing images")).to_be_visible()

    async with visiting(browser, url_of(service)) as second:
        second.expect_complaint(_REFUSED)
        await second.page.goto(link)
        await expect(second.page.get_by_role("alert")).to_contain_text("was used already")
        await second.go("/images")
        await expect(second.page.get_by_role("heading", name="Sign in")).to_be_visible()


async def test_a_token_signs_in_and_leads_to_the_page_that_was_asked_for(
    stranger: Visitor, service: ServiceProcess
) -> None:
    stranger.expect_complaint(_REFUSED)
    page = await stranger.go("/volumes?q=pvc")
    await page.get_by_label("Token").fill("nobody's")
    await page.get_by_role("button", name="Sign in").click()
    problem = page.get_by_role("alert")
    await expect(problem).to_contain_text("does not know this token")
    await expect(problem).to_be_focused()
    await page.get_by_label("Token").fill((service.data_dir / "token").read_text().strip())
    await page.get_by_role("button", name="Sign in").click()
    await expect(page.get_by_role("heading", name="Volumes and snapshots")).to_be_visible()
    await expect(page.get_by_label("Id or origin")).to_have_value("pvc")


async def test_signing_out_ends_the_session(stranger: Visitor, service: ServiceProcess) -> None:
    page = stranger.page
    await page.goto(login_link(service))
    await page.get_by_role("button", name="Sign out").click()
    await expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    await stranger.go("/")
    await expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
