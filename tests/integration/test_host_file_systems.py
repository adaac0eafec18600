"""Probing, making, growing and renaming real file systems on thin devices."""

from __future__ import annotations

import asyncio
import os
import struct
import subprocess
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.integration.storage import MIB

from shorthorn.host import extents, file_systems, files, loop_devices, mounts, reflink
from shorthorn.kit import process
from shorthorn.kit.process import CommandFailed
from shorthorn.services.capabilities import FS_BYTES_MIN
from shorthorn.services.sizes import CAPACITY_BYTES_MIN

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

FS_TYPES = ["ext4", "xfs", "btrfs"]
#: Needs CAP_SYS_RESOURCE, number 24, which root may lack in a container.
MAY_GROW_MOUNTED_EXT4 = bool(
    int(Path("/proc/self/status").read_text().partition("CapEff:")[2].split()[0], 16) >> 24 & 1
)


@pytest.fixture
async def attach(xfs_dir: Path) -> AsyncIterator[Callable[..., Awaitable[Path]]]:
    """Make thin volumes in a pool and attach them; detached at the end."""
    devices = []

    async def make(name: str, size_bytes: int = 320 * MIB) -> Path:
        file = xfs_dir / name
        if not file.exists():
            with file.open("wb") as image:
                image.truncate(size_bytes)
        devices.append(await loop_devices.ensure_attached(file))
        return devices[-1].path

    yield make
    for device in reversed(devices):
        await loop_devices.detach(device)


@pytest.fixture
async def mount_points(tmp_path: Path) -> AsyncIterator[tuple[Path, Path]]:
    """Two empty directories to mount at, unmounted at the end."""
    targets = (tmp_path / "one", tmp_path / "other")
    for target in targets:
        target.mkdir()
    yield targets
    for target in targets:
        await mounts.ensure_unmounted(target)


@pytest.mark.parametrize("fs_type", FS_TYPES)
async def test_a_new_file_system_is_probed_mounted_and_grown(
    fs_type: str,
    xfs_dir: Path,
    attach: Callable[..., Awaitable[Path]],
    mount_points: tuple[Path, Path],
) -> None:
    device = await attach("volume")
    assert (await file_systems.probe(device)).is_blank

    await file_systems.make(fs_type, device, label="la bel")

    found = await file_systems.probe(device)
    assert (found.fs_type, found.usage, found.label) == (fs_type, "filesystem", "la bel")
    assert found.uuid
    assert not found.is_blank
    options = file_systems.mount_options(fs_type)
    await mounts.mount(device, mount_points[0], fs_type, options=options)
    before = await file_systems.usage(mount_points[0])
    assert 0 < before.available_bytes <= before.total_bytes <= 320 * MIB
    assert before.used_bytes < before.total_bytes
    assert (before.total_inodes > 0) == (fs_type != "btrfs")

    await files.grow_file(xfs_dir / "volume", 512 * MIB)
    loop = await loop_devices.find_by_file(xfs_dir / "volume")
    assert loop is not None
    await loop_devices.set_capacity(loop)
    for _ in range(2):  # the second time there is nothing to do
        try:
            await file_systems.grow(fs_type, device, mount_points[0])
        except file_systems.OnlineGrowRefused:  # root, but not with all rights
            assert not MAY_GROW_MOUNTED_EXT4
            assert fs_type == "ext4"
            await mounts.unmount(mount_points[0])
            await file_systems.grow_unmounted(fs_type, device)
            await mounts.mount(device, mount_points[0], fs_type)

    after = await file_systems.usage(mount_points[0])
    assert after.total_bytes - before.total_bytes > 0.9 * 192 * MIB


async def test_an_ext4_that_is_not_mounted_grows_and_keeps_its_files(
    xfs_dir: Path, attach: Callable[..., Awaitable[Path]], mount_points: tuple[Path, Path]
) -> None:
    device = await attach("volume", 64 * MIB)
    await file_systems.make("ext4", device)
    await mounts.mount(device, mount_points[0], "ext4")
    (mount_points[0] / "kept").write_text("content")
    os.sync()
    await reflink.clone_file(xfs_dir / "volume", xfs_dir / "clone", size_bytes=5 << 30)
    clone = await attach("clone")  # its journal is dirty: the origin is mounted

    for _ in range(2):  # the second time there is nothing to do
        await file_systems.grow_unmounted("ext4", clone)

    await mounts.mount(clone, mount_points[1], "ext4")
    assert (await file_systems.usage(mount_points[1])).total_bytes > 0.9 * (5 << 30)
    assert (mount_points[1] / "kept").read_text() == "content"


