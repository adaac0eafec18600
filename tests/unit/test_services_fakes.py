"""The fakes keep the promises of the ports that they stand for."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest
from tests.fakes.memory_engine import MemoryEngine
from tests.fakes.registries import MemoryRegistry

from shorthorn.domain.errors import AlreadyExists, Conflict, InUse, NotFound, SizeOutOfRange
from shorthorn.domain.models import (
    ImageFormat,
    ImageKey,
    Meta,
    Volume,
    VolumeSource,
    VolumeSpec,
    VolumeState,
    VolumeStatus,
)

SPEC = VolumeSpec("pvc-1", "node-a", "pool", 1 << 30)
BLANK = VolumeSource()


@pytest.fixture
def registry() -> MemoryRegistry[Volume]:
    return MemoryRegistry(Volume)


def volume(*finalizers: str) -> Volume:
    return Volume(Meta("pvc-1", finalizers=finalizers), SPEC, VolumeStatus(VolumeState.READY))


async def test_create_ignores_the_status_and_refuses_a_second(
    registry: MemoryRegistry[Volume],
) -> None:
    made = await registry.create(volume())
    assert made.status == VolumeStatus()
    assert made.meta.uid
    assert made.meta.created_at
    with pytest.raises(AlreadyExists):
        await registry.create(volume())


async def test_update_leaves_the_status_alone_and_counts_generations_of_the_spec(
    registry: MemoryRegistry[Volume],
) -> None:
    made = await registry.create(volume())
    ready = await registry.update_status(
        dataclasses.replace(made, status=VolumeStatus(VolumeState.READY))
    )
    larger = dataclasses.replace(ready.spec, capacity_bytes=2 << 30)
    changed = await registry.update(
        dataclasses.replace(ready, spec=larger, status=VolumeStatus(VolumeState.FAILED))
    )
    assert changed.status.state is VolumeState.READY
    assert (made.meta.generation, ready.meta.generation, changed.meta.generation) == (1, 1, 2)


async def test_an_old_resource_version_is_a_conflict(registry: MemoryRegistry[Volume]) -> None:
    made = await registry.create(volume())
    await registry.update_status(made)
    with pytest.raises(Conflict):
        await registry.update(made)
    with pytest.raises(Conflict):
        await registry.update_status(made)


async def test_a_finalizer_keeps_an_object_until_it_is_taken_away(
    registry: MemoryRegistry[Volume],
) -> None:
    made = await registry.create(volume("one"))
    await registry.delete("pvc-1", uid="another")
    assert not registry.cached()[0].meta.deleting
    await registry.delete("pvc-1", uid=made.meta.uid)
    doomed = await registry.find("pvc-1")
    assert doomed is not None
    assert doomed.meta.deleting
    released = dataclasses.replace(doomed.meta, finalizers=())
    await registry.update(dataclasses.replace(doomed, meta=released))
    assert await registry.find("pvc-1") is None
    await registry.delete("pvc-1")
    with pytest.raises(NotFound):
        await registry.update(doomed)


async def test_wait_sees_the_present_and_every_change(registry: MemoryRegistry[Volume]) -> None:
    assert await registry.wait("pvc-1", lambda v: v is None, timeout_s=1) is None
    waiting = asyncio.create_task(registry.wait("pvc-1", lambda v: v is not None, timeout_s=5))
    await asyncio.sleep(0)
    await registry.create(volume())
    found = await waiting
    assert found is not None
    with pytest.raises(TimeoutError):
        await registry.wait("pvc-1", lambda v: v is None, timeout_s=0.01)


async def test_subscribers_are_told_what_exists_and_what_changes(
    registry: MemoryRegistry[Volume],
) -> None:
    await registry.create(volume())
    async with registry.subscribe() as names:
        assert await anext(names) == "pvc-1"
        await registry.delete("pvc-1")
        assert await anext(names) == "pvc-1"


async def test_the_engine_repeats_its_answers_and_refuses_other_content() -> None:
    engine = MemoryEngine()
    first = await engine.create_volume("pvc-1", 1 << 30, BLANK)
    assert await engine.create_volume("pvc-1", 1 << 30, BLANK) == first
    with pytest.raises(AlreadyExists):
        await engine.create_volume("pvc-1", 2 << 30, BLANK)
    snapshot = await engine.create_snapshot("s", "pvc-1")
    assert await engine.create_snapshot("s", "pvc-1") == snapshot
    key = ImageKey("golden", "u")
    when = await engine.begin_export(key, "pvc-1", ImageFormat.RAW)
    assert await engine.begin_export(key, "pvc-1", ImageFormat.RAW) == when


async def test_the_engine_clones_content_as_it_was() -> None:
    engine = MemoryEngine()
    record = await engine.create_volume("pvc-1", 1 << 30, BLANK)
    engine.contents[record.path] = "before"
    await engine.create_snapshot("s", "pvc-1")
    key = ImageKey("golden", "u")
    await engine.begin_export(key, "pvc-1", ImageFormat.QCOW2)
    engine.contents[record.path] = "after"
    await engine.finish_export(key, lambda _: None)
    copies = {
        "from-snapshot": VolumeSource(snapshot="s"),
        "from-image": VolumeSource(image="golden", image_uuid="u"),
        "from-volume": VolumeSource(volume="pvc-1"),
    }
    for name, source in copies.items():
        await engine.create_volume(name, 1 << 30, source)
    held = {name: engine.contents[engine.volumes[name].path] for name in copies}
    assert held == {"from-snapshot": "before", "from-image": "before", "from-volume": "after"}


async def test_the_engine_refuses_what_every_engine_refuses() -> None:
    engine = MemoryEngine()
    await engine.create_volume("pvc-1", 1 << 30, BLANK)
    with pytest.raises(NotFound):
        await engine.create_volume("pvc-2", 1 << 30, VolumeSource(snapshot="none"))
    with pytest.raises(SizeOutOfRange):
        await engine.create_volume("pvc-2", 1 << 20, VolumeSource(volume="pvc-1"))
    engine.used_by["pvc-1"] = "a mount"
    with pytest.raises(InUse):
        await engine.delete_volume("pvc-1")
    await engine.delete_volume("pvc-none")
