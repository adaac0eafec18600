"""Loop devices on real files."""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.integration import storage
from tests.integration.storage import MIB, allocated_bytes

from shorthorn.host import extents, file_systems, files, loop_devices, mounts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


#: linux/xfs_fs.h: XFS_IOC_GOINGDOWN with XFS_FSOP_GOING_FLAGS_NOLOGFLUSH
_XFS_IOC_GOINGDOWN = 0x8004587D
_NO_LOG_FLUSH = struct.pack("I", 2)


@pytest.fixture
async def volume(pool_dir: Path) -> AsyncIterator[Path]:
    """A sparse file of 64 MiB; whatever loop device it has is detached at the end."""
    path = pool_dir / "volume.raw"
    with path.open("wb") as file:
        file.truncate(64 * MIB)
    yield path
    if (device := await loop_devices.find_by_file(path)) is not None:
        await loop_devices.detach(device)


async def test_a_file_has_one_device_however_often_it_is_attached(volume: Path) -> None:
    assert await loop_devices.find_by_file(volume) is None

    devices = await asyncio.gather(*(loop_devices.ensure_attached(volume) for _ in range(10)))

    assert len(set(devices)) == 1
    device = devices[0]
    assert device.direct_io
    assert not device.read_only
    assert await loop_devices.find_by_file(volume) == device
    assert device in await loop_devices.list_attached()
    assert device.file_identity == files.file_identity(volume)
    assert await loop_devices.size_bytes(device.path) == 64 * MIB
    number = os.stat(device.path).st_rdev
    assert device.device_number == (os.major(number), os.minor(number))


async def test_attachers_in_other_processes_get_the_same_device(volume: Path) -> None:
    code = (
        "import asyncio, sys, pathlib;"
        "from shorthorn.host.loop_devices import ensure_attached as attach;"
        "print(asyncio.run(attach(pathlib.Path(sys.argv[1]))).path)"
    )
    children = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, str(volume), stdout=subprocess.PIPE
        )
        for _ in range(4)
    ]
    outputs = {(await child.communicate())[0] for child in children}

    assert len(outputs) == 1
    assert outputs == {f"{(await loop_devices.ensure_attached(volume)).path}\n".encode()}


async def test_a_device_is_found_after_its_file_was_renamed(volume: Path) -> None:
    device = await loop_devices.ensure_attached(volume)
    renamed = volume.with_name("other.raw")
    volume.rename(renamed)

    assert await loop_devices.find_by_file(renamed) == device

    await loop_devices.detach(device)
    renamed.rename(volume)


async def test_another_file_under_the_old_name_is_not_taken_for_it(volume: Path) -> None:
    device = await loop_devices.ensure_attached(volume)
    volume.unlink()
    with volume.open("wb") as file:
        file.truncate(MIB)

    assert await loop_devices.find_by_file(volume) is None

    await loop_devices.detach(device)


async def test_detaching_twice_is_fine_and_never_hits_the_next_file(volume: Path) -> None:
    device = await loop_devices.ensure_attached(volume)
    await loop_devices.detach(device)
    assert await loop_devices.find_by_file(volume) is None
    other = volume.with_name("other.raw")
    with other.open("wb") as file:
        file.truncate(MIB)
    other_device = await loop_devices.ensure_attached(other)

    await loop_devices.detach(device)

    assert await loop_devices.find_by_file(other) == other_device
    await loop_devices.detach(other_device)


async def test_an_open_device_is_reported_busy(volume: Path) -> None:
    device = await loop_devices.ensure_attached(volume)

    with device.path.open("rb"), pytest.raises(loop_devices.LoopDeviceBusy):
        await loop_devices.detach(device)

    await loop_devices.detach(device)
    assert await loop_devices.find_by_file(volume) is None


async def test_a_mounted_device_is_reported_busy_at_once_and_stays(
    volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_devices, "_DETACH_WAIT_S", 240)
    device = await loop_devices.ensure_attached(volume)
    await file_systems.make("ext4", device.path)
    await mounts.mount(device.path, tmp_path, "ext4")
    try:
        async with asyncio.timeout(60):
            with pytest.raises(loop_devices.LoopDeviceBusy):
                await loop_devices.detach(device)
        assert await loop_devices.find_by_file(volume) == device
    finally:
        await mounts.unmount(tmp_path)
    await loop_devices.detach(device)
    assert await loop_devices.find_by_file(volume) is None


