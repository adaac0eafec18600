"""Mounting for real: options, binds, errors with reasons."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from shorthorn.host import bind_mounts, loop_devices, mountinfo, mounts, syscalls
from shorthorn.kit.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.root


@pytest.fixture
async def target(tmp_path: Path) -> AsyncIterator[Path]:
    """An empty directory with a difficult name; whatever gets mounted there is unmounted."""
    directory = tmp_path / "mount point #1\\with\ttabs"
    directory.mkdir()
    yield directory
    await mounts.ensure_unmounted(directory)


async def test_a_mount_is_found_with_its_options_and_gone_afterwards(target: Path) -> None:
    assert not mounts.is_mount_point(target)
    assert mounts.find_mount(target) is None

    await mounts.mount(
        "tmpfs", target, "tmpfs", options=["noatime,nosuid", "size=1m", "_netdev", "x-a.b=c"]
    )

    found = mounts.find_mount(target)
    assert found is not None
    assert found.target == target
    assert {"noatime", "nosuid", "rw"} <= set(found.options)
    assert "size=1024k" in found.super_options
    assert not found.is_read_only
    assert mounts.mount_of_path(target) == found
    await mounts.unmount(target)
    assert not mounts.is_mount_point(target)
    await mounts.unmount(target)  # nothing there is fine
    await mounts.unmount(target / "absent")


async def test_a_symbolic_link_to_a_mount_point_is_one(target: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(target)
    await mounts.mount("tmpfs", target, "tmpfs")
    assert mounts.is_mount_point(link)


async def test_of_stacked_mounts_the_upper_is_found_and_all_can_be_taken_away(
    target: Path,
) -> None:
    await mounts.mount("lower", target, "tmpfs")
    await mounts.mount("upper", target, "tmpfs")
    found = mounts.find_mount(target)
    assert found is not None
    assert found.source == "upper"

    await mounts.ensure_unmounted(target)

    assert not mounts.is_mount_point(target)


async def test_a_read_only_bind_refuses_writes_and_keeps_other_flags(
    target: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    await mounts.mount("tmpfs", source, "tmpfs", options=["nosuid", "nodev", "noexec"])
    try:
        (source / "file").write_text("content")

        await bind_mounts.bind(source, target, read_only=True)

        found = mounts.find_mount(target)
        assert found is not None
        assert {"ro", "nosuid", "nodev", "noexec"} <= set(found.options)
        assert (target / "file").read_text() == "content"
        with pytest.raises(OSError, match="Read-only"):
            (target / "file").write_text("other")
        (source / "file").write_text("other")
        await mounts.unmount(target)
    finally:
        await mounts.unmount(source)


async def test_a_file_can_be_bound_to_a_file(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_text("content")
    target.write_text("")
    await bind_mounts.bind(source, target, read_only=False)
    try:
        assert target.read_text() == "content"
        assert mounts.is_mount_point(target)
    finally:
        await mounts.unmount(target)
    assert target.read_text() == ""


async def test_a_busy_mount_stays_unless_it_is_given_up(target: Path) -> None:
    await mounts.mount("tmpfs", target, "tmpfs")
    with (target / "open").open("w"):
        with pytest.raises(mounts.MountBusy):
            await mounts.unmount(target)
        assert mounts.is_mount_point(target)

        await mounts.unmount(target, lazy=True)

        assert not mounts.is_mount_point(target)


async def test_a_refused_mount_says_what_the_kernel_said(xfs_dir: Path, target: Path) -> None:
    image = xfs_dir / "image"
    image.write_bytes(b"XFSB" + os.urandom(1 << 20))
    device = await loop_devices.ensure_attached(image)
    try:
        with pytest.raises(mounts.MountFailed) as caught:
            await mounts.mount(device.path, target, "xfs")
        if os.access("/dev/kmsg", os.R_OK):
            assert device.path.name in caught.value.reason
            assert "XFS" in caught.value.reason
        with pytest.raises(mounts.MountFailed, match="does not know this kind"):
            await mounts.mount(device.path, target, "nofs")
    finally:
        await loop_devices.detach(device)
    with pytest.raises(mounts.MountFailed, match="No such file or directory"):
        await mounts.mount("tmpfs", target / "absent", "tmpfs")
    assert not mounts.is_mount_point(target)


async def test_a_device_knows_its_mounts_and_those_bound_from_it(
    xfs_dir: Path, btrfs_dir: Path, target: Path
) -> None:
    for directory in (xfs_dir, btrfs_dir):
        own = mounts.mount_of_path(directory)
        await bind_mounts.bind(directory, target, read_only=False)
        found = mounts.mounts_of_device(Path(own.source))
        assert {m.target for m in found} == {own.target, target}
        await mounts.unmount(target)


@pytest.mark.parametrize(
    ("words", "flags", "data"),
    [
        ([], 0, ""),
        (["ro", "noatime"], 0x1 | 0x400, ""),
        (["ro,rw"], 0, ""),
        (["defaults", "nofail", "_netdev", "x-systemd.automount", "nouser", "comment=a"], 0, ""),
        (["nouuid", "logbsize=256k,noexec"], 0x8, "nouuid,logbsize=256k"),
        (["noatime,,", "atime"], 0, ""),
        (["autodefrag"], 0, "autodefrag"),
        (["usrquota", "groupid"], 0, "usrquota,groupid"),
    ],
)
def test_option_words_become_flags_and_data(words: list[str], flags: int, data: str) -> None:
    assert mounts.split_options(words) == (flags, data)


async def test_a_mount_that_goes_while_it_is_looked_at_is_missing(target: Path) -> None:
    stop = threading.Event()

    def come_and_go() -> None:
        while not stop.is_set():
            syscalls.mount("/proc", target, "", 4096, "")
            syscalls.umount(target, syscalls.MNT_DETACH)

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        async with asyncio.timeout(60):
            for _ in range(300):
                with contextlib.suppress(FileNotFoundError):
                    await in_thread(mountinfo.mount_of_path, target)
    finally:
        stop.set()
        thread.join()
