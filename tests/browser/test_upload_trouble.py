"""Uploads that meet another file, the end of a session, a full pool, or a change of mind."""

from __future__ import annotations

import os
import random
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Locator, Page, StorageState, expect
from tests.browser.chromium import Visitor, visiting
from tests.browser.conftest import login_link
from tests.browser.scenery import MIB, Images, disk, url_of
from tests.browser.uploading import begin, is_there, leave, offsets_sent, reach, set_speed
from tests.integration.daemon_process import ServiceProcess
from tests.integration.service_api import SYSTEM

_SLOW = 12 * MIB
_FILE_BYTES = 60_000_256


@pytest_asyncio.fixture(loop_scope="session")
async def visitor(
    browser: Browser, service: ServiceProcess, signed_in: StorageState, images: Images
) -> AsyncIterator[Visitor]:
    """Somebody who is signed in, and leaves a page where something runs."""
    async with visiting(browser, url_of(service), storage_state=signed_in) as made:
        made.page.on("dialog", leave)
        yield made


def noise(path: Path, seed: str) -> Path:
    path.write_bytes(random.Random(seed).randbytes(_FILE_BYTES))
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return noise(tmp_path / "one.img", "one")


@pytest.fixture
def other_file(tmp_path: Path) -> Path:
    return noise(tmp_path / "other.img", "other")


def question(page: Page) -> Locator:
    return page.locator("[data-upload-question]")


async def begun(visitor: Visitor, file: Path, name: str) -> Page:
    """Let an upload stop in its middle, and open its image's page."""
    await set_speed(visitor, _SLOW)
    page = await begin(visitor, file, name, checksum="")
    await reach(page, 0.6)
    await page.get_by_role("button", name="Pause").click()
    await expect(page.get_by_text(re.compile("^Paused at "))).to_be_visible()
    await set_speed(visitor, -1)
    return await visitor.go(f"/images/{name}")


# ---- another file -------------------------------------------------------------------------------


async def test_two_files_do_not_become_one_image(
    visitor: Visitor, images: Images, file: Path, other_file: Path
) -> None:
    page = await begun(visitor, file, "mixed")
    offsets = offsets_sent(page)
    await page.get_by_label("File").set_input_files(other_file)
    await expect(question(page)).to_contain_text("This is another file")
    assert offsets == []
    await page.get_by_label("File").set_input_files(file)
    await is_there(page, images, "mixed", file)
    assert min(offsets) > 0
    checksum = page.get_by_role("region", name="Checksum")
    await expect(checksum).to_contain_text("computed SHA-512 of the artifact, as it arrived")


async def test_another_file_can_be_sent_instead_from_its_first_byte(
    visitor: Visitor, images: Images, file: Path, other_file: Path
) -> None:
    page = await begun(visitor, file, "anew")
    await page.get_by_label("File").set_input_files(other_file)
    offsets = offsets_sent(page)
    await page.get_by_role("button", name="Start anew with this file").click()
    await is_there(page, images, "anew", other_file)
    assert min(offsets) == 0


async def test_a_browser_that_knows_nothing_of_the_upload_compares_as_well(
    visitor: Visitor, other_visitor: Visitor, images: Images, file: Path, other_file: Path
) -> None:
    await begun(visitor, file, "elsewhere")
    page = await other_visitor.go("/images/elsewhere")
    await page.get_by_label("File").set_input_files(other_file)
    await expect(question(page)).to_contain_text("This is another file")
    await page.get_by_label("File").set_input_files(file)
    await is_there(page, images, "elsewhere", file)


async def test_a_file_that_was_changed_is_asked_about(
    visitor: Visitor, images: Images, file: Path
) -> None:
    page = await begun(visitor, file, "touched")
    os.utime(file, (1, 1))
    await page.get_by_label("File").set_input_files(file)
    await expect(question(page)).to_contain_text("one.img was changed since the upload began")
    await visitor.go("/images/touched")  # and what was known of it is known still
    renamed = file.rename(file.with_name("two.img"))
    await page.get_by_label("File").set_input_files(renamed)
    await expect(question(page)).to_contain_text("began with one.img, and this is two.img")
    await page.get_by_role("button", name="It is the same file").click()
    await is_there(page, images, "touched", renamed)


async def test_a_file_that_is_changed_meanwhile_is_not_sent_on(
    visitor: Visitor, images: Images, file: Path
) -> None:
    await set_speed(visitor, _SLOW)
    page = await begin(visitor, file, "changed", checksum="")
    await reach(page, 0.2)
    await page.get_by_role("button", name="Pause").click()
    noise(file, "changed")
    os.utime(file, (1, 1))
    await page.get_by_role("button", name="Go on").click()
    alert = page.locator("[data-upload-problem]")
    await expect(alert).to_contain_text("The file cannot be read: it was changed or removed")


# ---- the end of a session -----------------------------------------------------------------------


async def sign_in_elsewhere(visitor: Visitor, service: ServiceProcess) -> None:
    tab = await visitor.context.new_page()
    await tab.goto(login_link(service))
    await expect(tab.get_by_role("heading", name="Overview")).to_be_visible()
    await tab.close()


