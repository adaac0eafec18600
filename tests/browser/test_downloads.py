"""What a browser saves of an image: the exact bytes, and the same disk in other forms."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest
import zstandard
from playwright.async_api import expect
from tests.browser.chromium import Visitor
from tests.browser.scenery import MIB, Images, disk, qcow2


@pytest.fixture(params=["raw", "qcow2"])
def content(request: pytest.FixtureRequest, tmp_path: Path) -> bytes:
    """The bytes of an image in either format."""
    return disk(8 * MIB) if request.param == "raw" else qcow2(tmp_path, disk(8 * MIB))


def are_same_disk(raw: Path, qcow2: Path) -> bool:
    command = ["qemu-img", "compare", "-f", "raw", "-F", "qcow2", str(raw), str(qcow2)]
    return "identical" in subprocess.check_output(command, text=True)


async def saved(visitor: Visitor, link: str, folder: Path) -> Path:
    """Follow a link to bytes; return the file."""
    async with visitor.page.expect_download() as waiting:
        await visitor.page.get_by_role("link", name=link, exact=True).click()
    download = await waiting.value
    path = folder / download.suggested_filename
    await download.save_as(path)
    return path


async def test_every_form_holds_the_same_disk(
    visitor: Visitor, images: Images, content: bytes, tmp_path: Path
) -> None:
    image = images.make("golden", content)
    page = await visitor.go("/images/golden")
    await expect(page.get_by_role("heading", name="Download")).to_be_visible()
    folder = tmp_path / "saved"
    folder.mkdir()

    artifact = await saved(visitor, "Artifact", folder)
    digest = hashlib.sha512(artifact.read_bytes()).hexdigest()
    assert digest == image["status"]["checksum"]
    assert artifact.name == f"golden.{image['status']['format']}"

    raw = await saved(visitor, "Raw", folder)
    assert raw.read_bytes() == disk(8 * MIB)

    converted = await saved(visitor, "qcow2", folder)
    assert are_same_disk(raw, converted)

    compressed = await saved(visitor, "Raw, zstd", folder)
    assert compressed.name == "golden.raw.zst"
    assert compressed.stat().st_size < 4 * MIB
    with compressed.open("rb") as file:
        assert zstandard.ZstdDecompressor().stream_reader(file).read() == disk(8 * MIB)
