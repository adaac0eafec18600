"""Volumes and snapshots of a pool: what is written down, and what is tried again."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest
from tests.fakes.memory_engine import MemoryEngine
from tests.fakes.registries import MemoryRegistry

from shorthorn.controllers.volumes import SnapshotReconciler, VolumeReconciler
from shorthorn.domain.errors import DomainError, InUse, NoSpace, NotFound, Unavailable
from shorthorn.domain.models import (
    FileUsage,
    Meta,
    Snapshot,
    SnapshotSpec,
    Volume,
    VolumeSource,
    VolumeSpec,
    VolumeState,
)
from shorthorn.domain.planning import DATA_FINALIZER
from shorthorn.kit.keyed import KeyedLocks

MIB = 1 << 20
BLANK = VolumeSource()


class CountingEngine(MemoryEngine):
    """Counts how often volumes are measured."""

    measured = 0

    async def measure_volume(self, volume_id: str) -> FileUsage:
        self.measured += 1
        return await super().measure_volume(volume_id)


class Host:
    """Registries and pool, which outlive the process; the reconcilers are the process."""

    def __init__(self) -> None:
        self.volumes: MemoryRegistry[Volume] = MemoryRegistry(Volume)
        self.snapshots: MemoryRegistry[Snapshot] = MemoryRegistry(Snapshot)
        self.engine = CountingEngine()
        self.locks: KeyedLocks[str] = KeyedLocks()
        self.restart()

    def restart(self) -> None:
        """Put a new process in the place of the old one."""
        self.volume = VolumeReconciler(self.volumes, self.engine, self.locks)
        self.snapshot = SnapshotReconciler(self.snapshots, self.engine, self.locks)

    async def create(self, name: str = "v", *, source: VolumeSource = BLANK, size: int = 4) -> None:
        spec = VolumeSpec(name, "node-a", self.engine.pool_uuid, size * MIB, source)
        await self.volumes.create(Volume(Meta(name), spec))

    async def create_snapshot(self, name: str = "s", *, volume: str = "v") -> None:
        spec = SnapshotSpec(name, volume, "node-a", self.engine.pool_uuid)
        await self.snapshots.create(Snapshot(Meta(name), spec))

    async def settle(self, name: str = "v", *, looks: int = 20) -> None:
        """Reconcile until nothing is to be done soon."""
        for _ in range(looks):
            if await self.volume.reconcile(name) != 0:
                return
        raise AssertionError(f"does not settle: {await self.volumes.find(name)}")

    async def settle_snapshot(self, name: str = "s", *, looks: int = 20) -> None:
        for _ in range(looks):
            if await self.snapshot.reconcile(name) != 0:
                return
        raise AssertionError(f"does not settle: {await self.snapshots.find(name)}")

    async def get(self, name: str = "v") -> Volume:
        volume = await self.volumes.find(name)
        assert volume is not None
        return volume

    async def get_snapshot(self, name: str = "s") -> Snapshot:
        snapshot = await self.snapshots.find(name)
        assert snapshot is not None
        return snapshot


@pytest.fixture
def host() -> Host:
    return Host()


async def test_a_volume_is_held_made_and_reported(host: Host) -> None:
    await host.create()
    await host.settle()
    volume = await host.get()
    assert volume.meta.finalizers == (DATA_FINALIZER,)
    assert volume.status.state is VolumeState.READY
    assert volume.status.capacity_bytes == 4 * MIB
    assert [verb for verb, _ in host.volumes.writes] == ["create", "update", "status"]


@pytest.mark.parametrize("steps", range(1, 5))
async def test_a_new_process_goes_on_after_any_step(host: Host, steps: int) -> None:
    await host.create()
    for _ in range(steps):
        await host.volume.reconcile("v")
    host.restart()
    await host.settle()
    assert (await host.get()).status.state is VolumeState.READY
    assert host.engine.calls == [("create_volume", "v")]


async def test_a_volume_grows_to_its_new_size(host: Host) -> None:
    await host.create()
    await host.settle()
    volume = await host.get()
    larger = dataclasses.replace(volume.spec, capacity_bytes=8 * MIB)
    await host.volumes.update(dataclasses.replace(volume, spec=larger))
    await host.settle()
    status = (await host.get()).status
    assert status.capacity_bytes == host.engine.volumes["v"].capacity_bytes == 8 * MIB
    assert status.observed_generation == 2


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(NoSpace("pool", 9, 1), id="no space"),
        pytest.param(NotFound("image", "golden"), id="source gone"),
    ],
)
async def test_what_cannot_be_made_fails_once(host: Host, error: DomainError) -> None:
    host.engine.faults["create_volume"] = error
    await host.create()
    await host.settle()
    status = (await host.get()).status
    assert (status.state, status.reason, status.message) == (
        VolumeState.FAILED,
        error.reason,
        str(error),
    )
    host.restart()
    await host.settle()
    assert host.engine.calls == [("create_volume", "v")]


async def test_what_may_pass_shows_in_the_status_and_is_tried_again(host: Host) -> None:
    host.engine.faults["create_volume"] = Unavailable("pool", "busy")
    await host.create()
    await host.volume.reconcile("v")
    with pytest.raises(Unavailable):
        await host.volume.reconcile("v")
    status = (await host.get()).status
    assert (status.state, status.message) == (VolumeState.PENDING, "pool: busy")
    await host.settle()
    status = (await host.get()).status
    assert (status.state, status.message) == (VolumeState.READY, "")


async def test_the_same_failure_is_written_down_once(host: Host) -> None:
    await host.create()
    await host.volume.reconcile("v")
    for _ in range(5):
        host.engine.faults["create_volume"] = Unavailable("pool", "busy")
        with pytest.raises(Unavailable):
            await host.volume.reconcile("v")
    assert [verb for verb, _ in host.volumes.writes].count("status") == 1


async def test_a_volume_that_cannot_grow_stays_ready_and_says_why(host: Host) -> None:
    await host.create()
    await host.settle()
    volume = await host.get()
    larger = dataclasses.replace(volume.spec, capacity_bytes=8 * MIB)
    await host.volumes.update(dataclasses.replace(volume, spec=larger))
    host.engine.faults["expand_volume"] = NoSpace("pool", 9, 1)
    with pytest.raises(NoSpace):
        await host.volume.reconcile("v")
    status = (await host.get()).status
    assert (status.state, status.reason) == (VolumeState.READY, "NoSpace")
    assert (status.capacity_bytes, status.observed_generation) == (4 * MIB, 2)


async def test_a_volume_half_way_to_its_size_fails_without_turning_in_circles(host: Host) -> None:
    await host.create(size=8)
    await host.engine.create_volume("v", 4 * MIB, BLANK)
    host.engine.faults["expand_volume"] = NoSpace("pool", 9, 1)
    await host.settle()
    assert (await host.get()).status.state is VolumeState.FAILED


async def test_data_that_is_gone_is_reported_and_never_made_anew(host: Host) -> None:
    await host.create()
    await host.settle()
    host.engine.volumes.clear()
    await host.settle()
    status = (await host.get()).status
    assert (status.state, status.reason) == (VolumeState.FAILED, "Corrupt")
    await host.settle()
    assert host.engine.volumes == {}


async def test_deletion_removes_the_data_before_the_object(host: Host) -> None:
    await host.create()
    await host.settle()
    await host.volumes.delete("v")
    await host.volume.reconcile("v")
    assert host.engine.volumes == {}
    assert (await host.get()).meta.deleting
    await host.settle()
    assert await host.volumes.find("v") is None


async def test_a_volume_in_use_is_kept_and_says_by_whom(host: Host) -> None:
    await host.create()
    await host.settle()
    await host.volumes.delete("v")
    host.engine.used_by["v"] = "a loop device"
    with pytest.raises(InUse):
        await host.volume.reconcile("v")
    volume = await host.get()
    assert "a loop device" in volume.status.message
    assert volume.meta.finalizers == (DATA_FINALIZER,)
    host.engine.used_by.clear()
    host.restart()
    await host.settle()
    assert await host.volumes.find("v") is None


async def test_a_volume_deleted_before_it_was_made_leaves_nothing(host: Host) -> None:
    await host.create()
    await host.volume.reconcile("v")
    await host.volumes.delete("v")
    await host.settle()
    assert await host.volumes.find("v") is None
    assert host.engine.calls == []


async def test_a_volume_that_rests_is_not_measured_at_every_look(host: Host) -> None:
    await host.create()
    await host.settle()
    assert host.engine.measured == 1
    for _ in range(10):
        assert (await host.volume.reconcile("v") or 0) > 1
    assert host.engine.measured == 1


async def test_a_start_does_not_measure_all_volumes_at_once(host: Host) -> None:
    names = [f"v{number}" for number in range(40)]
    for name in names:
        await host.create(name)
        await host.settle(name)
    measured = host.engine.measured
    host.restart()
    delays = [await host.volume.reconcile(name) or 0 for name in names]
    assert host.engine.measured - measured < 5
    assert max(delays) - min(delays) > 5


async def test_a_clone_waits_while_its_source_is_being_changed(host: Host) -> None:
    await host.create("source")
    await host.settle("source")
    await host.create("clone", source=VolumeSource(volume="source"))
    await host.volume.reconcile("clone")
    async with host.locks.hold(["source"]):
        making = asyncio.create_task(host.volume.reconcile("clone"))
        for _ in range(20):
            await asyncio.sleep(0)
        assert "clone" not in host.engine.volumes
    await making
    assert "clone" in host.engine.volumes


async def test_objects_of_another_pool_are_left_alone(host: Host) -> None:
    spec = VolumeSpec("v", "node-b", "another", MIB)
    await host.volumes.create(Volume(Meta("v"), spec))
    assert await host.volume.reconcile("v") is None
    assert await host.volume.reconcile("unknown") is None
    assert await host.snapshot.reconcile("unknown") is None
    assert (await host.get()).meta.finalizers == ()


async def test_a_snapshot_is_held_made_and_reported(host: Host) -> None:
    await host.create()
    await host.settle()
    await host.create_snapshot()
    await host.settle_snapshot()
    status = (await host.get_snapshot()).status
    assert (status.state, status.size_bytes) == (VolumeState.READY, 4 * MIB)
    assert status.point_in_time == host.engine.snapshots["s"].point_in_time


@pytest.mark.parametrize("steps", range(2, 5))
async def test_a_snapshot_is_taken_once_whatever_process_reports_it(host: Host, steps: int) -> None:
    await host.create()
    await host.settle()
    await host.create_snapshot()
    host.snapshots.update_status = _lost_once(host.snapshots.update_status)  # type: ignore[method-assign]
    for _ in range(steps):
        try:
            await host.snapshot.reconcile("s")
        except Unavailable:
            continue
    taken = [record.point_in_time for record in host.engine.snapshots.values()]
    host.restart()
    await host.settle_snapshot()
    when = (await host.get_snapshot()).status.point_in_time
    assert taken in ([], [when])


async def test_a_snapshot_of_nothing_fails_once(host: Host) -> None:
    await host.create_snapshot(volume="gone")
    await host.settle_snapshot()
    status = (await host.get_snapshot()).status
    assert (status.state, status.reason) == (VolumeState.FAILED, "NotFound")
    await host.settle_snapshot()
    assert host.engine.calls == [("create_snapshot", "s")]


async def test_a_snapshot_that_may_be_had_later_says_so_and_is_tried_again(host: Host) -> None:
    await host.create()
    await host.settle()
    await host.create_snapshot()
    await host.snapshot.reconcile("s")
    for _ in range(3):
        host.engine.faults["create_snapshot"] = Unavailable("freezer", "busy")
        with pytest.raises(Unavailable):
            await host.snapshot.reconcile("s")
    status = (await host.get_snapshot()).status
    assert (status.state, status.message) == (VolumeState.PENDING, "freezer: busy")
    assert [verb for verb, _ in host.snapshots.writes].count("status") == 1
    await host.settle_snapshot()
    assert (await host.get_snapshot()).status.state is VolumeState.READY


async def test_a_snapshot_goes_with_its_data_and_is_missed_when_that_goes_alone(
    host: Host,
) -> None:
    await host.create()
    await host.settle()
    for name in ("kept", "lost"):
        await host.create_snapshot(name)
        await host.settle_snapshot(name)
    del host.engine.snapshots["lost"]
    await host.settle_snapshot("lost")
    assert (await host.get_snapshot("lost")).status.reason == "Corrupt"
    await host.snapshots.delete("kept")
    await host.settle_snapshot("kept")
    assert await host.snapshots.find("kept") is None
    assert host.engine.snapshots == {}


def _lost_once(method: Any) -> Any:
    """Return a method whose first call is lost on the way."""
    lost = [Unavailable("API server", "away")]

    async def call(*arguments: Any) -> Any:
        if lost:
            raise lost.pop()
        return await method(*arguments)

    return call
