"""The files of a pool: their versions, their damage, and lists of many."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.integration.attached_volumes import run

from shorthorn.domain.errors import (
    Corrupt,
    InUse,
    InvalidArgument,
    NotFound,
    Unavailable,
    WrongState,
)
from shorthorn.domain.models import ImageFormat, ImageKey, VolumeSource
from shorthorn.engines.catalogue import subdirectories
from shorthorn.engines.layout import Layout
from shorthorn.engines.local import LocalEngine
from shorthorn.engines.records import PoolJson
from shorthorn.engines.staging import Staging
from shorthorn.host import bind_mounts, files, mounts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

MIB = 1 << 20
BLANK = VolumeSource()
KEY = ImageKey("golden", "u")


@pytest.fixture
async def engine(xfs_dir: Path) -> AsyncIterator[LocalEngine]:
    engine = LocalEngine(xfs_dir)
    await engine.open()
    yield engine
    await engine.close()


def rewrite(path: Path, **changes: object) -> bytes:
    """Change keys of a JSON file and return its new content."""
    content: dict[str, Any] = json.loads(path.read_bytes()) | changes
    path.write_text(json.dumps(content))
    return path.read_bytes()


async def make_one_of_each(engine: LocalEngine) -> None:
    await engine.create_volume("v", MIB, BLANK)
    await engine.create_snapshot("s", "v")
    await engine.begin_export(KEY, "v", ImageFormat.RAW)
    await engine.finish_export(KEY, lambda progress: None)
    await engine.begin_export(ImageKey("begun", "u"), "v", ImageFormat.RAW)


RECORDS = [
    "pool.json",
    "volumes/v/volume.json",
    "snapshots/s/snapshot.json",
    "images/golden/u/image.json",
    "staging/images/begun/u/export.json",
]


@pytest.mark.parametrize("record", RECORDS)
async def test_every_record_says_its_format_version(
    engine: LocalEngine, xfs_dir: Path, record: str
) -> None:
    await make_one_of_each(engine)
    assert json.loads((xfs_dir / record).read_bytes())["formatVersion"] == 1


async def test_a_pool_of_a_newer_version_is_left_alone(engine: LocalEngine, xfs_dir: Path) -> None:
    (await engine.staging_dir(KEY) / "artifact").write_bytes(b"would be swept")
    content = rewrite(xfs_dir / "pool.json", formatVersion=2, future="unknown")
    await engine.close()
    newer = LocalEngine(xfs_dir)
    with pytest.raises(WrongState, match=r"pool\.json is written in format version 2"):
        await newer.open()
    assert (xfs_dir / "pool.json").read_bytes() == content
    assert len(list(xfs_dir.glob("staging/images/*/*/artifact"))) == 1
    with pytest.raises(Unavailable, match="not open"):
        await newer.list_volumes()


async def test_objects_of_a_newer_version_are_named_and_left_alone(
    engine: LocalEngine, xfs_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await make_one_of_each(engine)
    contents = {r: rewrite(xfs_dir / r, formatVersion=2) for r in RECORDS[1:]}
    begun = ImageKey("begun", "u")
    for refused in (
        engine.find_volume("v"),
        engine.create_volume("v", MIB, BLANK),
        engine.delete_volume("v"),
        engine.create_volume("w", MIB, VolumeSource(volume="v")),
        engine.find_snapshot("s"),
        engine.delete_snapshot("s"),
        engine.create_volume("w", MIB, VolumeSource(snapshot="s")),
        engine.find_image(KEY),
        engine.delete_image(KEY),
        engine.create_volume("w", MIB, VolumeSource(image=KEY.name, image_uuid=KEY.uuid)),
        engine.begin_export(begun, "v", ImageFormat.RAW),
        engine.finish_export(begun, lambda progress: None),
    ):
        with pytest.raises(WrongState, match="format version 2"):
            await refused
    with caplog.at_level(logging.ERROR):
        assert await engine.list_volumes() == []
        assert await engine.list_snapshots() == []
        assert await engine.list_images() == []
        assert await engine.list_volumes() == []
    assert len(caplog.records) == 3, "each is reported once"
    assert {r: (xfs_dir / r).read_bytes() for r in RECORDS[1:]} == contents


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"formatVersion": 1}', b"\xff"])
async def test_a_damaged_record_is_reported_and_can_be_deleted(
    engine: LocalEngine, xfs_dir: Path, damage: bytes
) -> None:
    await make_one_of_each(engine)
    for record in RECORDS[1:4]:
        (xfs_dir / record).write_bytes(damage)
    for refused in (
        engine.find_volume("v"),
        engine.create_volume("v", MIB, BLANK),
        engine.find_snapshot("s"),
        engine.find_image(KEY),
    ):
        with pytest.raises(Corrupt, match=r"\.json"):
            await refused
    await engine.delete_volume("v")
    await engine.delete_snapshot("s")
    await engine.delete_image(KEY)
    assert await engine.find_volume("v") is None
    assert await engine.find_snapshot("s") is None
    assert await engine.find_image(KEY) is None


async def test_data_without_a_record_and_a_record_without_data_are_damage(
    engine: LocalEngine, xfs_dir: Path
) -> None:
    await engine.create_volume("v", MIB, BLANK)
    await engine.create_volume("w", MIB, BLANK)
    (xfs_dir / "volumes/v/volume.json").unlink()
    (xfs_dir / "volumes/w/volume.raw").unlink()
    with pytest.raises(Corrupt, match=r"volume\.json is missing"):
        await engine.find_volume("v")
    with pytest.raises(Corrupt, match=r"volume\.raw"):
        await engine.find_volume("w")


async def test_a_volume_that_lost_its_end_is_damaged(engine: LocalEngine) -> None:
    volume = await engine.create_volume("v", MIB, BLANK)
    with open(volume.path, "r+b") as file:
        file.truncate(MIB // 2)
    with pytest.raises(Corrupt, match=f"{MIB} are recorded"):
        await engine.find_volume("v")


async def test_a_pool_that_lost_its_record_is_not_taken_for_a_new_one(
    engine: LocalEngine, xfs_dir: Path
) -> None:
    await engine.create_volume("v", MIB, BLANK)
    (xfs_dir / "pool.json").unlink()
    await engine.close()
    with pytest.raises(Corrupt, match=r"pool\.json is missing"):
        await LocalEngine(xfs_dir).open()


async def test_a_pool_needs_its_directory(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        await LocalEngine(tmp_path / "none").open()


async def test_a_list_of_thousands_reads_each_record_once(
    engine: LocalEngine, xfs_dir: Path
) -> None:
    template = await engine.create_volume("v0", MIB, BLANK)
    for number in range(1, 3000):
        directory = xfs_dir / "volumes" / f"v{number}"
        directory.mkdir()
        (directory / "volume.json").write_bytes((xfs_dir / "volumes/v0/volume.json").read_bytes())
        rewrite(directory / "volume.json", volumeId=directory.name)
    first = await engine.list_volumes()
    await engine.expand_volume("v0", 2 * MIB)
    second = await engine.list_volumes()
    assert len(first) == 3000
    changed = [(a, b) for a, b in zip(first, second, strict=True) if a is not b]
    assert [(a.volume_id, b.capacity_bytes) for a, b in changed] == [("v0", 2 * MIB)]
    assert changed[0][0] == template


@pytest.mark.parametrize("end", ["deleted", "cancelled"])
async def test_a_record_of_what_is_deleted_meanwhile_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    layout, committed = Layout(tmp_path), tmp_path / "images" / "golden" / "u"
    committed.mkdir(parents=True)
    write = files.write_json_atomic

    async def write_while_it_ends(path: Path, content: object) -> None:
        task = asyncio.current_task()
        assert task is not None
        if end == "cancelled":
            task.cancel()
        else:
            shutil.rmtree(committed)
        await write(path, content)

    monkeypatch.setattr(files, "write_json_atomic", write_while_it_ends)
    staging = Staging(layout)
    staging.make_directories()
    replacing = asyncio.create_task(
        staging.replace_record(committed / "image.json", PoolJson(pool_uuid="p"))
    )
    with pytest.raises(asyncio.CancelledError if end == "cancelled" else FileNotFoundError):
        await replacing
    assert list(layout.staged_records.iterdir()) == []


async def test_a_pool_has_one_owner_who_is_named(engine: LocalEngine, xfs_dir: Path) -> None:
    second = LocalEngine(xfs_dir, owner="the second")
    with pytest.raises(InUse, match=rf"shorthorn \(process {os.getpid()}\)"):
        await second.open()
    await second.close()
    await engine.create_volume("v", MIB, BLANK)
    await engine.close()
    await second.open()
    with pytest.raises(InUse, match="the second"):
        await engine.open()
    await second.close()


async def test_a_pool_that_could_not_be_opened_is_not_owned(
    engine: LocalEngine, xfs_dir: Path
) -> None:
    good = (xfs_dir / "pool.json").read_bytes()
    await engine.close()
    (xfs_dir / "pool.json").write_bytes(b"{")
    with pytest.raises(Corrupt):
        await engine.open()
    (xfs_dir / "pool.json").write_bytes(good)
    await engine.open()


async def test_a_directory_that_holds_a_mount_is_not_deleted(
    engine: LocalEngine, xfs_dir: Path, tmp_path: Path
) -> None:
    await make_one_of_each(engine)
    inside = xfs_dir / "snapshots/s/snapshot.raw"
    other = tmp_path / "other"
    other.write_bytes(b"")
    await bind_mounts.bind(other, inside, read_only=False)
    try:
        with pytest.raises(InUse, match=str(inside)):
            await engine.delete_snapshot("s")
        assert await engine.find_snapshot("s") is not None
    finally:
        await mounts.unmount(inside)
    await engine.delete_snapshot("s")


async def test_a_disk_that_refuses_to_be_written_is_a_reason_to_try_again(
    engine: LocalEngine, xfs_dir: Path
) -> None:
    await engine.create_volume("v", MIB, BLANK)
    places = [xfs_dir / "volumes/v", xfs_dir / "staging/snapshots"]
    await run("chattr", "+i", *places)
    try:
        for refused in (engine.create_snapshot("s", "v"), engine.delete_volume("v")):
            with pytest.raises(Unavailable, match="not permitted"):
                await refused
    finally:
        await run("chattr", "-i", *places)
    await engine.create_snapshot("s", "v")
    await engine.delete_volume("v")


async def test_a_file_too_large_for_the_file_system_is_refused(ext4_dir: Path) -> None:
    engine = LocalEngine(ext4_dir)
    await engine.open()
    with pytest.raises(InvalidArgument, match="capacity_bytes"):
        await engine.create_volume("v", 1 << 60, BLANK)
    with pytest.raises(InvalidArgument, match="capacity_bytes"):
        await engine.create_volume("v", 1 << 63, BLANK)
    assert await engine.find_volume("v") is None
    await engine.close()


async def test_a_volume_that_comes_and_goes_is_never_called_damaged(engine: LocalEngine) -> None:
    async def look() -> None:
        while not is_over:
            await engine.find_volume("v")

    is_over = False
    lookers = [asyncio.create_task(look()) for _ in range(3)]
    for _ in range(150):
        await engine.create_volume("v", MIB, BLANK)
        await engine.delete_volume("v")
    is_over = True
    await asyncio.gather(*lookers)


def test_a_list_of_directories_left_half_way_keeps_none_open(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    left = iter(subdirectories(tmp_path))
    assert next(left).startswith(str(tmp_path))
    assert str(tmp_path) not in open_paths()
    assert list(subdirectories(tmp_path / "gone")) == []


def open_paths() -> set[str]:
    """What this process has open. By path: other tests' leavings may be closed in between."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # that of this very list
            found.add(str(entry.readlink()))
    return found
