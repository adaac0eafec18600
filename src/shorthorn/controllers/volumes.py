"""Volumes and snapshots of this node's pool: make the disk agree with the objects.

Owns: reconciling Volume and Snapshot. Must never: decide what to do next (`domain.planning` does)
or answer CSI. Run by `controllers.controller` on the node that owns the pool. What is not in this
pool is brought by `controllers.contents`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import Awaitable, Callable

from shorthorn.controllers.contents import Content, ContentFetcher
from shorthorn.controllers.finalizers import hold, release
from shorthorn.controllers.outcomes import is_final, reason_of
from shorthorn.domain import planning
from shorthorn.domain.errors import InUse
from shorthorn.domain.models import (
    ImageKey,
    Snapshot,
    SnapshotStatus,
    Volume,
    VolumeState,
    VolumeStatus,
)
from shorthorn.domain.node_ports import VolumeUse
from shorthorn.domain.planning import Step
from shorthorn.domain.ports import Engine, Registry
from shorthorn.kit.keyed import KeyedLocks

_MEASURE_S = 60.0
"""How often a volume's allocated and shared bytes are looked at again. One look takes 0.3 ms
(measured), so 10,000 volumes take 5 % of a core."""


class VolumeReconciler:
    """One Volume at a time. `contents` brings sources of other nodes; None: there are none. `use`
    tells who uses a volume: its data stays.
    """

    def __init__(
        self,
        volumes: Registry[Volume],
        engine: Engine,
        locks: KeyedLocks[str],
        *,
        contents: ContentFetcher | None = None,
        use: VolumeUse | None = None,
    ) -> None:
        self._volumes = volumes
        self._contents = contents
        self._engine = engine
        self._locks = locks
        self._use = use
        #: When each volume is to be measured again, in the loop's time.
        self._measure_at: dict[str, float] = {}

    async def reconcile(self, name: str) -> float | None:
        volume = await self._volumes.find(name)
        if self._contents is not None:
            await self._contents.sweep()
        if volume is None:
            await self._forget(name)
        if volume is None or volume.spec.pool_uuid != self._engine.pool_uuid:
            return None
        record = await self._engine.find_volume(name)
        step = planning.plan_volume(volume, record)
        match step:
            case Step.NOTHING:
                return await self._refresh(volume)
            case Step.HOLD:
                await hold(self._volumes, volume)
            case Step.RELEASE:
                if self._contents is not None:
                    await self._contents.remove(volume)
                await release(self._volumes, volume)
            case Step.CREATE:
                return await self._create(volume)
            case Step.REPORT_LOST:
                await self._fail(volume, "Corrupt", "the volume's data is gone from its pool")
                return None
            case Step.DELETE:
                return await self._attempt(volume, lambda: self._delete(name))
            case _:
                return await self._attempt(volume, lambda: self._make(volume))
        return 0

    async def _create(self, volume: Volume) -> float | None:
        """Make the volume once its source is in this pool; until then say how far that is."""
        content = Content()

        async def work() -> None:
            nonlocal content
            if self._contents is not None:
                content = await self._contents.bring(volume)
            if content.is_here:
                await self._make(volume, content.key)

        again_s = await self._attempt(volume, work)
        if again_s is None or content.is_here:
            return again_s
        status = dataclasses.replace(volume.status, reason=content.reason, message=content.message)
        await self._report(volume, status)
        return content.again_s

    async def _make(self, volume: Volume, content: ImageKey | None = None) -> None:
        spec = volume.spec
        keys = {volume.meta.name, *filter(None, [spec.source.volume])}
        async with self._locks.hold(keys):
            record = await self._engine.find_volume(volume.meta.name)
            if record is None:
                record = await self._engine.create_volume(
                    volume.meta.name, spec.capacity_bytes, spec.source, content=content
                )
            is_grown = record.capacity_bytes >= spec.capacity_bytes
            if not is_grown or 0 < volume.status.capacity_bytes < spec.capacity_bytes:
                # Also where the record says it and the status does not: who grew it may have died
                # before its device, of which users would then see the old size.
                record = await self._engine.expand_volume(volume.meta.name, spec.capacity_bytes)
        if self._contents is not None and volume.status.state is not VolumeState.READY:
            await self._contents.remove(volume)
        status = VolumeStatus(
            state=VolumeState.READY,
            capacity_bytes=record.capacity_bytes,
            observed_generation=volume.meta.generation,
        )
        await self._report(volume, await self._measured(volume.meta.name, status))

    async def _forget(self, name: str) -> None:
        self._measure_at.pop(name, None)
        if self._contents is not None:
            await self._contents.forget(name)

    async def _delete(self, name: str) -> None:
        async with self._locks.hold([name]):
            # A block volume may be bound for a workload and not open: the engine would not notice.
            user = await self._use.find_user(name) if self._use is not None else None
            if user:
                raise InUse("volume", name, user)
            await self._engine.delete_volume(name)

    async def _refresh(self, volume: Volume) -> float | None:
        if volume.status.state is not VolumeState.READY or volume.meta.deleting:
            return None
        now = asyncio.get_running_loop().time()
        # Known from before this process: spread, or a start would measure all volumes at once.
        due = self._measure_at.setdefault(volume.meta.name, now + random.uniform(0, _MEASURE_S))
        if now < due:
            return due - now
        await self._report(volume, await self._measured(volume.meta.name, volume.status))
        return _MEASURE_S

    async def _measured(self, name: str, status: VolumeStatus) -> VolumeStatus:
        usage = await self._engine.measure_volume(name)
        self._measure_at[name] = asyncio.get_running_loop().time() + _MEASURE_S
        return dataclasses.replace(
            status,
            allocated_bytes=usage.allocated_bytes,
            shared_bytes=usage.shared_bytes,
            extent_count=usage.extent_count,
        )

    async def _attempt(self, volume: Volume, work: Callable[[], Awaitable[None]]) -> float | None:
        """Do `work`; a final error becomes the volume's status, others also show there and are
        tried again. A volume that is ready stays so, whatever its expansion or deletion met.

        Returns: 0: look on at once; None: it failed finally.
        """
        is_ready = volume.status.state is VolumeState.READY
        try:
            await work()
        except Exception as exc:
            if is_final(exc) and not volume.meta.deleting and not is_ready:
                await self._fail(volume, reason_of(exc), str(exc))
                return None
            status = dataclasses.replace(
                volume.status,
                reason=reason_of(exc),
                message=str(exc),
                observed_generation=volume.meta.generation,
            )
            await self._report(volume, status)
            raise
        return 0

    async def _fail(self, volume: Volume, reason: str, message: str) -> None:
        status = dataclasses.replace(
            volume.status, state=VolumeState.FAILED, reason=reason, message=message
        )
        await self._report(volume, status)

    async def _report(self, volume: Volume, status: VolumeStatus) -> None:
        if status == volume.status:
            return
        await self._volumes.update_status(dataclasses.replace(volume, status=status))


class SnapshotReconciler:
    """One Snapshot at a time."""

    def __init__(
        self, snapshots: Registry[Snapshot], engine: Engine, locks: KeyedLocks[str]
    ) -> None:
        self._snapshots = snapshots
        self._engine = engine
        self._locks = locks

    async def reconcile(self, name: str) -> float | None:
        snapshot = await self._snapshots.find(name)
        if snapshot is None or snapshot.spec.pool_uuid != self._engine.pool_uuid:
            return None
        record = await self._engine.find_snapshot(name)
        match planning.plan_snapshot(snapshot, record):
            case Step.NOTHING:
                return None
            case Step.HOLD:
                await hold(self._snapshots, snapshot)
            case Step.RELEASE:
                await release(self._snapshots, snapshot)
            case Step.DELETE:
                await self._engine.delete_snapshot(name)
            case Step.REPORT_LOST:
                await self._fail(snapshot, "Corrupt", "the snapshot's data is gone from its pool")
            case _:
                await self._make(snapshot)
        return 0

    async def _make(self, snapshot: Snapshot) -> None:
        name, volume_id = snapshot.meta.name, snapshot.spec.volume_id
        try:
            async with self._locks.hold([volume_id]):
                record = await self._engine.create_snapshot(name, volume_id)
        except Exception as exc:
            if is_final(exc):
                await self._fail(snapshot, reason_of(exc), str(exc))
                return
            status = SnapshotStatus(reason=reason_of(exc), message=str(exc))
            if status != snapshot.status:
                await self._report(snapshot, status)
            raise
        usage = await self._engine.measure_snapshot(name)
        status = SnapshotStatus(
            state=VolumeState.READY,
            point_in_time=record.point_in_time,
            size_bytes=record.size_bytes,
            allocated_bytes=usage.allocated_bytes,
            shared_bytes=usage.shared_bytes,
        )
        await self._report(snapshot, status)

    async def _fail(self, snapshot: Snapshot, reason: str, message: str) -> None:
        status = SnapshotStatus(state=VolumeState.FAILED, reason=reason, message=message)
        await self._report(snapshot, status)

    async def _report(self, snapshot: Snapshot, status: SnapshotStatus) -> None:
        await self._snapshots.update_status(dataclasses.replace(snapshot, status=status))