async def test_a_new_ext4_takes_no_space_for_inodes_that_do_not_exist_yet(
    xfs_dir: Path, attach: Callable[..., Awaitable[Path]], mount_points: tuple[Path, Path]
) -> None:
    device = await attach("volume", 8 << 30)
    await file_systems.make("ext4", device)
    await mounts.mount(device, mount_points[0], "ext4")
    await mounts.unmount(mount_points[0])

    assert (await extents.usage(xfs_dir / "volume")).allocated_bytes < 16 * MIB


@pytest.mark.parametrize("fs_type", FS_TYPES)
async def test_making_again_leaves_nothing_of_what_was_there(
    fs_type: str, xfs_dir: Path, attach: Callable[..., Awaitable[Path]]
) -> None:
    device = await attach("volume")
    for other in (*FS_TYPES, fs_type):
        await file_systems.make(other, device)
        assert (await file_systems.probe(device)).fs_type == other
    with device.open("r+b") as file:
        file.write(b"x" * (64 * MIB))
    await loop_devices.flush(device)

    await file_systems.make(fs_type, device)

    assert (await file_systems.probe(device)).fs_type == fs_type
    await loop_devices.flush(device)
    content = (xfs_dir / "volume").read_bytes()
    assert b"x" * 512 not in content


@pytest.mark.parametrize("fs_type", FS_TYPES)
async def test_the_smallest_volume_that_is_promised_can_be_made_and_used(
    fs_type: str, attach: Callable[..., Awaitable[Path]], mount_points: tuple[Path, Path]
) -> None:
    smallest = max(FS_BYTES_MIN[fs_type], CAPACITY_BYTES_MIN)
    device = await attach("smallest", smallest)
    await file_systems.make(fs_type, device)
    options = file_systems.mount_options(fs_type)
    await mounts.mount(device, mount_points[0], fs_type, options=options)
    (mount_points[0] / "file").write_bytes(bytes(100_000))


async def test_a_device_that_is_too_small_is_refused_in_the_tools_words(
    attach: Callable[..., Awaitable[Path]],
) -> None:
    with pytest.raises(CommandFailed, match="size"):
        await file_systems.make("xfs", await attach("small", 16 * MIB))


async def test_a_mounted_device_is_never_made_anew(
    attach: Callable[..., Awaitable[Path]], mount_points: tuple[Path, Path]
) -> None:
    device = await attach("volume")
    await file_systems.make("ext4", device)
    await mounts.mount(device, mount_points[0], "ext4")
    (mount_points[0] / "kept").write_text("content")

    with pytest.raises(OSError, match="busy"):
        await file_systems.make("ext4", device)

    await mounts.unmount(mount_points[0])
    await mounts.mount(device, mount_points[0], "ext4")
    assert (mount_points[0] / "kept").read_text() == "content"


@pytest.mark.parametrize("fs_type", FS_TYPES)
async def test_a_clone_mounts_beside_its_origin(
    fs_type: str,
    xfs_dir: Path,
    attach: Callable[..., Awaitable[Path]],
    mount_points: tuple[Path, Path],
) -> None:
    device = await attach("volume")
    await file_systems.make(fs_type, device)
    options = file_systems.mount_options(fs_type)
    await mounts.mount(device, mount_points[0], fs_type, options=options)
    (mount_points[0] / "file").write_text("origin")
    os.sync()
    await reflink.clone_file(xfs_dir / "volume", xfs_dir / "clone")
    clone = await attach("clone")
    assert (await file_systems.probe(clone)).uuid == (await file_systems.probe(device)).uuid

    if not file_systems.clone_needs_new_uuid(fs_type):
        await mounts.mount(clone, mount_points[1], fs_type, options=options)

        (mount_points[1] / "file").write_text("clone")
        assert (mount_points[0] / "file").read_text() == "origin"
        assert [m.target for m in mounts.mounts_of_device(clone)] == [mount_points[1]]
        assert [m.target for m in mounts.mounts_of_device(device)] == [mount_points[0]]


