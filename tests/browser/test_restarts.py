"""Pages that are open while the service dies, comes back, or sessions end."""

from __future__ import annotations

import random
import re
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, expect
from tests.browser.chromium import Visitor, visiting
from tests.browser.conftest import cookies_of, login_link
from tests.browser.scenery import MIB, Images, url_of
from tests.browser.uploading import is_there, offsets_sent, reach, set_speed
from tests.integration import storage
from tests.integration.daemon_process import ServiceProcess, running

from shorthorn.web.sessions import SESSION_S, Sessions

#: Of the network, and of htmx, which tells the console of each lost stream.
_OUT_OF_REACH = ("net::ERR_", r"^error: \[object Event\] .*/htmx")


@pytest.fixture(scope="module")
def service() -> Iterator[ServiceProcess]:
    """A service of this module's own, to be killed by its tests."""
    storage.require(storage.XFS)
    root = Path(tempfile.mkdtemp(prefix="shorthorn-restarts-"))
    try:
        with running(root / "data") as process:
            yield process
    finally:
        shutil.rmtree(root)


@pytest_asyncio.fixture(loop_scope="session")
async def visitor(
    browser: Browser, service: ServiceProcess, images: Images
) -> AsyncIterator[Visitor]:
    """Somebody who is signed in and knows that the service goes away."""
    cookies = await cookies_of(browser, service)
    async with visiting(browser, url_of(service), storage_state=cookies) as made:
        made.expect_complaint(*_OUT_OF_REACH)
        yield made


async def test_an_open_page_outlives_a_killed_service(
    visitor: Visitor, images: Images, service: ServiceProcess
) -> None:
    images.make("before")
    page = await visitor.go("/images")
    await expect(page.get_by_role("link", name="before", exact=True)).to_be_visible()
    await page.evaluate("window.isTheSamePage = true")
    service.kill()
    await expect(page.get_by_text("Connection lost.")).to_be_visible()

    service.start()
    images.make("after")
    await expect(page.get_by_role("link", name="after", exact=True)).to_be_visible()
    await expect(page.get_by_text("Connection lost.")).to_be_hidden()
    await expect(page.get_by_role("link", name="before", exact=True)).to_be_visible()
    await page.get_by_role("link", name="before", exact=True).click()
    await expect(page.locator(".state-line")).to_contain_text("ready")


async def test_a_change_during_the_absence_is_on_the_page_afterwards(
    visitor: Visitor, images: Images, service: ServiceProcess
) -> None:
    images.make("gone")
    page = await visitor.go("/images/gone")
    await expect(page.locator(".state-line")).to_contain_text("ready")
    service.kill()
    await expect(page.get_by_text("Connection lost.")).to_be_visible()
    service.start()
    images.remove_all()
    visitor.expect_complaint("status of 404")
    await expect(page.get_by_role("heading", name="Not found")).to_be_visible()


async def test_a_session_that_ends_leads_to_the_login_page_and_back(
    visitor: Visitor, service: ServiceProcess
) -> None:
    visitor.expect_complaint("status of 401", "EventSource's response has a")
    page = await visitor.go("/images?q=some")
    await expect(page.get_by_label("Name or source")).to_have_value("some")
    assert service.stop() == 0
    (service.data_dir / "web.key").unlink()
    service.start()
    await expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    await expect(page.get_by_text("Your session has ended.")).to_be_visible()
    await page.get_by_label("Token").fill((service.data_dir / "token").read_text().strip())
    await page.get_by_role("button", name="Sign in").click()
    await expect(page.get_by_role("heading", name="Backing images")).to_be_visible()
    await expect(page.get_by_label("Name or source")).to_have_value("some")


async def test_a_session_expires_under_an_open_page(
    visitor: Visitor, service: ServiceProcess
) -> None:
    """By its own time: the session was begun twelve hours ago, but for some seconds."""
    visitor.expect_complaint("status of 401", "EventSource's response has a")
    page = await visitor.go("/images?q=some")
    await _age(visitor, service, left_s=8)
    await page.reload()
    await expect(page.get_by_label("Name or source")).to_have_value("some")
    await expect(page.get_by_text("Your session has ended.")).to_be_visible()
    await page.get_by_label("Token").fill((service.data_dir / "token").read_text().strip())
    await page.get_by_role("button", name="Sign in").click()
    await expect(page.get_by_label("Name or source")).to_have_value("some")


async def _age(visitor: Visitor, service: ServiceProcess, *, left_s: float) -> None:
    """Give the visitor the cookie of a session that has only so long to live."""
    (cookie,) = [c for c in await visitor.context.cookies() if c["name"].startswith("shorthorn_")]
    key = (service.data_dir / "web.key").read_text().strip()
    session = Sessions(key).find(cookie["value"])
    assert session is not None
    begun_at = time.time() - SESSION_S + left_s
    _, aged = Sessions(key, clock=lambda: begun_at).begin(session.user, session.token)
    await visitor.context.add_cookies([{"name": cookie["name"], "value": aged, "url": visitor.url}])


async def test_a_form_of_an_ended_session_changes_nothing(
    visitor: Visitor, images: Images, service: ServiceProcess
) -> None:
    visitor.expect_complaint("status of 401", "EventSource's response has a")
    images.make("stays")
    page = await visitor.go("/images/stays/delete")
    assert service.stop() == 0
    (service.data_dir / "web.key").unlink()
    service.start()
    await page.get_by_role("button", name="Delete the image").click()
    await expect(page).to_have_url(re.compile("/login"))
    assert images.ready("stays")


async def test_an_upload_outlives_its_session_and_the_service(
    visitor: Visitor, images: Images, service: ServiceProcess, tmp_path: Path
) -> None:
    visitor.expect_complaint("status of 401", "EventSource's response has a")
    file = tmp_path / "disk.img"
    file.write_bytes(random.Random(1).randbytes(64 * MIB))
    images.begin_upload("outlives", 64 * MIB)
    page = await visitor.go("/images/outlives")
    await set_speed(visitor, 12 * MIB)
    await page.get_by_label("File").set_input_files(file)
    await reach(page, 0.6)
    await page.get_by_role("button", name="Pause").click()
    async with page.expect_response(lambda told: told.url.endswith("/session")):
        assert service.stop() == 0
        (service.data_dir / "web.key").unlink()
        service.start()
    await page.get_by_role("button", name="Go on").click()
    await expect(page.get_by_role("alert")).to_contain_text("Your session has ended")
    tab = await visitor.context.new_page()
    await tab.goto(login_link(service))
    await expect(tab.get_by_role("heading", name="Overview")).to_be_visible()
    await set_speed(visitor, -1)
    offsets = offsets_sent(page)
    await page.get_by_role("button", name="Try again").click()
    await is_there(page, images, "outlives", file)
    assert min(offsets) > 0
