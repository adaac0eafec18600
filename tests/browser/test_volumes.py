"""Volumes and snapshots, the overview, and the checker of handles."""

from __future__ import annotations

import asyncio
import re

from playwright.async_api import expect
from tests.browser.chromium import Visitor
from tests.browser.scenery import MIB, Images, disk, has_condition
from tests.fakes.image_server import Behaviour
from tests.integration.daemon_process import ServiceProcess
from tests.integration.service_api import SYSTEM, Namespace


async def test_a_volume_appears_and_its_snapshot_is_restored(
    visitor: Visitor, images: Images, own: Namespace
) -> None:
    page = await visitor.go("/volumes")
    own.claim("data", "64Mi", volumeMode="Block")
    volume = own.volume_of("data")["spec"]["csi"]["volumeHandle"]
    await expect(page.get_by_role("rowheader", name=volume)).to_be_visible()
    await expect(page.get_by_role("rowheader", name=f"{own.name}/data")).to_be_visible()

    own.snapshot_class("snap", type="snap")
    own.snapshot("kept", claim="data", cls=f"{own.name}-snap")
    own.ready("kept")
    await expect(page.get_by_role("link", name="Restore", exact=False)).to_be_visible()
    await page.get_by_label("Claim, id or origin").fill(f"{own.name}/kept")
    snapshot = page.get_by_role("rowheader", name=f"VolumeSnapshot {own.name}/kept")
    await expect(snapshot).to_be_visible()
    await page.get_by_label("Claim, id or origin").fill(f"{own.name}/data")
    named = page.get_by_role("rowheader", name=f"{volume} Claim {own.name}/data")
    await expect(named).to_be_visible()
    await page.get_by_role("link", name="Restore", exact=False).click()
    await page.get_by_label("Name of the claim").fill("restored")
    await page.get_by_label("Namespace").fill(own.name)
    await page.get_by_label("Block").check()
    await page.get_by_role("button", name="Make the claim").click()
    await expect(page.get_by_role("heading", name=f"Claim {own.name}/restored")).to_be_visible()
    await expect(page.locator("#claim")).to_contain_text("Bound")
    assert own.bound("restored")
    own.api.delete("VolumeSnapshotContent", "", "restored")


async def test_an_image_becomes_a_volume(visitor: Visitor, images: Images, own: Namespace) -> None:
    visitor.expect_complaint("status of 4")
    images.make("golden", disk(32 * MIB))
    page = await visitor.go("/images/golden")
    await page.get_by_role("link", name="Make a volume").click()
    await page.get_by_label("Namespace").fill(own.name)
    await expect(page.get_by_label("Size")).to_have_value("32Mi")
    await expect(page.get_by_label("Block")).to_be_checked()
    for size, words in (("much", "as in 10Gi"), ("1Mi", "32Mi or more"), ("99Ti", "less than 16")):
        await page.get_by_label("Size").fill(size)
        await page.get_by_role("button", name="Make the claim").click()
        await expect(page.get_by_role("alert")).to_contain_text(words)
        wrong = page.get_by_label("Size")
        await expect(wrong).to_have_accessible_description(re.compile(words))
    await expect(page.get_by_label("Namespace")).to_have_value(own.name)
    await page.get_by_label("Size").fill("64Mi")
    await page.get_by_role("button", name="Make the claim").click()
    await expect(page.get_by_role("heading", name=f"Claim {own.name}/golden")).to_be_visible()
    await expect(page.locator("#claim")).to_contain_text("Bound")
    await page.reload()
    await expect(page.locator("#claim")).to_contain_text("Bound")
    volume = own.volume_of("golden")["spec"]["csi"]["volumeHandle"]
    await page.get_by_role("link", name="Volumes").last.click()
    await expect(page.get_by_role("rowheader", name=volume)).to_be_visible()
    await expect(page.get_by_role("rowheader", name=f"{own.name}/golden")).to_be_visible()
    own.api.delete("VolumeSnapshotContent", "", "golden")


async def test_a_mistyped_namespace_is_corrected(
    visitor: Visitor, images: Images, own: Namespace
) -> None:
    visitor.expect_complaint("status of 404")
    images.make("typo", disk(32 * MIB))
    page = await visitor.go("/restore?image=typo")
    await page.get_by_label("Namespace").fill("prodd")
    await page.get_by_role("button", name="Make the claim").click()
    namespace = page.get_by_label("Namespace")
    await expect(namespace).to_have_accessible_description(re.compile("no such namespace"))
    await namespace.fill(own.name)
    await page.get_by_role("button", name="Make the claim").click()
    await expect(page.locator("#claim")).to_contain_text("Bound")
    own.api.delete("VolumeSnapshotContent", "", "typo")


async def test_a_claim_that_waits_for_its_first_user_is_explained(
    visitor: Visitor, images: Images, own: Namespace, service: ServiceProcess
) -> None:
    images.make("patient", disk(32 * MIB))
    own.storage_class("later", volumeBindingMode="WaitForFirstConsumer")
    page = await visitor.go("/restore?image=patient")
    await page.get_by_label("Namespace").fill(own.name)
    await page.get_by_text("Classes", exact=True).click()
    await page.get_by_label("Storage class", exact=True).fill(f"{own.name}-later")
    await page.get_by_role("button", name="Make the claim").click()
    await expect(page.locator("#claim")).to_contain_text("Waits for its first user")
    attached = await asyncio.to_thread(service.run, "path", f"{own.name}/patient")
    assert attached.returncode == 0, attached.stderr
    await expect(page.locator("#claim")).to_contain_text("Bound")
    assert service.run("umount", attached.stdout.strip()).returncode == 0
    own.api.delete("VolumeSnapshotContent", "", "patient")


