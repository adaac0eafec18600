"""The pool below a data directory, on each kind of file system."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from tests.integration import storage
from tests.integration.storage import MIB, allocated_bytes

from shorthorn.host import extents, loop_devices, mounts, pool_file, reflink
from shorthorn.host.mountinfo import find_mount

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

SIZE_BYTES = 320 * MIB


@pytest.fixture
async def data_dir(ext4_dir: Path) -> AsyncIterator[Path]:
    """A data directory on a host without reflinks; its pool is released at the end."""
    yield ext4_dir
    await pool_file.release_pool(ext4_dir)


async def run(*argv: str | Path) -> tuple[int, str]:
    """Run a tool of the machine; returns its status and what it said on standard error."""
    child = await asyncio.create_subprocess_exec(
        *argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    _, stderr = await child.communicate()
    assert child.returncode is not None
    return child.returncode, stderr.decode()


async def test_where_blocks_can_be_shared_the_pool_is_a_plain_directory(pool_dir: Path) -> None:
    pool = await pool_file.ensure_pool(pool_dir)

    assert pool == await pool_file.ensure_pool(pool_dir)
    assert pool == pool_file.Pool(pool_dir / "pool", None, None)
    assert pool.path.is_dir()
    await pool_file.release_pool(pool_dir)
    assert [entry.name for entry in pool_dir.iterdir()] == ["pool"]


async def test_elsewhere_it_is_a_preallocated_file_whose_volumes_share_blocks(
    data_dir: Path,
) -> None:
    pool = await pool_file.ensure_pool(data_dir, pool_size_bytes=SIZE_BYTES)

    assert pool.file == data_dir / "pool.xfs"
    assert pool.file.stat().st_size == SIZE_BYTES
    assert allocated_bytes(pool.file) >= SIZE_BYTES
    assert pool.device is not None
    assert pool.device.direct_io
    assert not pool.device.discards
    assert await reflink.supports_reflink(pool.path)
    volume = pool.path / "volume"
    with volume.open("wb") as file:
        file.truncate(MIB)
    device = await loop_devices.ensure_attached(volume)
    assert device.direct_io
    assert device.discards
    await loop_devices.detach(device)


async def test_an_existing_pool_is_found_again_mounted_or_not(data_dir: Path) -> None:
    first = await pool_file.ensure_pool(data_dir, pool_size_bytes=SIZE_BYTES)
    (first.path / "kept").write_text("content")

    assert await pool_file.ensure_pool(data_dir) == first  # as after a kill

    await pool_file.release_pool(data_dir)  # as after a reboot
    await pool_file.release_pool(data_dir)
    assert find_mount(first.path) is None
    assert first.file is not None
    assert await loop_devices.find_by_file(first.file) is None
    assert not (first.path / "kept").exists()

    again = await pool_file.ensure_pool(data_dir)
    assert (again.path / "kept").read_text() == "content"


async def test_it_stays_preallocated_and_its_volumes_write_when_the_host_is_full(
    data_dir: Path,
) -> None:
    pool = await pool_file.ensure_pool(data_dir, pool_size_bytes=SIZE_BYTES)
    assert pool.file is not None
    assert pool.device is not None
    volume = pool.path / "volume.raw"
    volume.write_bytes(os.urandom(64 * MIB))
    os.sync()
    volume.unlink()

    status, said = await run("fstrim", pool.path)
    assert status != 0
    assert "not supported" in said
    status, said = await run("blkdiscard", "-f", pool.device.path)
    assert status != 0
    assert allocated_bytes(pool.file) >= SIZE_BYTES

    for piece in (bytes(4 * MIB), bytes(4096)):
        with (data_dir / f"filler-{len(piece)}").open("wb", buffering=0) as file:
            with contextlib.suppress(OSError):
                while True:
                    file.write(piece)
            with contextlib.suppress(OSError):
                os.fsync(file.fileno())
    with pytest.raises(OSError, match="No space"):
        (data_dir / "one-more").write_bytes(bytes(MIB))

    # Scattered writes split unwritten extents of the host's file, which takes metadata of its own.
    content = os.urandom(4096)
    with volume.open("wb") as file:
        file.truncate(200 * MIB)
        for offset in range(0, 200 * MIB, 64 * 1024):
            os.pwrite(file.fileno(), content, offset)
        os.fsync(file.fileno())
    await pool_file.release_pool(data_dir)
    await pool_file.ensure_pool(data_dir)
    with volume.open("rb") as file:
        assert all(
            os.pread(file.fileno(), 4096, offset) == content
            for offset in range(0, 200 * MIB, 64 * 1024)
        )
    assert allocated_bytes(pool.file) >= SIZE_BYTES


async def test_a_file_that_lost_blocks_gets_them_back_at_the_next_start(data_dir: Path) -> None:
    pool = await pool_file.ensure_pool(data_dir, pool_size_bytes=SIZE_BYTES)
    assert pool.file is not None
    (pool.path / "kept").write_text("content")
    await pool_file.release_pool(data_dir)
    await run("fallocate", "--dig-holes", pool.file)
    assert allocated_bytes(pool.file) < SIZE_BYTES

    again = await pool_file.ensure_pool(data_dir)

    assert allocated_bytes(pool.file) >= SIZE_BYTES
    assert (again.path / "kept").read_text() == "content"


async def test_too_large_and_too_small_pools_are_refused_with_the_numbers(data_dir: Path) -> None:
    with pytest.raises(pool_file.PoolUnusable, match=r"100000 MiB does not fit.*smaller"):
        await pool_file.ensure_pool(data_dir, pool_size_bytes=100_000 * MIB)
    with pytest.raises(pool_file.PoolUnusable, match="300 MiB at least, not 299 MiB"):
        await pool_file.ensure_pool(data_dir, pool_size_bytes=300 * MIB - 1)
    assert list(data_dir.iterdir()) == []


async def test_something_else_mounted_in_its_place_is_refused(data_dir: Path) -> None:
    await pool_file.ensure_pool(data_dir, pool_size_bytes=SIZE_BYTES)
    await pool_file.release_pool(data_dir)
    pool = data_dir / "pool"
    await mounts.mount("tmpfs", pool, "tmpfs", options=["size=1m"])
    try:
        with pytest.raises(pool_file.PoolUnusable, match="tmpfs is mounted"):
            await pool_file.ensure_pool(data_dir)
    finally:
        await mounts.unmount(pool)


async def test_a_file_system_that_the_owner_mounted_there_is_the_pool(
    ext4_dir: Path, xfs_dir: Path
) -> None:
    pool = ext4_dir / "pool"
    pool.mkdir()
    assert await run("mount", "--bind", xfs_dir, pool) == (0, "")
    try:
        assert await pool_file.ensure_pool(ext4_dir) == pool_file.Pool(pool, None, None)
        assert not (ext4_dir / "pool.xfs").exists()
    finally:
        await mounts.unmount(pool)


async def test_a_mount_without_reflinks_is_refused_before_anything_is_allocated(
    ext4_dir: Path,
) -> None:
    pool = ext4_dir / "pool"
    pool.mkdir()
    await mounts.mount("tmpfs", pool, "tmpfs", options=["size=1m"])
    try:
        with pytest.raises(pool_file.PoolUnusable, match="cannot share blocks"):
            await pool_file.ensure_pool(ext4_dir)
        assert not (ext4_dir / "pool.xfs").exists()
    finally:
        await mounts.unmount(pool)


async def test_a_pool_in_use_is_not_released(data_dir: Path) -> None:
    pool = await pool_file.ensure_pool(data_dir, pool_size_bytes=SIZE_BYTES)
    with (pool.path / "open").open("wb"), pytest.raises(mounts.MountBusy):
        await pool_file.release_pool(data_dir)
    assert find_mount(pool.path) is not None


MAKER = """
import asyncio, pathlib, sys
from shorthorn.host.pool_file import ensure_pool
asyncio.run(ensure_pool(pathlib.Path(sys.argv[1]), pool_size_bytes=int(sys.argv[2])))
"""


async def test_killed_at_any_moment_the_next_start_ends_with_one_whole_pool(
    data_dir: Path,
) -> None:
    for delay_ms in range(40, 400, 40):
        maker = await asyncio.create_subprocess_exec(
            sys.executable, "-c", MAKER, data_dir, str(SIZE_BYTES), start_new_session=True
        )
        await asyncio.sleep(delay_ms / 1000)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(maker.pid, signal.SIGKILL)
        await maker.wait()

        pool = await pool_file.ensure_pool(data_dir, pool_size_bytes=SIZE_BYTES)

        assert sorted(entry.name for entry in data_dir.iterdir()) == ["pool", "pool.xfs"]
        assert pool.file is not None
        assert allocated_bytes(pool.file) >= SIZE_BYTES
        attached = [d for d in await loop_devices.list_attached() if d == pool.device]
        assert len(attached) == 1
        await pool_file.release_pool(data_dir)
        if delay_ms % 80:  # every other time the pool exists already
            pool.file.unlink()
            pool.path.rmdir()


async def test_a_disk_with_sectors_of_4096_bytes_is_served_with_direct_io(
    xfs_dir: Path, tmp_path: Path
) -> None:
    disk, host = xfs_dir / "disk", tmp_path / "host"
    host.mkdir()
    with disk.open("wb") as file:
        file.truncate(600 * MIB)
    device = await loop_devices.ensure_attached(disk, logical_block_bytes=4096)
    try:
        await run("mkfs.ext4", "-q", "-b", "4096", device.path)
        await mounts.mount(device.path, host, "ext4")
        try:
            pool = await pool_file.ensure_pool(host, pool_size_bytes=SIZE_BYTES)
            assert pool.device is not None
            assert pool.device.direct_io
            await pool_file.release_pool(host)
        finally:
            await mounts.ensure_unmounted(host)
    finally:
        await loop_devices.detach(device)


async def test_the_default_size_is_half_of_the_free_space(data_dir: Path) -> None:
    size_bytes = pool_file.default_pool_size_bytes(data_dir)
    assert size_bytes % MIB == 0
    assert 0.4 * storage.GIB < size_bytes < 0.5 * storage.GIB

    pool = await pool_file.ensure_pool(data_dir)

    assert pool.file is not None
    assert pool.file.stat().st_size == size_bytes
    assert (await extents.usage(pool.file)).allocated_bytes >= size_bytes