async def test_a_namespace_that_ends_soon_does_not_keep_an_unmounted_device(
    volume: Path, tmp_path: Path
) -> None:
    device = await loop_devices.ensure_attached(volume)
    await file_systems.make("ext4", device.path)
    await mounts.mount(device.path, tmp_path, "ext4")
    sandbox = await asyncio.create_subprocess_exec(
        *("unshare", "--mount", "--propagation", "private", "sh", "-c", "echo ready; sleep 0.5"),
        stdout=subprocess.PIPE,
    )
    assert sandbox.stdout is not None
    assert await sandbox.stdout.readline() == b"ready\n"
    await mounts.unmount(tmp_path)

    await loop_devices.detach(device)

    assert await loop_devices.find_by_file(volume) is None
    await sandbox.wait()


async def test_a_device_grows_with_its_file(volume: Path) -> None:
    device = await loop_devices.ensure_attached(volume)
    await files.grow_file(volume, 96 * MIB)

    await loop_devices.set_capacity(device)

    assert await loop_devices.size_bytes(device.path) == 96 * MIB


async def test_what_was_written_to_the_device_is_in_the_file_after_a_flush(volume: Path) -> None:
    device = await loop_devices.ensure_attached(volume)
    with device.path.open("r+b") as file:
        file.write(b"x" * MIB)
        file.flush()
        assert (await extents.usage(volume)).allocated_bytes == 0  # still in the page cache

        await loop_devices.flush(device.path)

        assert (await extents.usage(volume)).allocated_bytes == MIB
    assert volume.read_bytes()[:MIB] == b"x" * MIB


async def blkdiscard(device: Path) -> str:
    """Discard a whole device; returns what the tool complains of."""
    child = await asyncio.create_subprocess_exec("blkdiscard", "-f", device, stderr=subprocess.PIPE)
    return (await child.communicate())[1].decode()


async def test_a_discarded_range_becomes_a_hole_unless_discards_are_off(volume: Path) -> None:
    volume.write_bytes(b"x" * 64 * MIB)
    device = await loop_devices.ensure_attached(volume, discards=False)
    assert "not supported" in await blkdiscard(device.path)
    assert allocated_bytes(volume) == 64 * MIB
    await loop_devices.detach(device)

    # The kernel keeps the limit with the number; the next file must not inherit it.
    device = await loop_devices.ensure_attached(volume)
    assert "not supported" not in await blkdiscard(device.path)
    assert (await extents.usage(volume)).allocated_bytes == 0


async def test_devices_are_listed_while_others_come_and_go(pool_dir: Path) -> None:
    """The kernel makes a device that refused discards anew; its files in sysfs die one by one."""

    async def come_and_go(path: Path) -> None:
        for _ in range(20):
            device = await loop_devices.ensure_attached(path, discards=False)
            await loop_devices.detach(device)

    async def look() -> None:
        while not all(churn.done() for churn in churns):
            await loop_devices.list_attached()

    paths = [pool_dir / f"{number}.raw" for number in range(3)]
    for path in paths:
        path.write_bytes(bytes(MIB))
    churns = [asyncio.create_task(come_and_go(path)) for path in paths]
    try:
        await asyncio.gather(*churns, look())
    finally:
        await asyncio.gather(*churns, return_exceptions=True)


async def test_a_read_only_device_refuses_writes(volume: Path) -> None:
    device = await loop_devices.ensure_attached(volume, read_only=True)

    assert device.read_only
    with device.path.open("r+b", buffering=0) as file, pytest.raises(PermissionError):
        file.write(b"x" * 4096)


async def test_a_missing_device_node_is_made(volume: Path) -> None:
    device = await loop_devices.ensure_attached(volume)
    device.path.unlink()

    assert await loop_devices.find_by_file(volume) == device
    assert device.path.is_block_device()


async def test_a_missing_file_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await loop_devices.ensure_attached(tmp_path / "absent")
    with pytest.raises(FileNotFoundError):
        await loop_devices.find_by_file(tmp_path / "absent")


async def test_a_device_over_a_dead_file_system_is_no_obstacle(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(bytes(MIB))
    with storage.mounted(storage.XFS, tmp_path, size_bytes=320 * MIB) as root:
        (root / "inner").write_bytes(bytes(MIB))
        with storage.attached(root / "inner"):
            descriptor = os.open(root, os.O_RDONLY)
            fcntl.ioctl(descriptor, _XFS_IOC_GOINGDOWN, _NO_LOG_FLUSH)
            os.close(descriptor)
            assert await loop_devices.find_by_file(other) is None
            device = await loop_devices.ensure_attached(other)
            assert device in await loop_devices.list_attached()
            await loop_devices.detach(device)
        await mounts.unmount(root)
        await mounts.mount("tmpfs", root, "tmpfs")  # so that the clean-up finds a mount
