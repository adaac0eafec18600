"""Clones, extents and sparse copies on real file systems."""

from __future__ import annotations

import asyncio
import fcntl
import os
from typing import TYPE_CHECKING

import pytest
from tests.integration.storage import MIB, allocated_bytes

from shorthorn.host import extents, reflink, sparse_copy

if TYPE_CHECKING:
    from pathlib import Path


def write_scattered(path: Path, *, blocks: int, size_bytes: int) -> None:
    """Make a sparse file with `blocks` blocks of 4 KiB, evenly spread."""
    with path.open("wb") as file:
        file.truncate(size_bytes)
        for index in range(blocks):
            file.seek(index * (size_bytes // blocks) // 4096 * 4096)
            file.write(bytes([index % 255 + 1]) * 4096)


async def test_a_clone_shares_every_block_and_may_be_larger(pool_dir: Path) -> None:
    source, target = pool_dir / "source", pool_dir / "target"
    write_scattered(source, blocks=64, size_bytes=16 * MIB)

    await reflink.clone_file(source, target, size_bytes=32 * MIB)

    content = target.read_bytes()
    assert content[: 16 * MIB] == source.read_bytes()
    assert not any(content[16 * MIB :])
    usage = await extents.usage(target)
    assert usage.allocated_bytes == 64 * 4096 == usage.shared_bytes
    assert usage.extent_count == 64
    assert await extents.shared_with(source, target) == 64 * 4096


async def test_a_clone_keeps_its_content_when_the_source_changes(pool_dir: Path) -> None:
    source, target = pool_dir / "source", pool_dir / "target"
    source.write_bytes(b"a" * MIB)
    await reflink.clone_file(source, target)

    with source.open("r+b") as file:
        file.write(b"b" * 4096)

    assert target.read_bytes() == b"a" * MIB
    assert await extents.shared_with(source, target) == MIB - 4096


async def test_a_clone_never_replaces_a_file(pool_dir: Path) -> None:
    source, target = pool_dir / "source", pool_dir / "target"
    source.write_bytes(b"a" * 4096)
    target.write_bytes(b"kept")

    with pytest.raises(FileExistsError):
        await reflink.clone_file(source, target)

    assert target.read_bytes() == b"kept"


async def test_a_clone_smaller_than_its_source_is_refused_and_leaves_nothing(
    pool_dir: Path,
) -> None:
    source, target = pool_dir / "source", pool_dir / "target"
    source.write_bytes(bytes(8192))

    with pytest.raises(ValueError, match="8192"):
        await reflink.clone_file(source, target, size_bytes=4096)

    assert not target.exists()


async def test_without_reflinks_a_clone_is_refused_and_leaves_nothing(ext4_dir: Path) -> None:
    source, target = ext4_dir / "source", ext4_dir / "target"
    source.write_bytes(bytes(4096))

    with pytest.raises(reflink.ReflinkUnsupported, match="not supported"):
        await reflink.clone_file(source, target)

    assert not target.exists()


async def test_a_clone_to_another_file_system_is_refused(xfs_dir: Path, btrfs_dir: Path) -> None:
    source, target = xfs_dir / "source", btrfs_dir / "target"
    source.write_bytes(bytes(4096))

    with pytest.raises(reflink.ReflinkUnsupported, match="cross-device"):
        await reflink.clone_file(source, target)

    assert not target.exists()


async def test_reflinks_are_found_by_trying(pool_dir: Path, ext4_dir: Path) -> None:
    assert await reflink.supports_reflink(pool_dir)
    assert not await reflink.supports_reflink(ext4_dir)
    assert list(pool_dir.iterdir()) == list(ext4_dir.iterdir()) == []


async def test_more_extents_than_one_answer_holds_are_all_listed(pool_dir: Path) -> None:
    path = pool_dir / "scattered"
    write_scattered(path, blocks=3000, size_bytes=64 * MIB)

    found = await extents.list_extents(path)

    assert len(found) == 3000
    assert [extent.logical for extent in found] == sorted({extent.logical for extent in found})


@pytest.fixture(params=["xfs_dir", "btrfs_dir", "ext4_dir"])
def any_dir(request: pytest.FixtureRequest) -> Path:
    directory: Path = request.getfixturevalue(request.param)
    return directory


async def test_a_sparse_copy_has_the_same_bytes_and_the_same_holes(any_dir: Path) -> None:
    source, target = any_dir / "source", any_dir / "target"
    write_scattered(source, blocks=16, size_bytes=16 * MIB)
    reports: list[int] = []

    await sparse_copy.copy_sparse(source, target, size_bytes=17 * MIB, on_progress=reports.append)

    assert target.read_bytes() == source.read_bytes() + bytes(MIB)
    await extents.usage(target)  # writes delayed allocations
    assert allocated_bytes(target) <= 16 * 4096 + 4096
    assert reports[-1] == 16 * 4096


async def test_a_sparse_copy_crosses_file_systems(xfs_dir: Path, ext4_dir: Path) -> None:
    source, target = xfs_dir / "source", ext4_dir / "target"
    write_scattered(source, blocks=16, size_bytes=16 * MIB)

    await sparse_copy.copy_sparse(source, target)

    assert target.read_bytes() == source.read_bytes()


async def test_an_empty_and_an_all_hole_file_can_be_copied(any_dir: Path) -> None:
    for size in (0, MIB):
        source, target = any_dir / f"source{size}", any_dir / f"target{size}"
        with source.open("wb") as file:
            file.truncate(size)
        await sparse_copy.copy_sparse(source, target)
        assert target.read_bytes() == bytes(size)


async def test_a_file_that_is_open_for_writing_is_refused_rather_than_torn(any_dir: Path) -> None:
    source, target = any_dir / "source", any_dir / "target"
    source.write_bytes(bytes(MIB))

    with source.open("r+b"), pytest.raises(sparse_copy.FileInUse, match="open for writing"):
        await sparse_copy.copy_sparse(source, target)

    assert not target.exists()
    await sparse_copy.copy_sparse(source, target)
    assert target.stat().st_size == MIB


async def test_a_writer_that_comes_meanwhile_ends_the_copy(ext4_dir: Path) -> None:
    source, target = ext4_dir / "source", ext4_dir / "target"
    source.write_bytes(bytes(24 * MIB))
    came: list[int] = []

    def writer_comes(copied: int) -> None:
        if not came:
            with pytest.raises(BlockingIOError):
                os.open(source, os.O_WRONLY | os.O_NONBLOCK)
            came.append(copied)

    with pytest.raises(sparse_copy.FileInUse, match="while it was copied"):
        await sparse_copy.copy_sparse(source, target, on_progress=writer_comes)

    assert came
    assert not target.exists()
    with source.open("r+b") as file:  # nobody has to wait any more
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


async def test_a_cancelled_copy_leaves_nothing(ext4_dir: Path) -> None:
    source, target = ext4_dir / "source", ext4_dir / "target"
    source.write_bytes(bytes(64 * MIB))
    started = asyncio.Event()
    loop = asyncio.get_running_loop()

    def report(copied: int) -> None:
        loop.call_soon_threadsafe(started.set)

    copy = asyncio.create_task(sparse_copy.copy_sparse(source, target, on_progress=report))
    await started.wait()
    copy.cancel()
    with pytest.raises(asyncio.CancelledError):
        await copy

    assert not target.exists()


async def test_the_look_for_reflinks_leaves_and_changes_nothing(pool_dir: Path) -> None:
    (pool_dir / "file").write_bytes(b"x" * 5000)
    assert await reflink.supports_reflink(pool_dir)
    assert [path.name for path in pool_dir.iterdir()] == ["file"]
    assert (pool_dir / "file").read_bytes() == b"x" * 5000