async def test_the_overview_shows_room_transfers_and_errors(
    visitor: Visitor, images: Images
) -> None:
    page = await visitor.go("/")
    await expect(page.get_by_text("healthy")).to_be_visible()
    await expect(page.get_by_text("Nothing moves at the moment.")).to_be_visible()
    pools = page.get_by_role("region", name="Pools")
    await expect(pools.get_by_role("meter")).to_have_count(1)
    await expect(pools).to_contain_text("MiB of")

    served = images.serve(disk(8 * MIB), Behaviour(pause_after=4 * MIB), name="moving.img")
    images.begin("moving", served.url)
    transfers = page.get_by_role("region", name="Running transfers")
    await expect(transfers.get_by_role("link", name="moving")).to_be_visible()
    await expect(transfers.get_by_role("progressbar")).to_have_count(1)
    served.resume.set()
    await expect(page.get_by_text("Nothing moves at the moment.")).to_be_visible()
    await expect(page.locator(".figures")).to_contain_text("1")

    images.begin("broken", images.serve(b"", Behaviour(status=404)).url)
    errors = page.get_by_role("region", name="Last errors")
    await expect(errors).to_contain_text("404")
    await errors.get_by_role("link", name="broken").click()
    await expect(page.get_by_role("heading", name="broken")).to_be_visible()


async def test_handles_good_and_bad(visitor: Visitor, images: Images) -> None:
    images.make("there")
    page = await visitor.go("/handle")
    handle = page.get_by_label("Handle", exact=True)
    await handle.fill("bi://backing?backingImageDataSourceType=download&backingImage=there")
    await expect(page.get_by_text("names something")).to_be_visible()
    await page.get_by_role("link", name="Show it").click()
    await expect(page.get_by_role("heading", name="there")).to_be_visible()

    await visitor.go("/handle")
    await handle.fill("bi://backing?backingImageDataSourceType=download&backingImage=nowhere")
    await expect(page.get_by_text("cannot be used")).to_be_visible()
    url = "https%3A%2F%2Fexample.org%2Fdisk.img"
    await handle.fill(
        f"bi://backing?backingImageDataSourceType=download&backingImage=soon&url={url}"
    )
    await expect(page.get_by_text("made on demand")).to_be_visible()
    images.begin("unfit", images.serve(b"", Behaviour(status=404)).url)
    images.api.wait("BackingImage", SYSTEM, "unfit", lambda i: has_condition(i, "Failed"))
    await handle.fill("bi://backing?backingImageDataSourceType=download&backingImage=unfit")
    await expect(page.get_by_text("exists, not usable")).to_be_visible()
    kind = "backingImageDataSourceType=export-from-volume"
    await handle.fill(f"bi://backing?{kind}&backingImage=new&volume-name=pvc-x&export-type=raw")
    await expect(page.get_by_text("no volume pvc-x")).to_be_visible()
    await handle.fill("bi:/x")
    await expect(page.get_by_text("cannot be used")).to_be_visible()
    await page.get_by_role("button", name="Check").click()
    await expect(page.get_by_text("cannot be used")).to_be_visible()


async def test_no_verdict_stays_beside_another_text(visitor: Visitor, images: Images) -> None:
    visitor.expect_complaint("status of 400", "Response Status Error Code 400")
    visitor.expect_complaint("ERR_FAILED", "htmx:sendError", "htmx:sendAbort", "htmx:afterRequest")
    images.make("judged")
    page = await visitor.go("/handle")
    handle = page.get_by_label("Handle", exact=True)
    verdict = page.get_by_text("names something")
    problem = page.get_by_role("region", name="What the handle means").get_by_role("alert")
    good = "bi://backing?backingImageDataSourceType=download&backingImage=judged"
    await handle.fill(good)
    await expect(verdict).to_be_visible()

    await page.route("**/handle", lambda route: None)
    await handle.fill("garbage")
    await expect(verdict).to_have_count(0)  # though nobody has answered
    await page.unroute("**/handle")
    await page.route("**/handle", lambda route: route.abort())
    await page.get_by_role("button", name="Check").click()
    await expect(problem).to_contain_text("Nobody answered")
    await page.unroute("**/handle")

    await handle.fill(good)
    await expect(verdict).to_be_visible()
    await expect(problem).to_have_count(0)
    await handle.fill("x" * 300_000)
    await expect(problem).to_contain_text("bytes are read")
    await expect(verdict).to_have_count(0)


async def test_a_check_of_an_address_that_fails_says_so(visitor: Visitor, images: Images) -> None:
    visitor.expect_complaint("status of 503", "Response Status Error Code 503")
    served = images.serve(disk(), name="seen.img")
    page = await visitor.go("/new-image")
    url = page.get_by_label("URL")
    await url.fill(served.url)
    await expect(page.locator("#checked")).to_contain_text("Reachable")
    await page.route("**/check-url", lambda route: route.fulfill(status=503, body=""))
    await url.fill(f"{served.url}2")
    await expect(page.locator("#checked").get_by_role("alert")).to_contain_text("answered 503")
    await expect(page.locator("#checked")).not_to_contain_text("Reachable")
