"""Data in a pool that no object names is told, and left alone."""

from __future__ import annotations

from tests.fakes.memory_engine import MemoryEngine
from tests.fakes.registries import MemoryRegistry

from shorthorn.controllers.ownerless import find_ownerless
from shorthorn.domain.models import (
    ImageCopy,
    ImageCopySpec,
    ImageFormat,
    ImageKey,
    Meta,
    Snapshot,
    SnapshotSpec,
    Volume,
    VolumeSource,
    VolumeSpec,
)


async def test_only_data_without_an_object_is_found_and_nothing_is_removed() -> None:
    engine = MemoryEngine()
    for name in ("owned", "lost"):
        await engine.create_volume(name, 1 << 20, VolumeSource())
        await engine.create_snapshot(f"s-{name}", name)
        await engine.begin_export(ImageKey(f"i-{name}", "u"), name, ImageFormat.RAW)
        await engine.finish_export(ImageKey(f"i-{name}", "u"), lambda _: None)
    volumes, snapshots = MemoryRegistry(Volume), MemoryRegistry(Snapshot)
    copies = MemoryRegistry(ImageCopy)
    pool = engine.pool_uuid
    await volumes.create(Volume(Meta("owned"), VolumeSpec("owned", "n", pool, 1 << 20)))
    await snapshots.create(Snapshot(Meta("s-owned"), SnapshotSpec("s-owned", "owned", "n", pool)))
    await copies.create(ImageCopy(Meta("c"), ImageCopySpec("i-owned", "u", "n", pool, "download")))

    found = await find_ownerless(engine, volumes, snapshots, copies)

    assert sorted(found) == ["images/i-lost/u", "snapshots/s-lost", "volumes/lost"]
    assert await engine.find_volume("lost") is not None
