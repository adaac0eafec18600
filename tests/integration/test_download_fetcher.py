"""From a URL to `artifact` and `base.raw`, and every way in which that ends as a domain error."""

from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path

import pytest
from tests.fakes.image_server import Behaviour, serve

from shorthorn.domain.errors import (
    ChecksumMismatch,
    ImageFailed,
    ImageRejected,
    NoSpace,
    Unavailable,
)
from shorthorn.domain.models import ImageFormat, ImageKey, ImageRecord
from shorthorn.host import extents, qemu_img
from shorthorn.images.download import RetryPolicy
from shorthorn.images.fetcher import WebImageFetcher
from shorthorn.kit import process

pytestmark = pytest.mark.root

MIB = 1 << 20
KEY = ImageKey("golden", "1f0c")
QUICK = RetryPolicy(attempts=2, restarts=1, delay_s=0.01, delay_s_max=0.02)


async def _fetch(staging: Path, url: str, checksum: str = "") -> ImageRecord:
    fetcher = WebImageFetcher("pool-1", QUICK)
    return await fetcher.fetch(KEY, {"url": url}, checksum, staging, lambda progress: None)


async def _qcow2(directory: Path, *options: str) -> tuple[bytes, bytes]:
    """Return a raw disk of 24 MiB (10 of them data) and the same as qcow2."""
    raw, image = directory / "source.raw", directory / "source.qcow2"
    data = random.Random(7).randbytes(10 * MIB) + bytes(14 * MIB)
    raw.write_bytes(data)
    await process.run(
        ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", *options, raw, image], timeout_s=30
    )
    return data, image.read_bytes()


async def test_a_raw_disk_of_whole_sectors_is_one_file_under_two_names(xfs_dir: Path) -> None:
    content = random.Random(1).randbytes(3 * MIB + 512)
    checksum = hashlib.sha512(content).hexdigest()
    with serve(content) as server:
        record = await _fetch(xfs_dir, server.url, checksum.upper())
        url = server.url
    assert record.format is ImageFormat.RAW
    assert record.size_bytes == record.virtual_size_bytes == len(content)
    assert record.checksum == checksum
    assert record.source == {"type": "download", "url": url}
    assert Path(record.artifact_path) == xfs_dir / "artifact"
    assert (xfs_dir / "artifact").samefile(xfs_dir / "base.raw")
    assert (xfs_dir / "base.raw").read_bytes() == content


@pytest.mark.parametrize("fixture", ["xfs_dir", "btrfs_dir", "ext4_dir"])
async def test_a_raw_disk_of_odd_size_is_padded_for_guests_only(
    request: pytest.FixtureRequest, fixture: str
) -> None:
    staging: Path = request.getfixturevalue(fixture)
    content = random.Random(2).randbytes(2 * MIB + 700)
    with serve(content) as server:
        record = await _fetch(staging, server.url)
    assert record.size_bytes == len(content)
    assert record.virtual_size_bytes == 2 * MIB + 1024
    assert (staging / "artifact").read_bytes() == content
    assert (staging / "base.raw").read_bytes() == content.ljust(2 * MIB + 1024, b"\0")


async def test_a_qcow2_becomes_a_raw_disk_that_shares_its_blocks(
    pool_dir: Path, tmp_path: Path
) -> None:
    disk, image = await _qcow2(tmp_path)
    with serve(image, name="golden.qcow2") as server:
        record = await _fetch(pool_dir, server.url)
    assert record.format is ImageFormat.QCOW2
    assert record.size_bytes == len(image)
    assert record.virtual_size_bytes == len(disk)
    assert record.checksum == hashlib.sha512(image).hexdigest()
    assert (pool_dir / "artifact").read_bytes() == image
    assert (pool_dir / "base.raw").read_bytes() == disk
    assert await extents.shared_with(pool_dir / "artifact", pool_dir / "base.raw") == 10 * MIB


async def test_a_compressed_qcow2_becomes_a_raw_disk(xfs_dir: Path, tmp_path: Path) -> None:
    disk, image = await _qcow2(tmp_path, "-c")
    with serve(image) as server:
        record = await _fetch(xfs_dir, server.url)
    assert (xfs_dir / "base.raw").read_bytes() == disk
    assert record.size_bytes == len(image)


async def test_a_wrong_checksum_is_final_names_both_and_leaves_nothing(xfs_dir: Path) -> None:
    with (
        serve(b"\0" * MIB) as server,
        pytest.raises(ChecksumMismatch) as raised,
    ):
        await _fetch(xfs_dir, server.url, "ab" * 64)
    assert raised.value.expected == "ab" * 64
    assert raised.value.actual == hashlib.sha512(b"\0" * MIB).hexdigest()
    assert raised.value.expected in str(raised.value)
    assert raised.value.actual in str(raised.value)
    assert list(xfs_dir.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-f", "qcow2", "-b", "/etc/passwd", "-F", "raw"], "backing file"),
        (["-f", "qcow2", "-o", "data_file=DATA"], "data in another file"),
        (["-f", "vmdk"], "vmdk"),
    ],
)
async def test_a_hostile_or_foreign_image_is_rejected_and_leaves_nothing(
    xfs_dir: Path, tmp_path: Path, options: list[str], words: str
) -> None:
    image = tmp_path / "image"
    filled = [word.replace("DATA", str(tmp_path / "data")) for word in options]
    await process.run(["qemu-img", "create", "-q", *filled, image, "8M"], timeout_s=30)
    with (
        serve(image.read_bytes()) as server,
        pytest.raises(ImageRejected, match=words),
    ):
        await _fetch(xfs_dir, server.url)
    assert list(xfs_dir.iterdir()) == []


