"""Sessions that end while somebody fills in a form: what was typed stays, and so does the place."""

from __future__ import annotations

import asyncio

from playwright.async_api import Page, expect
from tests.browser.chromium import Visitor
from tests.browser.conftest import login_link
from tests.browser.scenery import Images, disk
from tests.integration.daemon_process import ServiceProcess
from tests.integration.service_api import Namespace

_NO_SESSION = "status of 401"
_URL = "http://127.0.0.1:9/disk.qcow2"


async def use_token(page: Page, service: ServiceProcess) -> None:
    await expect(page.get_by_text("Your session has ended.")).to_be_visible()
    await page.get_by_label("Token").fill((service.data_dir / "token").read_text().strip())
    await page.get_by_role("button", name="Sign in").click()


async def test_a_form_that_was_sent_too_late_is_there_again(
    visitor: Visitor, images: Images, service: ServiceProcess
) -> None:
    images.make("origin")
    page = await visitor.go("/new-image?from=clone")
    await page.get_by_label("Image", exact=True).fill("origin")
    await page.get_by_label("Name", exact=True).fill("copied")
    await page.get_by_text("Where its copies are").click()
    await page.get_by_label("Disk tags").fill("fast")
    await visitor.context.clear_cookies()
    await page.get_by_role("button", name="Make the image").click()
    await use_token(page, service)

    await expect(page.get_by_label("Image", exact=True)).to_have_value("origin")
    await expect(page.get_by_label("Name", exact=True)).to_have_value("copied")
    await expect(page.get_by_label("Disk tags")).to_have_value("fast")
    await page.get_by_label("Disk tags").fill("")
    await page.get_by_role("button", name="Make the image").click()
    await expect(page.get_by_role("heading", name="copied")).to_be_visible()
    assert await drafts(page) == []
    await visitor.go("/new-image?from=clone")
    await expect(page.get_by_label("Name", exact=True)).to_have_value("")


async def test_typing_without_a_session_leaves_the_page_alone(
    visitor: Visitor, service: ServiceProcess
) -> None:
    visitor.expect_complaint(_NO_SESSION, "Response Status Error Code 401")
    page = await visitor.go("/new-image?from=download")
    await visitor.context.clear_cookies()
    url = page.get_by_label("URL")
    await url.press_sequentially(_URL)
    await expect(page.get_by_role("alert")).to_contain_text("Your session has ended.")
    await expect(url).to_have_value(_URL)
    await expect(url).to_be_focused()
    await page.get_by_role("link", name="sign in again").click()
    await expect(page.get_by_role("heading", name="Sign in")).to_be_visible()

    await page.goto(login_link(service))
    await expect(page.get_by_label("URL")).to_have_value(_URL)
    await expect(page.get_by_label("Name", exact=True)).to_have_value("disk")
    await expect(page.locator("#checked")).to_contain_text("127.0.0.1")
    await expect(page.get_by_role("alert")).to_be_hidden()


async def test_a_restore_goes_on_by_a_link(
    visitor: Visitor, images: Images, own: Namespace, service: ServiceProcess
) -> None:
    images.make("golden", disk(16 << 20))
    page = await visitor.go("/restore?image=golden")
    await page.get_by_label("Name of the claim").fill("kept")
    await page.get_by_label("Namespace").fill(own.name)
    await page.get_by_label("Filesystem").check()
    await visitor.context.clear_cookies()
    await page.get_by_role("button", name="Make the claim").click()
    await expect(page.get_by_text("Your session has ended.")).to_be_visible()
    await page.goto(login_link(service))
    await expect(page.get_by_label("Name of the claim")).to_have_value("kept")
    await expect(page.get_by_label("Namespace")).to_have_value(own.name)
    await expect(page.get_by_label("Filesystem")).to_be_checked()
    await page.get_by_label("Block").check()
    await page.get_by_role("button", name="Make the claim").click()
    await expect(page.locator("#claim")).to_contain_text("Bound")
    own.api.delete("VolumeSnapshotContent", "", "kept")


async def test_signing_in_in_another_tab_is_enough(
    visitor: Visitor, images: Images, service: ServiceProcess
) -> None:
    images.make("golden")
    page = await visitor.go("/new-image?from=clone")
    await page.get_by_label("Image", exact=True).fill("golden")
    await page.get_by_label("Name", exact=True).fill("later")
    await visitor.context.clear_cookies()
    other = await visitor.context.new_page()
    await other.goto(await asyncio.to_thread(login_link, service))
    await expect(other.get_by_role("heading", name="Overview")).to_be_visible()
    await page.get_by_role("button", name="Make the image").click()
    await expect(page.get_by_role("heading", name="later")).to_be_visible()


async def test_a_tab_at_the_login_page_goes_on_when_another_one_signed_in(
    visitor: Visitor, service: ServiceProcess
) -> None:
    page = await visitor.go("/new-image?from=clone")
    await page.get_by_label("Name", exact=True).fill("typed")
    await page.get_by_label("Image", exact=True).fill("any")
    await visitor.context.clear_cookies()
    await page.get_by_role("button", name="Make the image").click()
    await expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    other = await visitor.context.new_page()
    await other.goto(await asyncio.to_thread(login_link, service))
    await expect(other.get_by_role("heading", name="New image")).to_be_visible()
    await page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    await expect(page.get_by_label("Name", exact=True)).to_have_value("typed")


async def test_signing_out_forgets_what_was_typed(
    stranger: Visitor, service: ServiceProcess
) -> None:
    page = stranger.page
    await page.goto(login_link(service))
    await expect(page.get_by_role("heading", name="Overview")).to_be_visible()
    await stranger.go("/new-image?from=clone")
    await page.get_by_label("Name", exact=True).fill("secret")
    assert len(await drafts(page)) == 1
    await page.get_by_role("button", name="Sign out").click()
    await expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    assert await drafts(page) == []


async def drafts(page: Page) -> list[str]:
    """Return the keys of what is kept in the tab."""
    keys: list[str] = await page.evaluate(
        "Object.keys(sessionStorage).filter((key) => key.startsWith('shorthorn-draft:'))"
    )
    return keys
