"""One image: what its page says, and what can be done with it there."""

from __future__ import annotations

import re

from playwright.async_api import expect
from tests.browser.chromium import Visitor
from tests.browser.scenery import MIB, Images, disk
from tests.fakes.image_server import Behaviour
from tests.integration.kubectl import Kubectl
from tests.integration.service_api import SYSTEM, Namespace


async def test_a_page_says_all_of_an_image(visitor: Visitor, images: Images) -> None:
    image = images.make("whole", disk(8 * MIB))
    page = await visitor.go("/images/whole")
    await expect(page.locator(".state-line")).to_contain_text("ready")
    figures = page.locator(".figures")
    await expect(figures).to_contain_text("8 MiB raw")
    await expect(figures).to_contain_text("1 of 1")
    await expect(page.locator("#checksum")).to_have_text(image["status"]["checksum"])
    await expect(page.get_by_role("region", name="Checksum")).to_contain_text("✓ verified")
    parameters = page.get_by_role("region", name="Parameters")
    await expect(parameters).to_contain_text("/whole.img")
    await expect(parameters).to_contain_text(image["status"]["uuid"])
    copies = page.get_by_role("region", name="Copies by node")
    await expect(copies.get_by_role("row")).to_have_count(2)
    await expect(copies).to_contain_text("ready")
    await expect(page.get_by_role("region", name="Conditions")).to_contain_text("Ready is true")
    await expect(page.get_by_role("region", name="Who uses it")).to_contain_text("Nobody")


async def test_a_copied_handle_is_checked_and_a_copied_manifest_makes_a_claim(
    visitor: Visitor, images: Images, own: Namespace, kubectl: Kubectl
) -> None:
    images.make("copied", disk(32 * MIB))
    await visitor.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = await visitor.go("/images/copied")
    handle_and_manifests = page.get_by_role("region", name="Handle and manifests")
    await handle_and_manifests.get_by_role("button", name="Copy handle").click()
    await expect(page.get_by_role("status").filter(has_text="Copied")).to_be_attached()
    handle = await page.evaluate("navigator.clipboard.readText()")
    assert handle.startswith("bi://")
    await handle_and_manifests.get_by_role("button", name="Copy All three as YAML").click()
    manifests = await page.evaluate("navigator.clipboard.readText()")

    own.snapshot_class("bi", type="bi")
    text = manifests.replace("namespace: default", f"namespace: {own.name}")
    text = re.sub(r"volumeSnapshotClassName: \S+", f"volumeSnapshotClassName: {own.name}-bi", text)
    await kubectl("apply", "-f", "-", stdin=text)
    own.bound("copied")
    users = page.get_by_role("region", name="Who uses it")
    await expect(users).to_contain_text(f"{own.name}/copied")

    await page.get_by_role("link", name="Handles").click()
    await page.get_by_label("Handle", exact=True).fill(handle)
    await expect(page.get_by_text("names something")).to_be_visible()
    own.api.delete("VolumeSnapshotContent", "", "copied")


async def test_deleting_says_first_what_it_means(
    visitor: Visitor, images: Images, own: Namespace
) -> None:
    images.make("used", disk(32 * MIB))
    own.snapshot_class("bi", type="bi")
    handle = "bi://backing?backingImageDataSourceType=download&backingImage=used"
    own.content("used", handle, snapshot="used", volumeSnapshotClassName=f"{own.name}-bi")
    own.snapshot("used", content=f"{own.name}-used")
    own.claim("used", "32Mi", snapshot="used", volumeMode="Block")
    own.bound("used")
    page = await visitor.go("/images/used")
    question = page.get_by_role("dialog", name="Delete used?")
    await page.get_by_role("link", name="Delete…").click()
    await expect(question.get_by_text("1 volume made from it goes on working")).to_be_visible()
    await expect(question.get_by_text("1 VolumeSnapshotContent names it by handle")).to_be_visible()
    await question.get_by_role("button", name="Keep it").click()
    await expect(page.locator("dialog")).to_have_count(0)
    await expect(page).to_have_url(re.compile("/images/used$"))

    await page.get_by_role("link", name="Delete…").click()
    await question.get_by_role("button", name="Delete the image").click()
    await expect(page.get_by_role("heading", name="Backing images")).to_be_visible()
    await expect(page.get_by_role("link", name="used", exact=True)).to_have_count(0)
    images.api.wait_gone("BackingImage", SYSTEM, "used")
    assert own.bound("used")


async def test_a_failed_image_is_tried_again(visitor: Visitor, images: Images) -> None:
    served = images.serve(disk(), Behaviour(status=404), name="late.img")
    images.begin("late", served.url)
    page = await visitor.go("/images/late")
    await expect(page.locator(".state-line")).to_contain_text("failed")
    await expect(page.locator(".state-line")).to_contain_text("404")
    served.behaviours[:] = [Behaviour()]
    await page.get_by_role("button", name="Try again").click()
    await expect(page.locator(".state-line")).to_contain_text("ready")
    images.ready("late")