async def test_a_truncated_qcow2_is_rejected_whatever_the_server_promised(
    xfs_dir: Path, tmp_path: Path
) -> None:
    _, image = await _qcow2(tmp_path)
    with (
        serve(image[: 4 * MIB]) as server,
        pytest.raises(ImageRejected, match="truncated"),
    ):
        await _fetch(xfs_dir, server.url)
    assert list(xfs_dir.iterdir()) == []


async def test_an_answer_of_no_is_final(xfs_dir: Path) -> None:
    with (
        serve(b"", Behaviour(status=404)) as server,
        pytest.raises(ImageFailed, match="answered 404 Not Found"),
    ):
        await _fetch(xfs_dir, server.url)
    with pytest.raises(ImageFailed, match="only http and https"):
        await _fetch(xfs_dir, "file:///etc/shadow")


async def test_trouble_on_the_line_is_not_final_and_what_came_is_used(xfs_dir: Path) -> None:
    content = random.Random(3).randbytes(3 * MIB)
    with serve(content, Behaviour(close_after=MIB), Behaviour(status=502)) as server:
        with pytest.raises(Unavailable, match="502"):
            await _fetch(xfs_dir, server.url)
        server.behaviours[:] = [Behaviour()]
        record = await _fetch(xfs_dir, server.url)
    assert server.ranges_asked[-1] == f"bytes={MIB}-"
    assert record.checksum == hashlib.sha512(content).hexdigest()


async def test_a_fetch_that_ended_before_its_commit_needs_no_network(xfs_dir: Path) -> None:
    content = random.Random(4).randbytes(MIB + 100)
    with serve(content) as server:
        first = await _fetch(xfs_dir, server.url)
        (xfs_dir / "base.raw").write_bytes(b"half made")
        again = await _fetch(xfs_dir, server.url)
    assert len(server.requests) == 1
    assert again.checksum == first.checksum
    assert (xfs_dir / "base.raw").stat().st_size == again.virtual_size_bytes


async def test_a_full_pool_is_told_and_nothing_is_left(tmp_path: Path) -> None:
    staging = tmp_path / "small"
    staging.mkdir()
    await process.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", staging], timeout_s=10)
    try:
        with (
            serve(os.urandom(12 * MIB)) as server,
            pytest.raises(NoSpace, match="pool pool-1 is full"),
        ):
            await _fetch(staging, server.url)
        assert list(staging.iterdir()) == []
    finally:
        await process.run(["umount", staging], timeout_s=10)


async def test_a_disk_that_the_pool_cannot_hold_in_one_file_is_rejected(
    ext4_dir: Path, tmp_path: Path
) -> None:
    """ext4 ends at 16 TiB."""
    image = tmp_path / "image"
    await process.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=2M", image, "20T"],
        timeout_s=30,
    )
    with (
        serve(image.read_bytes()) as server,
        pytest.raises(ImageRejected, match="larger than a file of the pool can be"),
    ):
        await _fetch(ext4_dir, server.url)
    assert list(ext4_dir.iterdir()) == []


async def test_a_host_without_a_sandbox_is_not_ready_and_the_image_not_to_blame(
    xfs_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, image = await _qcow2(tmp_path)
    bwrap = tmp_path / "bwrap"
    bwrap.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2; exit 1")
    bwrap.chmod(0o755)
    monkeypatch.setattr(process, "SEARCH_PATH", f"{tmp_path}:{process.SEARCH_PATH}")
    process._which.cache_clear()
    try:
        with serve(image) as server, pytest.raises(Unavailable, match="sandbox"):
            await _fetch(xfs_dir, server.url)
    finally:
        monkeypatch.undo()
        process._which.cache_clear()


async def test_a_qcow2_with_leaked_clusters_only_is_accepted(xfs_dir: Path, tmp_path: Path) -> None:
    """Nobody reads a leaked cluster; interrupted writers leave some in sound images."""
    disk, image = await _qcow2(tmp_path)
    leaky = bytearray(image)
    block = int.from_bytes(leaky[int.from_bytes(leaky[48:56]) :][:8])
    first_free = block + 2 * (len(leaky) // 65536)
    leaky[first_free : first_free + 2] = (1).to_bytes(2)
    leaky += bytes(65536)
    path = tmp_path / "leaky"
    path.write_bytes(leaky)
    found = await qemu_img.check(path)
    assert found.leaks == 1
    with serve(bytes(leaky)) as server:
        await _fetch(xfs_dir, server.url)
    assert (xfs_dir / "base.raw").read_bytes() == disk
