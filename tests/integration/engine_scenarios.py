"""What the crash tests interrupt: each operation of an engine, with what must be there before.

`operate` is called in a process that is killed at one of its steps, and called again by the next
process; it may return anything that can be compared.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from shorthorn.domain.models import (
    FormatState,
    ImageFormat,
    ImageKey,
    ImageRecord,
    VolumeSource,
)
from shorthorn.domain.ports import Engine
from shorthorn.engines.extent_budget import EXTENTS_MAX

MIB = 1 << 20
BLANK = VolumeSource()
KEY = ImageKey("golden", "11111111-2222-3333-4444-555555555555")
CONTENT = b"content of the volume" * 1000


@dataclass(frozen=True)
class Scenario:
    """One operation; what `prepare` makes, another process has finished."""

    prepare: Callable[[Engine], Awaitable[None]]
    operate: Callable[[Engine], Awaitable[object]]
    extents_max: int = EXTENTS_MAX


async def nothing(engine: Engine) -> None:
    """Start with an empty pool."""


async def volume(engine: Engine) -> None:
    record = await engine.create_volume("source", MIB, BLANK)
    with open(record.path, "r+b") as file:
        file.write(CONTENT)
        file.flush()
        os.fsync(file.fileno())


async def snapshot(engine: Engine) -> None:
    await volume(engine)
    await engine.create_snapshot("snap", "source")


async def begun_export_in_pieces(engine: Engine) -> None:
    """Begin the export of a volume that shares every other block with a snapshot."""
    await snapshot(engine)
    record = await engine.find_volume("source")
    assert record is not None
    with open(record.path, "r+b", buffering=0) as file:
        for block in range(0, MIB // 4096, 2):
            os.pwrite(file.fileno(), b"w" * 4096, block * 4096)
            os.pwrite(file.fileno(), b"x" * 4096, (block + 1) * 4096)
        os.fsync(file.fileno())
        await engine.create_snapshot("other", "source")
        for block in range(0, MIB // 4096, 2):
            os.pwrite(file.fileno(), b"y" * 4096, block * 4096)
        os.fsync(file.fileno())
    await engine.begin_export(KEY, "source", ImageFormat.RAW)


def begun_export(kind: ImageFormat) -> Callable[[Engine], Awaitable[None]]:
    async def prepare(engine: Engine) -> None:
        await volume(engine)
        await engine.begin_export(KEY, "source", kind)

    return prepare


async def image(engine: Engine) -> None:
    await begun_export(ImageFormat.QCOW2)(engine)
    await engine.finish_export(KEY, lambda progress: None)


async def begun_download(engine: Engine) -> None:
    staging = await engine.staging_dir(KEY)
    for name in ("artifact", "base.raw", "download.json"):
        (staging / name).write_bytes(CONTENT)


def downloaded() -> ImageRecord:
    return ImageRecord(
        key=KEY,
        format=ImageFormat.RAW,
        size_bytes=len(CONTENT),
        virtual_size_bytes=len(CONTENT),
        checksum="ab" * 64,
        source={"type": "download", "url": "http://images.test/a.img"},
        created_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        point_in_time=None,
        artifact_path="",
        base_path="",
    )


async def export(engine: Engine) -> object:
    moment = await engine.begin_export(KEY, "source", ImageFormat.QCOW2)
    return moment, await engine.finish_export(KEY, lambda progress: None)


async def look(engine: Engine) -> object:
    return await engine.list_volumes()


FROM_IMAGE = VolumeSource(image=KEY.name, image_uuid=KEY.uuid)

SCENARIOS = {
    "open a new pool": Scenario(nothing, look),
    "create a blank volume": Scenario(nothing, lambda e: e.create_volume("v", MIB, BLANK)),
    "clone a volume": Scenario(
        volume, lambda e: e.create_volume("v", 2 * MIB, VolumeSource(volume="source"))
    ),
    "clone a snapshot": Scenario(
        snapshot, lambda e: e.create_volume("v", 2 * MIB, VolumeSource(snapshot="snap"))
    ),
    "clone an image": Scenario(image, lambda e: e.create_volume("v", 2 * MIB, FROM_IMAGE)),
    "expand a volume": Scenario(volume, lambda e: e.expand_volume("source", 2 * MIB)),
    "record a format": Scenario(
        volume, lambda e: e.record_format("source", FormatState.FORMATTING, "ext4")
    ),
    "delete a volume": Scenario(volume, lambda e: e.delete_volume("source")),
    "create a snapshot": Scenario(volume, lambda e: e.create_snapshot("snap", "source")),
    "delete a snapshot": Scenario(snapshot, lambda e: e.delete_snapshot("snap")),
    "begin an export": Scenario(volume, lambda e: e.begin_export(KEY, "source", ImageFormat.QCOW2)),
    "finish an export to raw": Scenario(
        begun_export(ImageFormat.RAW), lambda e: e.finish_export(KEY, lambda progress: None)
    ),
    "finish an export to qcow2": Scenario(
        begun_export(ImageFormat.QCOW2), lambda e: e.finish_export(KEY, lambda progress: None)
    ),
    "finish an export in pieces": Scenario(
        begun_export_in_pieces,
        lambda e: e.finish_export(KEY, lambda progress: None),
        extents_max=8,
    ),
    "export": Scenario(volume, export),
    "commit a download": Scenario(begun_download, lambda e: e.commit_image(downloaded())),
    "discard a download": Scenario(begun_download, lambda e: e.discard_staging(KEY)),
    "record a checksum": Scenario(image, lambda e: e.record_checksum(KEY, "ab" * 64)),
    "delete an image": Scenario(image, lambda e: e.delete_image(KEY)),
    "delete a begun export": Scenario(begun_export(ImageFormat.RAW), lambda e: e.delete_image(KEY)),
}


def files_of(root: Path) -> list[Path]:
    """Return every file below `root`, in order."""
    return sorted(path for path in root.rglob("*") if path.is_file())
