"""Freezes of real file systems, and what becomes of them when processes die."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.integration.storage import MIB

from shorthorn.engines.capture import mount_points
from shorthorn.host import bind_mounts, freeze, freeze_holder, loop_devices, mounts, reflink

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

#: Long enough for a loaded machine; a freeze that is not undone blocks for ever.
PATIENCE_S = 60.0


async def run(*argv: str | Path) -> None:
    """Run a tool of the machine."""
    child = await asyncio.create_subprocess_exec(
        *argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    _, stderr = await child.communicate()
    assert child.returncode == 0, stderr.decode()


@pytest.fixture
async def mounted_volume(xfs_dir: Path, tmp_path: Path) -> AsyncIterator[tuple[Path, Path]]:
    """A volume of 64 MiB in a pool, with ext4, mounted: (file, mount point)."""
    file, target = xfs_dir / "volume.raw", tmp_path / "mounted"
    with file.open("wb") as image:
        image.truncate(64 * MIB)
    target.mkdir()
    device = await loop_devices.ensure_attached(file)
    await run("mkfs.ext4", "-q", device.path)
    await mounts.mount(device.path, target, "ext4")
    yield file, target
    await freeze.thaw_all([target])
    async with asyncio.timeout(PATIENCE_S):
        # A holder that outlived its daemon ends a moment after the thaw; nothing announces it.
        while holders_of(target):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await mounts.ensure_unmounted(target)
    await loop_devices.detach(device)


@contextlib.asynccontextmanager
async def waiting_writer(target: Path) -> AsyncIterator[None]:
    """Start a writer, see that it has to wait, and at the end that it has gone on."""
    writer = await asyncio.create_subprocess_exec("touch", target / "waited")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await writer.wait()
    yield
    async with asyncio.timeout(PATIENCE_S):
        assert await writer.wait() == 0


async def write_succeeds(target: Path) -> None:
    """Write and sync a file, which ends only when the file system is not frozen."""
    async with asyncio.timeout(PATIENCE_S):
        await run("dd", "if=/dev/zero", f"of={target}/written", "bs=4k", "count=1", "conv=fsync")


async def test_writers_wait_while_frozen_and_go_on_afterwards(
    mounted_volume: tuple[Path, Path],
) -> None:
    _, target = mounted_volume

    async with contextlib.AsyncExitStack() as after, freeze.frozen([target], timeout_s=30):
        await after.enter_async_context(waiting_writer(target))


async def test_a_clone_taken_while_frozen_is_a_clean_file_system_with_all_that_was_written(
    mounted_volume: tuple[Path, Path], tmp_path: Path
) -> None:
    file, target = mounted_volume
    (target / "kept").write_bytes(b"x" * MIB)  # not synced
    clone = file.with_name("clone.raw")

    async with freeze.frozen([target], timeout_s=30):
        await reflink.clone_file(file, clone)
    (target / "later").write_bytes(b"y" * MIB)

    await run("e2fsck", "-n", "-f", clone)
    device = await loop_devices.ensure_attached(clone)
    beside = tmp_path / "beside"
    beside.mkdir()
    await mounts.mount(device.path, beside, "ext4")
    try:
        assert (beside / "kept").read_bytes() == b"x" * MIB
        assert not (beside / "later").exists()
    finally:
        await mounts.unmount(beside)
        await loop_devices.detach(device)


async def test_a_freeze_that_lasts_too_long_ends_by_itself_and_says_so(
    mounted_volume: tuple[Path, Path],
) -> None:
    _, target = mounted_volume

    with pytest.raises(freeze.FreezeExpired):
        async with freeze.frozen([target], timeout_s=0.2):
            await write_succeeds(target)  # waits for the time to be over


async def test_a_thaw_by_somebody_else_is_noticed(mounted_volume: tuple[Path, Path]) -> None:
    _, target = mounted_volume

    with pytest.raises(freeze.FreezeExpired):
        async with freeze.frozen([target], timeout_s=30):
            await run("fsfreeze", "--unfreeze", target)


async def test_an_error_inside_thaws_and_is_what_the_caller_sees(
    mounted_volume: tuple[Path, Path],
) -> None:
    _, target = mounted_volume

    with pytest.raises(ZeroDivisionError):
        async with freeze.frozen([target], timeout_s=30):
            raise ZeroDivisionError

    await write_succeeds(target)


async def test_cancellation_at_any_moment_thaws(mounted_volume: tuple[Path, Path]) -> None:
    _, target = mounted_volume

    async def hold() -> None:
        async with freeze.frozen([target], timeout_s=30):
            await asyncio.sleep(0.01)

    for delay_ms in range(0, 60, 4):
        task = asyncio.create_task(hold())
        await asyncio.sleep(delay_ms / 1000)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert await freeze.thaw_all([target]) == []
    await write_succeeds(target)


async def test_a_file_system_that_is_frozen_already_is_left_as_it_is(
    mounted_volume: tuple[Path, Path],
) -> None:
    _, target = mounted_volume
    await run("fsfreeze", "--freeze", target)

    with pytest.raises(freeze.FreezeFailed, match="frozen already"):
        async with freeze.frozen([target], timeout_s=30):
            pytest.fail("the body must not run")

    assert await freeze.thaw_all([target]) == [target]
    assert await freeze.thaw_all([target]) == []


async def test_when_one_of_two_cannot_be_frozen_the_other_thaws(
    mounted_volume: tuple[Path, Path],
) -> None:
    _, target = mounted_volume

    with pytest.raises(freeze.FreezeFailed, match="/proc"):
        async with freeze.frozen([target, Path("/proc")], timeout_s=30):
            pytest.fail("the body must not run")

    await write_succeeds(target)


async def test_two_mounts_of_one_file_system_are_frozen_once(
    mounted_volume: tuple[Path, Path], tmp_path: Path
) -> None:
    _, target = mounted_volume
    other = tmp_path / "bound"
    other.mkdir()
    await bind_mounts.bind(target, other, read_only=False)
    try:
        async with (
            contextlib.AsyncExitStack() as after,
            freeze.frozen([target, other], timeout_s=30),
        ):
            await after.enter_async_context(waiting_writer(other))
    finally:
        await mounts.unmount(other)


async def test_a_mount_point_that_is_gone_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        async with freeze.frozen([tmp_path / "absent"], timeout_s=30):
            pytest.fail("the body must not run")
    assert await freeze.thaw_all([tmp_path / "absent"]) == []


DAEMON = """
import asyncio, sys, pathlib
from shorthorn.host.freeze import frozen

