"""Verify now: copies are hashed again, and what rotted is found."""

from __future__ import annotations

from pathlib import Path

from playwright.async_api import expect
from tests.browser.chromium import Visitor
from tests.browser.scenery import Images, has_condition
from tests.integration.daemon_process import ServiceProcess
from tests.integration.service_api import SYSTEM


async def test_verify_now_finds_what_became_of_the_bytes(
    visitor: Visitor, images: Images, service: ServiceProcess
) -> None:
    images.make("rotten")
    page = await visitor.go("/images/rotten")
    verified = page.get_by_role("region", name="Checksum")
    await expect(verified).to_contain_text("verified")
    await page.get_by_role("button", name="Verify now").click()
    await expect(page.get_by_text("Verification asked for")).to_be_visible()
    await expect(verified).to_contain_text("verified")

    (artifact,) = service.pool.glob("images/rotten/*/artifact*")
    spoil(artifact)
    await page.get_by_role("button", name="Verify now").click()
    await expect(page.locator(".state-line")).not_to_contain_text("ready")
    found = images.api.wait(
        "BackingImage", SYSTEM, "rotten", lambda i: has_condition(i, "ChecksumVerified", "False")
    )
    assert found is not None
    await expect(verified).not_to_contain_text("as it was expected")


def spoil(file: Path) -> None:
    """Change one byte behind the service's back."""
    mode = file.stat().st_mode
    file.chmod(0o600)
    with file.open("r+b") as stream:
        stream.seek(1000)
        byte = stream.read(1)
        stream.seek(1000)
        stream.write(bytes([byte[0] ^ 1]))
    file.chmod(mode)
