"""What every engine promises, as tests: the obligations of `domain.ports.Engine`.

A test module subclasses `EngineSuite` and gives it a fixture `engine` (open) and a fixture
`reopen`, which closes the engine there is and opens another one of the same pool, as the next
process would. Data is
written and read through the paths in records, which every engine of this host has.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from shorthorn.domain.errors import (
    AlreadyExists,
    Corrupt,
    InvalidArgument,
    NotFound,
    SizeOutOfRange,
    WrongState,
)
from shorthorn.domain.models import (
    FormatState,
    ImageFormat,
    ImageKey,
    ImageRecord,
    Progress,
    VolumeSource,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from shorthorn.domain.ports import Engine

    Reopen = Callable[[], Awaitable[Engine]]

KIB = 1 << 10
MIB = 1 << 20
BLANK = VolumeSource()
KEY = ImageKey("golden", "11111111-2222-3333-4444-555555555555")
BAD_NAMES = [
    pytest.param("..", id="parent"),
    pytest.param("../escape", id="path up"),
    pytest.param("/etc", id="absolute"),
    pytest.param("a/b", id="separator"),
    pytest.param(".hidden", id="leading dot"),
    pytest.param("", id="empty"),
    pytest.param("a\0b", id="zero byte"),
    pytest.param("a\n", id="newline"),
    pytest.param("x" * 254, id="too long"),
]


def write(path: str, data: bytes, offset: int = 0) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def read(path: str, length: int, offset: int = 0) -> bytes:
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(length)


def ignore_progress(progress: Progress) -> None:
    assert 0 <= progress.percent <= 99


async def make_volume(engine: Engine, volume_id: str, content: bytes, size: int = 4 * MIB) -> str:
    record = await engine.create_volume(volume_id, size, BLANK)
    write(record.path, content)
    return record.path


async def export(
    engine: Engine, key: ImageKey, volume_id: str, kind: ImageFormat = ImageFormat.RAW
) -> ImageRecord:
    await engine.begin_export(key, volume_id, kind)
    return await engine.finish_export(key, ignore_progress)


async def stage_download(engine: Engine, key: ImageKey, content: bytes) -> ImageRecord:
    """Leave in staging what a download would, and return the record that it would commit."""
    staging = await engine.staging_dir(key)
    (staging / "artifact").write_bytes(content)
    (staging / "base.raw").write_bytes(content)
    return ImageRecord(
        key=key,
        format=ImageFormat.RAW,
        size_bytes=len(content),
        virtual_size_bytes=len(content),
        checksum="ab" * 64,
        source={"type": "download", "url": "http://images.test/a.img"},
        created_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        point_in_time=None,
        artifact_path="",
        base_path="",
    )


class VolumeObligations:
    async def test_a_blank_volume_has_its_capacity_and_reads_zeros(self, engine: Engine) -> None:
        record = await engine.create_volume("v", 64 * MIB, BLANK)
        assert record.capacity_bytes == os.path.getsize(record.path) == 64 * MIB
        assert read(record.path, MIB, 63 * MIB) == bytes(MIB)
        assert (await engine.measure_volume("v")).allocated_bytes < MIB
        assert record.format_state is FormatState.BLANK

    async def test_creating_again_answers_the_same(self, engine: Engine) -> None:
        first = await engine.create_volume("v", MIB, BLANK)
        write(first.path, b"kept")
        assert await engine.create_volume("v", MIB, BLANK) == first
        assert read(first.path, 4) == b"kept"

    async def test_creating_with_another_capacity_or_source_is_refused(
        self, engine: Engine
    ) -> None:
        await engine.create_volume("v", MIB, BLANK)
        await engine.create_volume("w", MIB, BLANK)
        with pytest.raises(AlreadyExists, match="capacity"):
            await engine.create_volume("v", 2 * MIB, BLANK)
        with pytest.raises(AlreadyExists, match="source"):
            await engine.create_volume("v", MIB, VolumeSource(volume="w"))

    async def test_the_spelling_of_a_handle_does_not_make_another_source(
        self, engine: Engine
    ) -> None:
        await engine.create_volume("v", MIB, BLANK)
        first = await engine.create_volume("w", MIB, VolumeSource(volume="v", handle="v"))
        assert await engine.create_volume("w", MIB, VolumeSource(volume="v", handle="V")) == first

    @pytest.mark.parametrize("capacity", [0, -512, 1000])
    async def test_a_capacity_is_a_positive_number_of_sectors(
        self, engine: Engine, capacity: int
    ) -> None:
        with pytest.raises(InvalidArgument):
            await engine.create_volume("v", capacity, BLANK)
        assert await engine.find_volume("v") is None

    async def test_a_clone_has_the_content_and_a_tail_of_zeros(self, engine: Engine) -> None:
        path = await make_volume(engine, "v", b"content", MIB)
        write(path, b"end", MIB - 3)
        clone = await engine.create_volume("w", 3 * MIB, VolumeSource(volume="v"))
        assert read(clone.path, 7) == b"content"
        assert read(clone.path, 3, MIB - 3) == b"end"
        assert read(clone.path, 2 * MIB, MIB) == bytes(2 * MIB)
        assert clone.format_state is FormatState.FORBIDDEN

    async def test_a_clone_and_its_source_go_separate_ways(self, engine: Engine) -> None:
        path = await make_volume(engine, "v", b"old")
        clone = await engine.create_volume("w", 4 * MIB, VolumeSource(volume="v"))
        write(path, b"new")
        write(clone.path, b"own", MIB)
        assert read(clone.path, 3) == b"old"
        assert read(path, 3, MIB) == bytes(3)

    @pytest.mark.parametrize(
        "source",
        [
            pytest.param(VolumeSource(volume="none"), id="volume"),
            pytest.param(VolumeSource(snapshot="none"), id="snapshot"),
            pytest.param(VolumeSource(image="none", image_uuid="u"), id="image"),
        ],
    )
    async def test_a_missing_source_is_not_found(
        self, engine: Engine, source: VolumeSource
    ) -> None:
        with pytest.raises(NotFound, match="none"):
            await engine.create_volume("v", MIB, source)
        assert await engine.find_volume("v") is None

    async def test_a_clone_cannot_be_smaller_than_its_source(self, engine: Engine) -> None:
        await engine.create_volume("v", 2 * MIB, BLANK)
        with pytest.raises(SizeOutOfRange) as caught:
            await engine.create_volume("w", MIB, VolumeSource(volume="v"))
        assert caught.value.minimum_bytes == 2 * MIB
        assert await engine.find_volume("w") is None

    async def test_a_volume_grows_by_zeros(self, engine: Engine) -> None:
        path = await make_volume(engine, "v", b"content", MIB)
        grown = await engine.expand_volume("v", 2 * MIB)
        assert grown.capacity_bytes == os.path.getsize(path) == 2 * MIB
        assert read(path, 7) == b"content"
        assert read(path, MIB, MIB) == bytes(MIB)
        assert await engine.expand_volume("v", 2 * MIB) == grown
        assert await engine.find_volume("v") == grown

    async def test_a_volume_never_shrinks(self, engine: Engine) -> None:
        path = await make_volume(engine, "v", b"content", 2 * MIB)
        assert (await engine.expand_volume("v", MIB)).capacity_bytes == 2 * MIB
        assert os.path.getsize(path) == 2 * MIB

    async def test_what_is_not_there_cannot_grow_or_be_measured(self, engine: Engine) -> None:
        with pytest.raises(NotFound):
            await engine.expand_volume("v", MIB)
        with pytest.raises(NotFound):
            await engine.measure_volume("v")
        with pytest.raises(NotFound):
            await engine.measure_snapshot("s")
        with pytest.raises(NotFound):
            await engine.measure_image(KEY)
        with pytest.raises(NotFound):
            await engine.record_format("v", FormatState.FORMATTING, "ext4")
        with pytest.raises(NotFound):
            await engine.record_checksum(KEY, "ab" * 64)

    async def test_deleting_makes_absent_and_may_be_repeated(self, engine: Engine) -> None:
        path = await make_volume(engine, "v", b"content")
        await engine.delete_volume("v")
        await engine.delete_volume("v")
        assert await engine.find_volume("v") is None
        assert await engine.list_volumes() == []
        assert not os.path.exists(path)

    async def test_a_name_can_be_used_again_after_deletion(self, engine: Engine) -> None:
        await make_volume(engine, "v", b"old", MIB)
        await engine.delete_volume("v")
        record = await engine.create_volume("v", 2 * MIB, BLANK)
        assert read(record.path, 3) == bytes(3)

    async def test_formatting_is_recorded_and_never_goes_back(
        self, engine: Engine, reopen: Reopen
    ) -> None:
        await engine.create_volume("v", MIB, BLANK)
        begun = await engine.record_format("v", FormatState.FORMATTING, "ext4")
        assert (begun.format_state, begun.fs_type) == (FormatState.FORMATTING, "ext4")
        engine = await reopen()
        assert await engine.find_volume("v") == begun
        done = await engine.record_format("v", FormatState.FORMATTED, "ext4")
        assert await engine.record_format("v", FormatState.FORMATTED, "ext4") == done
        with pytest.raises(WrongState):
            await engine.record_format("v", FormatState.FORMATTING, "xfs")
        assert await engine.find_volume("v") == done

    async def test_a_volume_with_a_source_is_never_formatted(self, engine: Engine) -> None:
        await engine.create_volume("v", MIB, BLANK)
        await engine.create_volume("w", MIB, VolumeSource(volume="v"))
        with pytest.raises(WrongState, match="blank"):
            await engine.record_format("w", FormatState.FORMATTING, "ext4")

    @pytest.mark.parametrize("name", BAD_NAMES)
    async def test_a_bad_name_leads_nowhere(self, engine: Engine, name: str) -> None:
        key, other = ImageKey(name, "u"), ImageKey("image", name)
        await engine.create_volume("v", MIB, BLANK)
        for refused in (
            engine.create_volume(name, MIB, BLANK),
            engine.create_volume("w", MIB, VolumeSource(image="i", image_uuid=name)),
            engine.create_snapshot(name, "v"),
            engine.begin_export(key, "v", ImageFormat.RAW),
            engine.begin_export(other, "v", ImageFormat.RAW),
            engine.staging_dir(key),
            engine.staging_dir(other),
        ):
            with pytest.raises(InvalidArgument):
                await refused
        assert await engine.find_volume(name) is None
        assert await engine.find_snapshot(name) is None
        assert await engine.find_image(key) is None
        await engine.delete_volume(name)
        await engine.delete_snapshot(name)
        await engine.delete_image(key)
        await engine.delete_image(other)
        await engine.discard_staging(key)
        assert [v.volume_id for v in await engine.list_volumes()] == ["v"]

    async def test_lists_hold_what_finds_find(self, engine: Engine, reopen: Reopen) -> None:
        for number in range(5):
            await engine.create_volume(f"v{number}", MIB, BLANK)
        await engine.expand_volume("v3", 2 * MIB)
        await engine.delete_volume("v1")
        expected = [await engine.find_volume(f"v{number}") for number in (0, 2, 3, 4)]
        assert await engine.list_volumes() == expected
        await engine.expand_volume("v0", 2 * MIB)
        expected[0] = await engine.find_volume("v0")
        assert await engine.list_volumes() == expected
        assert await (await reopen()).list_volumes() == expected

    async def test_different_objects_are_made_in_parallel(self, engine: Engine) -> None:
        await make_volume(engine, "v", b"content", MIB)
        await asyncio.gather(
            *(engine.create_volume(f"c{n}", MIB, VolumeSource(volume="v")) for n in range(8)),
            *(engine.create_snapshot(f"s{n}", "v") for n in range(8)),
            *(export(engine, ImageKey(f"i{n % 2}", f"u{n}"), "v") for n in range(8)),
        )
        paths = [volume.path for volume in await engine.list_volumes()]
        paths += [snapshot.path for snapshot in await engine.list_snapshots()]
        assert [read(path, 7) for path in paths] == [b"content"] * 17
        assert len(await engine.list_images()) == 8
        await asyncio.gather(
            *(engine.delete_image(ImageKey(f"i{n % 2}", f"u{n}")) for n in range(8)),
            *(engine.delete_snapshot(f"s{n}") for n in range(8)),
            *(engine.delete_volume(f"c{n}") for n in range(8)),
        )
        assert len(await engine.list_volumes()) == 1
        assert await engine.list_images() == []
        assert await engine.list_snapshots() == []

    async def test_usage_counts_what_is_written(self, engine: Engine) -> None:
        path = await make_volume(engine, "v", b"", 32 * MIB)
        settle(path)
        before = await engine.usage()
        write(path, os.urandom(16 * MIB))
        settle(path)
        after = await engine.usage()
        assert after.capacity_bytes == before.capacity_bytes
        assert 15 * MIB < after.allocated_bytes - before.allocated_bytes < 32 * MIB
        assert after.available_bytes < before.available_bytes <= before.capacity_bytes


class SnapshotObligations:
    async def test_a_snapshot_keeps_its_moment(self, engine: Engine) -> None:
        path = await make_volume(engine, "v", b"then")
        before = datetime.now(UTC)
        snapshot = await engine.create_snapshot("s", "v")
        assert before <= snapshot.point_in_time <= datetime.now(UTC)
        write(path, b"now!")
        assert read(snapshot.path, 4) == b"then"
        assert snapshot.size_bytes == os.path.getsize(snapshot.path) == 4 * MIB

    async def test_snapshotting_again_answers_the_same(
        self, engine: Engine, reopen: Reopen
    ) -> None:
        path = await make_volume(engine, "v", b"then")
        first = await engine.create_snapshot("s", "v")
        write(path, b"now!")
        assert await engine.create_snapshot("s", "v") == first
        engine = await reopen()
        assert await engine.create_snapshot("s", "v") == first
        assert await engine.find_snapshot("s") == first
        assert await engine.list_snapshots() == [first]
        assert read(first.path, 4) == b"then"

    async def test_a_snapshot_name_belongs_to_one_volume(self, engine: Engine) -> None:
        await engine.create_volume("v", MIB, BLANK)
        await engine.create_volume("w", MIB, BLANK)
        await engine.create_snapshot("s", "v")
        with pytest.raises(AlreadyExists, match="volume v"):
            await engine.create_snapshot("s", "w")

    async def test_a_missing_volume_has_no_snapshots(self, engine: Engine) -> None:
        with pytest.raises(NotFound):
            await engine.create_snapshot("s", "v")
        assert await engine.find_snapshot("s") is None

    async def test_a_volume_made_from_a_snapshot_outlives_everything(self, engine: Engine) -> None:
        await make_volume(engine, "v", b"then", MIB)
        snapshot = await engine.create_snapshot("s", "v")
        await engine.delete_volume("v")
        assert await engine.create_snapshot("s", "v") == snapshot
        record = await engine.create_volume("w", 2 * MIB, VolumeSource(snapshot="s"))
        await engine.delete_snapshot("s")
        await engine.delete_snapshot("s")
        assert await engine.find_snapshot("s") is None
        assert read(record.path, 4) == b"then"
        assert read(record.path, MIB, MIB) == bytes(MIB)

    async def test_a_snapshot_can_be_measured(self, engine: Engine) -> None:
        await make_volume(engine, "v", os.urandom(MIB))
        await engine.create_snapshot("s", "v")
        usage = await engine.measure_snapshot("s")
        assert MIB <= usage.allocated_bytes < 2 * MIB
        assert usage.extent_count >= 1
        assert usage.shared_bytes == (usage.allocated_bytes if is_sharing(engine) else 0)


class ImageObligations:
    @pytest.mark.parametrize("kind", list(ImageFormat))
    async def test_an_export_has_the_content_of_its_moment(
        self, engine: Engine, kind: ImageFormat
    ) -> None:
        path = await make_volume(engine, "v", b"then")
        original = Path(path).read_bytes()
        before = datetime.now(UTC)
        moment = await engine.begin_export(KEY, "v", kind)
        assert before <= moment <= datetime.now(UTC)
        write(path, b"now!")
        await engine.delete_volume("v")
        reports: list[Progress] = []
        image = await engine.finish_export(KEY, reports.append)
        assert Path(image.base_path).read_bytes() == original
        assert_same_disk(image, kind)
        assert (image.key, image.format, image.point_in_time) == (KEY, kind, moment)
        assert image.virtual_size_bytes == 4 * MIB
        assert image.size_bytes == os.path.getsize(image.artifact_path)
        assert image.checksum == ""
        assert image.source["type"] == "export-from-volume"
        assert image.source["volume-name"] == "v"
        assert reports
        assert all(report.percent <= 99 for report in reports)

    @pytest.mark.parametrize("kind", list(ImageFormat))
    async def test_each_step_of_an_export_may_be_repeated(
        self, engine: Engine, reopen: Reopen, kind: ImageFormat
    ) -> None:
        path = await make_volume(engine, "v", b"then")
        moment = await engine.begin_export(KEY, "v", kind)
        write(path, b"now!")
        assert await engine.begin_export(KEY, "v", kind) == moment
        engine = await reopen()
        assert await engine.begin_export(KEY, "v", kind) == moment
        assert await engine.find_image(KEY) is None
        assert await engine.list_images() == []
        image = await engine.finish_export(KEY, ignore_progress)
        assert await engine.finish_export(KEY, ignore_progress) == image
        assert await engine.begin_export(KEY, "v", kind) == moment
        assert await engine.find_image(KEY) == image
        assert await engine.list_images() == [image]
        assert await (await reopen()).list_images() == [image]
        assert read(image.base_path, 4) == b"then"

    async def test_one_image_is_one_export(self, engine: Engine) -> None:
        await engine.create_volume("v", MIB, BLANK)
        await engine.create_volume("w", MIB, BLANK)
        for _ in range(2):
            await engine.begin_export(KEY, "v", ImageFormat.RAW)
            with pytest.raises(AlreadyExists):
                await engine.begin_export(KEY, "w", ImageFormat.RAW)
            with pytest.raises(AlreadyExists):
                await engine.begin_export(KEY, "v", ImageFormat.QCOW2)
            await engine.finish_export(KEY, ignore_progress)

    async def test_what_was_not_begun_cannot_be_finished(self, engine: Engine) -> None:
        with pytest.raises(NotFound):
            await engine.begin_export(KEY, "v", ImageFormat.RAW)
        with pytest.raises(NotFound):
            await engine.finish_export(KEY, ignore_progress)

    async def test_a_discarded_export_begins_anew(self, engine: Engine) -> None:
        path = await make_volume(engine, "v", b"then")
        first = await engine.begin_export(KEY, "v", ImageFormat.RAW)
        await engine.discard_staging(KEY)
        await engine.discard_staging(KEY)
        write(path, b"now!")
        assert await engine.begin_export(KEY, "v", ImageFormat.RAW) > first
        image = await engine.finish_export(KEY, ignore_progress)
        assert read(image.base_path, 4) == b"now!"

    @pytest.mark.parametrize("kind", list(ImageFormat))
    async def test_a_volume_made_from_an_image_outlives_it(
        self, engine: Engine, kind: ImageFormat
    ) -> None:
        await make_volume(engine, "v", b"content", MIB)
        await export(engine, KEY, "v", kind)
        source = VolumeSource(image=KEY.name, image_uuid=KEY.uuid)
        with pytest.raises(SizeOutOfRange):
            await engine.create_volume("w", 512 * KIB, source)
        record = await engine.create_volume("w", 2 * MIB, source)
        await engine.delete_image(KEY)
        await engine.delete_image(KEY)
        assert await engine.find_image(KEY) is None
        assert read(record.path, 7) == b"content"
        assert read(record.path, MIB, MIB) == bytes(MIB)

    async def test_a_volume_of_a_source_elsewhere_is_made_from_what_was_brought_here(
        self, engine: Engine
    ) -> None:
        await make_volume(engine, "v", b"content", MIB)
        await export(engine, KEY, "v")
        source = VolumeSource(snapshot="elsewhere", handle="snap://far/elsewhere")
        record = await engine.create_volume("w", MIB, source, content=KEY)
        assert record.source == source
        assert await engine.create_volume("w", MIB, source, content=KEY) == record
        await engine.delete_image(KEY)
        assert await engine.create_volume("w", MIB, source) == record
        assert read(record.path, 7) == b"content"
        with pytest.raises(AlreadyExists):
            await engine.create_volume("w", MIB, VolumeSource(snapshot="other"))

    async def test_images_of_one_name_are_told_apart_by_uuid(self, engine: Engine) -> None:
        other = ImageKey(KEY.name, "99999999-2222-3333-4444-555555555555")
        path = await make_volume(engine, "v", b"then")
        await export(engine, KEY, "v")
        write(path, b"now!")
        second = await export(engine, other, "v")
        await engine.delete_image(KEY)
        assert await engine.list_images() == [second]
        assert read(second.base_path, 4) == b"now!"

    async def test_a_checksum_is_recorded_once(self, engine: Engine, reopen: Reopen) -> None:
        await engine.create_volume("v", MIB, BLANK)
        image = await export(engine, KEY, "v")
        recorded = await engine.record_checksum(KEY, "ab" * 64)
        assert recorded == replace(image, checksum="ab" * 64)
        assert await engine.record_checksum(KEY, "ab" * 64) == recorded
        engine = await reopen()
        assert await engine.find_image(KEY) == recorded
        with pytest.raises(Corrupt):
            await engine.record_checksum(KEY, "cd" * 64)

    async def test_a_download_is_committed_from_its_staging_directory(
        self, engine: Engine, reopen: Reopen
    ) -> None:
        promised = await stage_download(engine, KEY, b"x" * MIB)
        staging = await engine.staging_dir(KEY)
        (staging / "download.json").write_text("{}")
        assert await engine.find_image(KEY) is None
        image = await engine.commit_image(promised)
        assert await engine.commit_image(promised) == image
        expected = replace(promised, artifact_path=image.artifact_path, base_path=image.base_path)
        assert image == expected
        assert await (await reopen()).find_image(KEY) == image
        assert read(image.base_path, MIB) == b"x" * MIB
        kept = sorted(os.listdir(os.path.dirname(image.base_path)))
        assert kept == ["artifact", "base.raw", "image.json"]
        assert not staging.exists()

    async def test_a_download_of_another_size_is_not_committed(self, engine: Engine) -> None:
        promised = await stage_download(engine, KEY, b"x" * MIB)
        with pytest.raises(Corrupt, match="artifact"):
            await engine.commit_image(replace(promised, size_bytes=MIB + 1))
        with pytest.raises(Corrupt, match=r"base\.raw"):
            await engine.commit_image(replace(promised, virtual_size_bytes=2 * MIB))
        assert await engine.find_image(KEY) is None

    async def test_a_begun_download_survives_and_a_heap_of_bytes_does_not(
        self, engine: Engine, reopen: Reopen
    ) -> None:
        kept = await engine.staging_dir(KEY)
        (kept / "download.json").write_text("{}")
        (kept / "artifact").write_bytes(b"half")
        lost = await engine.staging_dir(ImageKey("lost", "u"))
        (lost / "artifact").write_bytes(b"half")
        engine = await reopen()
        assert await engine.staging_dir(KEY) == kept
        assert (kept / "artifact").read_bytes() == b"half"
        assert not lost.exists()
        await engine.delete_image(KEY)
        assert not kept.exists()


class EngineSuite(VolumeObligations, SnapshotObligations, ImageObligations):
    """All of it."""

    async def test_it_says_who_it_is(self, engine: Engine, reopen: Reopen) -> None:
        assert engine.name
        assert engine.clone_method in {"reflink", "copy"}
        pool_uuid = engine.pool_uuid
        assert (await reopen()).pool_uuid == pool_uuid


def settle(path: str) -> None:
    """Let the file system finish its accounts: btrfs frees and counts in the background."""
    subprocess.run(["sync", "--file-system", path], check=True)


def is_sharing(engine: Engine) -> bool:
    return engine.clone_method == "reflink"


def assert_same_disk(image: ImageRecord, kind: ImageFormat) -> None:
    """Let QEMU say whether the artifact is what it should be."""
    subprocess.run(
        ["qemu-img", "compare", "-f", str(kind), "-F", "raw", image.artifact_path, image.base_path],
        check=True,
        capture_output=True,
    )