@pytest.mark.parametrize("fs_type", FS_TYPES)
async def test_a_clone_of_a_mounted_file_system_gets_a_new_uuid_and_mounts_beside_it(
    fs_type: str,
    xfs_dir: Path,
    attach: Callable[..., Awaitable[Path]],
    mount_points: tuple[Path, Path],
) -> None:
    device = await attach("volume")
    await file_systems.make(fs_type, device)
    options = file_systems.mount_options(fs_type)
    await mounts.mount(device, mount_points[0], fs_type, options=options)
    (mount_points[0] / "file").write_text("origin")
    os.sync()
    await reflink.clone_file(xfs_dir / "volume", xfs_dir / "clone")
    clone = await attach("clone")
    if fs_type == "xfs":  # its log is dirty; the tool refuses, and exits 0
        with pytest.raises(file_systems.UuidUnchanged, match="log"):
            await file_systems.new_uuid(fs_type, clone)
    # Mounted once, its journal is replayed.
    await mounts.mount(clone, mount_points[1], fs_type, options=options)
    await mounts.unmount(mount_points[1])

    uuid = await file_systems.new_uuid(fs_type, clone)

    assert uuid == (await file_systems.probe(clone)).uuid
    assert uuid != (await file_systems.probe(device)).uuid
    await mounts.mount(clone, mount_points[1], fs_type)
    assert (mount_points[1] / "file").read_text() == "origin"
    (mount_points[1] / "file").write_text("clone")
    assert (mount_points[0] / "file").read_text() == "origin"


async def test_partitions_and_other_content_are_told_apart(xfs_dir: Path) -> None:
    disk = xfs_dir / "disk"
    record = bytearray(512)
    record[446:462] = bytes([0, 0, 2, 0, 0x83, 0, 0, 0, 1, 0, 0, 0, 64, 0, 0, 0])
    record[510:512] = b"\x55\xaa"
    disk.write_bytes(bytes(record) + bytes(MIB))

    found = await file_systems.probe(disk)

    assert found.partition_table == "dos"
    assert found.fs_type == ""
    assert not found.is_blank


async def test_a_device_that_cannot_be_read_is_not_taken_for_blank(tmp_path: Path) -> None:
    with pytest.raises((CommandFailed, FileNotFoundError)):
        await file_systems.probe(tmp_path / "absent")


async def test_contradicting_signatures_are_refused(xfs_dir: Path) -> None:
    disk = xfs_dir / "disk"
    with disk.open("wb") as file:
        file.truncate(320 * MIB)
    for command in (["mkfs.ext4", "-q", "-F"], ["mkfs.btrfs", "-q", "-f", "-K"]):
        head = disk.read_bytes()[: 2 * MIB] if command[0] == "mkfs.btrfs" else b""
        child = await asyncio.create_subprocess_exec(*command, disk, stdout=subprocess.DEVNULL)
        assert await child.wait() == 0
    with disk.open("r+b") as file:  # mkfs.btrfs has wiped ext4's signature; put it back
        file.seek(1024)
        file.write(head[1024:2048])

    with pytest.raises(file_systems.SignatureUnclear):
        await file_systems.probe(disk)


async def test_unknown_kinds_are_refused_by_name(tmp_path: Path) -> None:
    for attempt in (
        file_systems.make("ntfs", tmp_path),
        file_systems.grow("ntfs", tmp_path, tmp_path),
        file_systems.new_uuid("ntfs", tmp_path),
    ):
        with pytest.raises(file_systems.UnsupportedFileSystem, match="'ntfs'"):
            await attempt


@pytest.mark.parametrize(
    ("fs_type", "release", "needs"),
    [
        ("btrfs", "6.1.0-18-amd64", True),
        ("btrfs", "6.6.99", True),
        ("btrfs", "6.7.0", False),
        ("btrfs", "7.0-rc1", False),
        ("btrfs", "5.10.0", True),
        ("xfs", "5.10.0", False),
        ("ext4", "5.10.0", False),
    ],
)
def test_only_btrfs_on_older_kernels_needs_another_uuid(
    fs_type: str, release: str, *, needs: bool
) -> None:
    assert file_systems.clone_needs_new_uuid(fs_type, kernel_release=release) == needs


async def test_an_impossible_block_size_costs_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(16 * MIB)
    await process.run(["mkfs.ext4", "-q", "-O", "^metadata_csum", disk], timeout_s=60)
    with disk.open("r+b") as file:
        file.seek(1024 + 0x18)
        file.write(struct.pack("<L", 0xFFFFFFFF))
    tracemalloc.start()
    await file_systems.grow_unmounted("ext4", disk)
    assert tracemalloc.get_traced_memory()[1] < MIB
    tracemalloc.stop()
