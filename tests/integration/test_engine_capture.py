"""Copies of volumes that are in use: mounted, open, attached, with writers at work."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.integration.attached_volumes import (
    EXT4,
    FILE_SYSTEMS,
    MIB,
    FileSystem,
    attached,
    formatted,
    mounted,
    run,
    write_succeeds,
)

from shorthorn.domain.errors import InUse, StillWorking, WrongState
from shorthorn.domain.models import ImageFormat, ImageKey, VolumeSource
from shorthorn.engines.capture import Capture, Cloner
from shorthorn.engines.local import LocalEngine
from shorthorn.host import bind_mounts, loop_devices, mounts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from shorthorn.kit.ready_thread import ReadyThread

BLANK = VolumeSource()

#: Appends numbers to a file, each of them synced before it is said, with the time, on standard
#: output.
WRITER = """
import os, sys, time
file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
number = 0
while True:
    os.write(file, b"%d\\n" % number)
    os.fsync(file)
    os.write(1, b"%d %d\\n" % (number, time.monotonic_ns()))
    number += 1
"""


@pytest.fixture
async def engine(pool_dir: Path) -> AsyncIterator[LocalEngine]:
    engine = LocalEngine(pool_dir)
    await engine.open()
    yield engine
    await engine.close()


class Writer:
    """A process that appends synced numbers to a file, and how far it is."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        self._output = process.stdout

    async def catch_up(self) -> int:
        """Return the first number that was acknowledged after this call.

        By the writer's own clock, which is ours: where a sync takes no time, there is always more
        to be read.
        """
        now = time.monotonic_ns()
        while True:
            number, acknowledged_at = map(int, (await self._output.readline()).split())
            if acknowledged_at > now:
                return number


@contextlib.asynccontextmanager
async def writing(path: Path) -> AsyncIterator[Writer]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WRITER, path, stdout=asyncio.subprocess.PIPE
    )
    try:
        yield Writer(process)
    finally:
        process.kill()
        await process.wait()


@pytest.mark.parametrize("kind", FILE_SYSTEMS.values(), ids=list(FILE_SYSTEMS))
async def test_a_snapshot_under_writers_is_a_clean_file_system_with_all_that_was_acknowledged(
    engine: LocalEngine, kind: FileSystem, tmp_path: Path
) -> None:
    volume = await engine.create_volume("v", kind.size_bytes, BLANK)
    async with formatted(volume.path, tmp_path / "live", kind) as live:
        (live / "unsynced").write_bytes(b"x" * MIB)
        async with writing(live / "counter") as writer:
            before = await writer.catch_up()
            await engine.create_snapshot("s", "v")
            after = await writer.catch_up()

        clone = await engine.create_volume("w", kind.size_bytes, VolumeSource(snapshot="s"))
        async with attached(clone.path) as device:
            if kind.freezes_clean:
                await run(*kind.check, device.path)
            async with mounted(device, tmp_path / "beside", kind.name, *kind.clone_options) as it:
                assert (it / "unsynced").read_bytes() == b"x" * MIB
                numbers = [int(line) for line in (it / "counter").read_text().splitlines()]
            await run(*kind.check, device.path)
    assert numbers == list(range(len(numbers)))
    assert before < len(numbers) <= after + 1


@pytest.mark.parametrize("kind", FILE_SYSTEMS.values(), ids=list(FILE_SYSTEMS))
async def test_a_volume_that_is_mounted_read_only_is_captured(
    engine: LocalEngine, kind: FileSystem, tmp_path: Path
) -> None:
    volume = await engine.create_volume("v", kind.size_bytes, BLANK)
    async with formatted(volume.path, tmp_path / "live", kind) as live:
        (live / "file").write_bytes(b"x")
    async with (
        attached(volume.path) as device,
        mounted(device, tmp_path / "live", kind.name, "ro") as live,
    ):
        clone = await engine.create_volume("w", kind.size_bytes, VolumeSource(volume="v"))
        assert (live / "file").read_bytes() == b"x"
    async with (
        attached(clone.path) as device,
        mounted(device, tmp_path / "beside", kind.name) as beside,
    ):
        assert (beside / "file").read_bytes() == b"x"


