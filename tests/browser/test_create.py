"""Making images: of a URL, of a volume, of another image."""

from __future__ import annotations

import hashlib
from pathlib import Path

from playwright.async_api import expect
from tests.browser.chromium import Visitor
from tests.browser.scenery import MIB, Images, disk, qcow2
from tests.fakes.image_server import Behaviour
from tests.integration.service_api import SYSTEM, Namespace


async def test_a_url_is_looked_at_while_it_is_typed(
    visitor: Visitor, images: Images, tmp_path: Path
) -> None:
    content = qcow2(tmp_path, disk(16 * MIB))
    served = images.serve(content, name="Golden_Disk.qcow2")
    page = await visitor.go("/images")
    await page.get_by_role("link", name="New image").click()
    await page.get_by_label("URL").press_sequentially(served.url)
    await expect(page.locator("#checked")).to_contain_text("Reachable: qcow2")
    await expect(page.locator("#checked")).to_contain_text("a disk of 16 MiB")
    name = page.get_by_label("Name")
    await expect(name).to_have_value("golden-disk")
    await page.get_by_label("Expected SHA-512").fill(hashlib.sha512(content).hexdigest())
    await page.get_by_role("button", name="Make the image").click()

    await expect(page.get_by_role("heading", name="golden-disk")).to_be_visible()
    await expect(page.get_by_text("✓ verified")).to_be_visible()
    await expect(page.get_by_text("as it was expected")).to_be_visible()


async def test_a_wrong_url_is_explained(visitor: Visitor, images: Images) -> None:
    page = await visitor.go("/new-image")
    url, checked = page.get_by_label("URL"), page.locator("#checked")
    await url.fill(images.serve(b"", Behaviour(status=404)).url)
    await expect(checked).to_contain_text("404")
    await url.fill("ftp://example.org/disk.img")
    await expect(checked).to_contain_text("http")
    await url.fill(images.serve(b"<html><body>Sign in first</body></html>").url)
    await expect(checked.locator(".bad")).to_contain_text("HTML", ignore_case=True)
    await url.fill("http://127.0.0.1:1/disk.img")
    await expect(checked.locator(".bad")).to_contain_text("127.0.0.1")


async def test_what_the_server_refuses_is_said_at_the_form(
    visitor: Visitor, images: Images
) -> None:
    visitor.expect_complaint("status of 409")
    images.make("taken")
    page = await visitor.go("/new-image")
    await page.get_by_label("URL").fill(images.serve(disk()).url)
    await page.get_by_label("Name").fill("taken")
    await page.get_by_text("Where its copies are").click()
    await page.get_by_label("Disk tags").fill("ssd, fast")
    await page.get_by_role("button", name="Make the image").click()
    problem = page.get_by_role("alert")
    await expect(problem).to_contain_text("already")
    await expect(problem).to_be_focused()
    await expect(page.get_by_label("Name")).to_have_value("taken")
    await expect(page.get_by_label("Disk tags")).to_have_value("ssd, fast")


async def test_a_volume_becomes_an_image(visitor: Visitor, images: Images, own: Namespace) -> None:
    own.claim("data", "64Mi", volumeMode="Block")
    volume = own.volume_of("data")["spec"]["csi"]["volumeHandle"]
    page = await visitor.go(f"/volumes?q={volume}")
    await page.get_by_role("link", name=f"Turn into an image {volume}").click()
    await expect(page.get_by_label("Volume")).to_have_value(volume)
    await page.get_by_label("raw").check()
    await page.get_by_label("Name").fill("of-a-volume")
    await page.get_by_role("button", name="Make the image").click()

    await expect(page.get_by_role("heading", name="of-a-volume")).to_be_visible()
    await expect(page.locator(".state-line").get_by_text("ready", exact=True)).to_be_visible()
    await expect(page.get_by_text("Exported as").locator("xpath=..")).to_contain_text("raw")
    made = images.ready("of-a-volume")
    assert made["spec"]["sourceParameters"] == {"volume-name": volume, "export-type": "raw"}
    assert made["status"]["virtualSize"] == 64 * MIB


async def test_an_image_becomes_another_one(visitor: Visitor, images: Images) -> None:
    original = images.make("original")
    page = await visitor.go("/new-image?from=clone")
    await page.get_by_label("Image").fill("original")
    await page.get_by_label("Name").fill("its-clone")
    await page.get_by_role("button", name="Make the image").click()
    await expect(page.locator(".state-line").get_by_text("ready", exact=True)).to_be_visible()
    clone = images.ready("its-clone")
    assert clone["status"]["checksum"] == original["status"]["checksum"]
    await page.goto(f"{visitor.url}/images/original")
    await expect(page.locator(".tree").get_by_role("link", name="its-clone")).to_be_visible()

    images.api.delete("BackingImage", SYSTEM, "original")
    images.api.wait_gone("BackingImage", SYSTEM, "original")
    await expect(page.get_by_role("heading", name="Not found")).to_be_visible()
    visitor.expect_complaint("status of 404")


async def test_what_was_typed_stays_when_the_bytes_are_to_come_from_elsewhere(
    visitor: Visitor,
) -> None:
    page = await visitor.go("/new-image")
    await page.get_by_label("Name").fill("typed")
    await page.get_by_text("Where its copies are").click()
    await page.get_by_label("Disk tags").fill("ssd, fast")
    await page.get_by_role("link", name="Upload").click()
    await expect(page.get_by_label("File")).to_be_visible()
    await expect(page.get_by_label("Name")).to_have_value("typed")
    await page.get_by_label("Name").fill("typed-again")
    await page.get_by_role("link", name="From an image").click()
    await expect(page.get_by_label("Name")).to_have_value("typed-again")
    await expect(page.get_by_label("Disk tags")).to_have_value("ssd, fast")
    assert "csrf" not in page.url


async def test_a_browser_says_what_is_wrong_with_a_name(visitor: Visitor) -> None:
    page = await visitor.go("/new-image")
    name = page.get_by_label("Name")
    for text in ("a..b", "-ab", "Ab"):
        await name.fill(text)
        assert await name.evaluate("(field) => field.validity.patternMismatch")
    for text in ("ab", "a.b", "a-b.c-d"):
        await name.fill(text)
        assert await name.evaluate("(field) => field.checkValidity()")
    assert "each part between dots" in str(await name.get_attribute("title"))
    assert "128" in str(await page.get_by_label("Expected SHA-512").get_attribute("title"))