async def test_a_session_that_ended_before_is_said_and_the_file_stays(
    visitor: Visitor, service: ServiceProcess, images: Images, file: Path
) -> None:
    visitor.expect_complaint("status of 401")
    page = await visitor.go("/new-image?from=upload")
    await page.get_by_label("File").set_input_files(file)
    await page.get_by_label("Name").fill("signed-out")
    await visitor.context.clear_cookies()
    await page.get_by_role("button", name="Upload").click()
    await expect(page.get_by_role("alert")).to_contain_text("Your session has ended")
    link = page.get_by_role("link", name="Sign in in another tab")
    assert await link.get_attribute("href") == "/login"
    await sign_in_elsewhere(visitor, service)
    await page.get_by_role("button", name="Upload").click()
    await is_there(page, images, "signed-out", file)


async def test_a_session_that_ends_meanwhile_is_said_and_the_upload_goes_on(
    visitor: Visitor, service: ServiceProcess, images: Images, file: Path
) -> None:
    visitor.expect_complaint("status of 401")
    await set_speed(visitor, _SLOW)
    page = await begin(visitor, file, "expired", checksum="")
    await reach(page, 0.2)
    await visitor.context.clear_cookies()
    alert = page.locator("[data-upload-problem]")
    await expect(alert).to_contain_text("Your session has ended")
    await expect(page.get_by_text(re.compile(r"^Stopped at 3\d\.\d MiB of "))).to_be_visible()
    await sign_in_elsewhere(visitor, service)
    await set_speed(visitor, -1)
    offsets = offsets_sent(page)
    await page.get_by_role("button", name="Try again").click()
    await is_there(page, images, "expired", file)
    assert min(offsets) > 0


async def test_another_session_in_the_same_browser_changes_nothing(
    visitor: Visitor, service: ServiceProcess, images: Images, file: Path
) -> None:
    """What this page was made with is then of a session before."""
    visitor.expect_complaint("status of 403")
    await set_speed(visitor, _SLOW)
    page = await begin(visitor, file, "renewed", checksum="")
    await reach(page, 0.2)
    await sign_in_elsewhere(visitor, service)
    await set_speed(visitor, -1)
    await is_there(page, images, "renewed", file)


# ---- a pool that takes nothing ------------------------------------------------------------------


async def test_why_it_waits_is_said_and_it_begins_by_itself(
    visitor: Visitor, images: Images, file: Path
) -> None:
    page = await visitor.go("/new-image?from=upload")
    await page.get_by_label("File").set_input_files(file)
    await page.get_by_label("Name").fill("tagged")
    await page.get_by_text("Where its copies are").click()
    await page.get_by_label("Node tags").fill("nowhere")
    await page.get_by_role("button", name="Upload").click()
    await expect(page.get_by_text(re.compile("^Waiting: .*tags of nodeSelector"))).to_be_visible()
    link = page.get_by_role("link", name="The image's page")
    assert await link.get_attribute("href") == "/images/tagged"
    images.api.merge("BackingImage", SYSTEM, "tagged", {"spec": {"nodeSelector": []}})
    await is_there(page, images, "tagged", file)


async def test_a_file_that_no_pool_has_room_for_waits_and_says_so(
    visitor: Visitor, images: Images, tmp_path: Path
) -> None:
    large = tmp_path / "large.img"
    with large.open("wb") as stream:
        stream.truncate(5 << 30)
    page = await begin(visitor, large, "too-large", checksum="")
    await expect(page.get_by_text(re.compile("^Waiting: .*(room|space|free)"))).to_be_visible()


# ---- a change of mind ---------------------------------------------------------------------------


async def test_an_upload_can_be_discarded(visitor: Visitor, images: Images, file: Path) -> None:
    await set_speed(visitor, _SLOW)
    page = await begin(visitor, file, "unwanted", checksum="")
    await reach(page, 0.2)
    for field in ("File", "Name", "Expected SHA-512"):
        await expect(page.get_by_label(field)).to_be_disabled()
    await expect(page.get_by_role("link", name="Cancel")).to_be_hidden()
    await page.get_by_role("button", name="Discard…").click()
    await expect(question(page)).to_contain_text("Discard unwanted?")
    await page.get_by_role("button", name="Keep it").click()
    assert images.api.find("BackingImage", SYSTEM, "unwanted") is not None
    await page.get_by_role("button", name="Discard…").click()
    await page.get_by_role("button", name="Discard it").click()
    await expect(page).to_have_url(re.compile("/images$"))
    images.api.wait_gone("BackingImage", SYSTEM, "unwanted")


async def test_an_upload_can_be_kept_for_later(
    visitor: Visitor, images: Images, file: Path
) -> None:
    await set_speed(visitor, _SLOW)
    page = await begin(visitor, file, "kept", checksum="")
    await reach(page, 0.6)
    await page.get_by_role("button", name="Keep for later").click()
    await expect(page).to_have_url(re.compile("/images/kept$"))
    await expect(page.get_by_text("Choose the same file to go on: one.img")).to_be_visible()
    await set_speed(visitor, -1)
    await page.get_by_label("File").set_input_files(file)
    await is_there(page, images, "kept", file)


# ---- what is said before ------------------------------------------------------------------------


async def test_a_file_that_is_padded_is_said_before(
    visitor: Visitor, images: Images, tmp_path: Path
) -> None:
    odd = tmp_path / "odd.img"
    odd.write_bytes(disk(4 * MIB)[:3_000_000])
    page = await visitor.go("/new-image?from=upload")
    await page.get_by_label("File").set_input_files(odd)
    await expect(page.get_by_text("3000000 bytes are no whole sectors of 512")).to_be_visible()
    await page.get_by_role("button", name="Upload").click()
    image = await is_there(page, images, "odd", odd)
    assert image["status"]["virtualSize"] == 3_000_320