async def test_clones_and_exports_of_a_mounted_volume_hold_what_was_not_synced(
    engine: LocalEngine, tmp_path: Path
) -> None:
    key = ImageKey("golden", "u")
    volume = await engine.create_volume("v", EXT4.size_bytes, BLANK)
    async with formatted(volume.path, tmp_path / "live") as live:
        (live / "file").write_bytes(b"x" * MIB)
        await engine.create_volume("clone", EXT4.size_bytes, VolumeSource(volume="v"))
        await engine.begin_export(key, "v", ImageFormat.QCOW2)
        await write_succeeds(live)
        (live / "file").write_bytes(b"y" * MIB)
    await engine.finish_export(key, lambda progress: None)
    source = VolumeSource(image=key.name, image_uuid=key.uuid)
    await engine.create_volume("restored", EXT4.size_bytes, source)

    for volume_id in ("clone", "restored"):
        found = await engine.find_volume(volume_id)
        assert found is not None
        async with (
            attached(found.path) as device,
            mounted(device, tmp_path / volume_id, "ext4") as it,
        ):
            assert (it / "file").read_bytes() == b"x" * MIB


async def test_a_clone_of_an_open_device_holds_every_acknowledged_write(
    engine: LocalEngine,
) -> None:
    volume = await engine.create_volume("v", 64 * MIB, BLANK)
    data = os.urandom(32 * MIB)
    async with attached(volume.path) as device:
        with device.path.open("r+b", buffering=0) as raw:
            written = 0
            while written < len(data):
                written += raw.write(data[written:])
            clone = await engine.create_volume("w", 64 * MIB, VolumeSource(volume="v"))
    assert Path(clone.path).read_bytes()[: len(data)] == data


async def test_snapshots_of_one_mounted_volume_are_taken_one_after_the_other(
    engine: LocalEngine, tmp_path: Path
) -> None:
    volume = await engine.create_volume("v", EXT4.size_bytes, BLANK)
    async with formatted(volume.path, tmp_path / "live") as live:
        made = await asyncio.gather(*(engine.create_snapshot(f"s{n}", "v") for n in range(4)))
        await write_succeeds(live)
    assert len({snapshot.point_in_time for snapshot in made}) == 4


async def test_a_mount_that_another_one_hides_is_no_reason_to_freeze_that_one(
    engine: LocalEngine, tmp_path: Path
) -> None:
    volume = await engine.create_volume("v", EXT4.size_bytes, BLANK)
    async with formatted(volume.path, tmp_path / "live") as live:
        (live / "file").write_bytes(b"x")
        await run("sync", "--file-system", live)
        await mounts.mount("none", live, "tmpfs")
        try:
            snapshot = await engine.create_snapshot("s", "v")  # tmpfs cannot be frozen
        finally:
            await mounts.unmount(live)
    clone = await engine.create_volume("w", EXT4.size_bytes, VolumeSource(snapshot="s"))
    assert snapshot.size_bytes == EXT4.size_bytes
    async with attached(clone.path) as device, mounted(device, tmp_path / "w", "ext4") as it:
        assert (it / "file").read_bytes() == b"x"


async def test_a_file_system_that_is_only_bind_mounted_is_frozen_too(
    engine: LocalEngine, tmp_path: Path
) -> None:
    volume = await engine.create_volume("v", EXT4.size_bytes, BLANK)
    bound = tmp_path / "bound"
    bound.mkdir()
    async with attached(volume.path) as device:
        await run("mkfs.ext4", "-q", device.path)
        async with mounted(device, tmp_path / "live", "ext4") as live:
            (live / "directory").mkdir()
            await bind_mounts.bind(live / "directory", bound, read_only=False)
        try:
            (bound / "file").write_bytes(b"x" * MIB)
            clone = await engine.create_volume("w", EXT4.size_bytes, VolumeSource(volume="v"))
        finally:
            await mounts.unmount(bound)
    async with attached(clone.path) as device:
        await run(*EXT4.check, device.path)
        async with mounted(device, tmp_path / "w", "ext4") as it:
            assert (it / "directory" / "file").read_bytes() == b"x" * MIB


class WaitingCloner(Cloner):
    """Clones only after the freeze has ended, the first `waits` times."""

    target: Path
    waits: int

    async def clone_at_once(
        self, thread: ReadyThread, source: Path, target: Path, size_bytes: int | None
    ) -> None:
        if WaitingCloner.waits > 0:
            WaitingCloner.waits -= 1
            await write_succeeds(WaitingCloner.target)
        await super().clone_at_once(thread, source, target, size_bytes)


async def test_a_freeze_that_ends_too_early_is_tried_again(
    engine: LocalEngine, pool_dir: Path, tmp_path: Path
) -> None:
    volume = await engine.create_volume("v", EXT4.size_bytes, BLANK)
    copy = pool_dir / "copy.raw"
    steps: list[str] = []
    capture = Capture(WaitingCloner("reflink"), steps.append, freeze_timeout_s=1)
    async with formatted(volume.path, tmp_path / "live") as live:
        WaitingCloner.target, WaitingCloner.waits = live, 1
        await capture.take("v", Path(volume.path), copy)
        assert steps.count("captured") == 2
        assert steps.count("thawed") == 1
        await run(*EXT4.check, copy)
        copy.unlink()

        WaitingCloner.waits = 99
        with pytest.raises(StillWorking):
            await capture.take("v", Path(volume.path), copy)
        assert not copy.exists()
        await write_succeeds(live)