async def main():
    async with frozen([pathlib.Path(sys.argv[1])], timeout_s=float(sys.argv[2])):
        print("frozen", flush=True)
        await asyncio.sleep(3600)

asyncio.run(main())
"""


@pytest.mark.parametrize("whole_group", [False, True], ids=["the process", "its whole group"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
async def test_a_freeze_ends_when_the_one_who_asked_is_killed(
    mounted_volume: tuple[Path, Path], number: signal.Signals, whole_group: bool
) -> None:
    _, target = mounted_volume
    # A stopped process keeps its pipe open: only the holder's own clock helps then.
    timeout_s = "5" if number == signal.SIGSTOP else "3600"
    daemon = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", DAEMON, target, timeout_s),
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert daemon.stdout is not None
    try:
        assert await daemon.stdout.readline() == b"frozen\n"
        async with waiting_writer(target):
            (os.killpg if whole_group else os.kill)(daemon.pid, number)
    finally:
        with contextlib.suppress(ProcessLookupError):
            daemon.kill()
        await daemon.wait()


async def test_a_killed_holder_is_replaced_by_our_own_thaw(
    mounted_volume: tuple[Path, Path],
) -> None:
    _, target = mounted_volume

    with pytest.raises(freeze.FreezeExpired):  # noqa: PT012 - raised at the end of the block
        async with freeze.frozen([target], timeout_s=30):
            (holder,) = holders_of(target)
            os.kill(holder, signal.SIGKILL)

    await write_succeeds(target)
    assert holders_of(target) == []


def holders_of(target: Path) -> list[int]:
    """Return the ids of the freeze holders of one mount point."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if os.fsencode(freeze_holder.__file__) in words and os.fsencode(target) in words:
                found.append(int(entry.name))
    return found


async def test_a_mount_that_went_is_not_taken_for_the_file_system_below(
    mounted_volume: tuple[Path, Path],
) -> None:
    file, target = mounted_volume
    device = await loop_devices.find_by_file(file)
    assert device is not None
    points = mount_points(device)
    assert points == [target]
    await mounts.unmount(target)
    look = functools.partial(mount_points, device)
    with pytest.raises(freeze.MountsChanged, match=str(target)):
        async with freeze.frozen(points, timeout_s=30, still_there=look):
            pytest.fail("the file system below is frozen")
    await mounts.mount(device.path, target, "ext4")