async def test_a_file_system_that_somebody_else_froze_is_not_captured(
    engine: LocalEngine, pool_dir: Path, tmp_path: Path
) -> None:
    volume = await engine.create_volume("v", EXT4.size_bytes, BLANK)
    async with formatted(volume.path, tmp_path / "live") as live:
        await run("fsfreeze", "--freeze", live)
        with pytest.raises(WrongState, match="frozen already"):
            await engine.create_snapshot("s", "v")
        assert await engine.find_snapshot("s") is None
        assert list(pool_dir.glob("staging/*/*")) == []
        await run("fsfreeze", "--unfreeze", live)  # nobody has thawed it
        await engine.create_snapshot("s", "v")


async def test_a_volume_in_use_is_not_deleted(engine: LocalEngine, tmp_path: Path) -> None:
    volume = await engine.create_volume("v", EXT4.size_bytes, BLANK)
    async with formatted(volume.path, tmp_path / "live") as live:
        with pytest.raises(InUse, match=str(live)):
            await engine.delete_volume("v")
        await write_succeeds(live)
    assert await engine.find_volume("v") == volume


async def test_a_volume_whose_device_is_open_is_not_deleted(engine: LocalEngine) -> None:
    volume = await engine.create_volume("v", MIB, BLANK)
    async with attached(volume.path) as device:
        with device.path.open("rb"), pytest.raises(InUse, match=str(device.path)):
            await engine.delete_volume("v")
        assert await engine.find_volume("v") == volume


async def test_a_private_copy_that_is_mounted_keeps_its_volume(
    engine: LocalEngine, tmp_path: Path
) -> None:
    volume = await engine.create_volume("v", EXT4.size_bytes, BLANK)
    private = Path(volume.path).with_name("read-only.raw")
    private.write_bytes(bytes(EXT4.size_bytes))
    async with formatted(private, tmp_path / "live") as live:
        with pytest.raises(InUse, match=str(live)):
            await engine.delete_volume("v")
        assert Path(volume.path).exists()
    await engine.delete_volume("v")
    assert not private.exists()


async def test_deleting_detaches_an_idle_device(engine: LocalEngine) -> None:
    volume = await engine.create_volume("v", MIB, BLANK)
    async with attached(volume.path) as device:
        await engine.delete_volume("v")
        assert device.number not in {d.number for d in await loop_devices.list_attached()}


async def test_an_attached_device_grows_with_its_volume(engine: LocalEngine) -> None:
    volume = await engine.create_volume("v", MIB, BLANK)
    async with attached(volume.path) as device:
        await engine.expand_volume("v", 4 * MIB)
        assert await loop_devices.size_bytes(device.path) == 4 * MIB


async def test_what_was_discarded_is_not_exported(engine: LocalEngine, tmp_path: Path) -> None:
    volume = await engine.create_volume("v", EXT4.size_bytes, BLANK)
    async with formatted(volume.path, tmp_path / "live") as live:
        (live / "large").write_bytes(os.urandom(32 * MIB))
        await run("sync", "--file-system", live)
        full = await engine.measure_volume("v")
        (live / "large").unlink()
        await run("sync", "--file-system", live)
        await run("fstrim", live)
    key = ImageKey("golden", "u")
    await engine.begin_export(key, "v", ImageFormat.QCOW2)
    image = await engine.finish_export(key, lambda progress: None)
    usage = await engine.measure_image(key)
    assert full.allocated_bytes > 32 * MIB
    assert usage.allocated_bytes < 8 * MIB
    assert image.size_bytes < 16 * MIB


async def test_a_pool_without_reflinks_refuses_to_tear_a_volume_in_use(
    ext4_dir: Path, tmp_path: Path
) -> None:
    engine = LocalEngine(ext4_dir)
    await engine.open()
    assert engine.clone_method == "copy"
    volume = await engine.create_volume("v", EXT4.size_bytes, BLANK)
    async with formatted(volume.path, tmp_path / "live") as live:
        for refused in (
            engine.create_snapshot("s", "v"),
            engine.create_volume("w", EXT4.size_bytes, VolumeSource(volume="v")),
            engine.begin_export(ImageKey("i", "u"), "v", ImageFormat.RAW),
        ):
            with pytest.raises(InUse, match="cannot share"):
                await refused
        await write_succeeds(live)
    await engine.create_snapshot("s", "v")
    assert list(ext4_dir.glob("staging/*/*")) == []
    await engine.close()
