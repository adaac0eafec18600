"""The local engine: volumes, snapshots and images as files on one pool directory of this host.

Owns nothing but the composition; each kind has its module. Must never know Kubernetes or CSI.
Called through `domain.ports.Engine` by services and controllers; made by `daemon`.

The pool is a directory on XFS or btrfs, where every copy is a reflink: constant in bytes, about
20 µs per extent. On another file system copies are copies, and a volume that is in use is refused.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from shorthorn.domain.errors import InUse, NotFound, Unavailable
from shorthorn.domain.models import PoolUsage
from shorthorn.engines.exports import Exports
from shorthorn.engines.extent_budget import EXTENTS_MAX
from shorthorn.engines.failures import translated
from shorthorn.engines.images import Images
from shorthorn.engines.pool import open_pool
from shorthorn.engines.snapshots import Snapshots
from shorthorn.engines.volumes import Volumes
from shorthorn.host.locks import DirectoryLock, DirectoryOwned
from shorthorn.kit.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from pathlib import Path

    from shorthorn.domain.models import (
        FileUsage,
        FormatState,
        ImageFormat,
        ImageKey,
        ImageRecord,
        SnapshotRecord,
        VolumeRecord,
        VolumeSource,
    )
    from shorthorn.domain.ports import ReportProgress
    from shorthorn.engines.pool import OpenPool
    from shorthorn.engines.staging import StepObserver


class _Parts:
    """What exists once the pool is open."""

    def __init__(self, pool: OpenPool) -> None:
        self.pool = pool
        self.volumes = Volumes(pool)
        self.snapshots = Snapshots(pool)
        self.images = Images(pool)
        self.exports = Exports(pool, self.images)


class LocalEngine:
    """`ports.Engine` on the directory `root`; see there for what each method promises.

    Args: owner: who we are, for a second process that wants the pool.
        extents_max: an image with more of them is rewritten in one piece before it is committed.
        reached: told of every durable step, in order, possibly on another thread; for tests that
            end the process at one of them.
    """

    def __init__(
        self,
        root: Path,
        *,
        owner: str = "shorthorn",
        extents_max: int = EXTENTS_MAX,
        reached: StepObserver = lambda step: None,
    ) -> None:
        self._root = root
        self._lock = DirectoryLock(root, owner=owner)
        self._reached = reached
        self._extents_max = extents_max
        self._opened: _Parts | None = None

    @property
    def _parts(self) -> _Parts:
        if self._opened is None:
            raise Unavailable(f"pool {self._root}", "it is not open")
        return self._opened

    @property
    def name(self) -> str:
        return "local"

    @property
    def clone_method(self) -> str:
        return self._parts.pool.cloner.method

    @property
    def pool_uuid(self) -> str:
        return self._parts.pool.uuid

    async def open(self) -> None:
        """See ports.Engine. Owns the pool from here on until `close`.

        Raises: NotFound: no such directory. InUse: another process owns it, which is named.
            WrongState: a newer version's pool. Corrupt.
        """
        if not self._root.is_dir():
            raise NotFound("pool", str(self._root))
        async with translated(self._root, "pool", str(self._root)):
            # Before the thaw and the sweep: both would hurt an owner who is at work.
            await self._acquire()
            try:
                parts = _Parts(await open_pool(self._root, self._reached, self._extents_max))
                await parts.images.finish_commits()
            except BaseException:
                self._lock.release()
                raise
            self._opened = parts

    async def _acquire(self) -> None:
        try:
            await in_thread(self._lock.acquire)
        except DirectoryOwned as exc:
            owner = exc.owner
            by = f"{owner.name} (process {owner.pid})" if owner else "a process that is starting"
            raise InUse("pool", str(self._root), by) from exc

    async def usage(self) -> PoolUsage:
        async with translated(self._root, "pool", str(self._root)):
            status = await in_thread(os.statvfs, self._root)
        return PoolUsage(
            capacity_bytes=status.f_blocks * status.f_frsize,
            allocated_bytes=(status.f_blocks - status.f_bfree) * status.f_frsize,
            available_bytes=status.f_bavail * status.f_frsize,
        )

    async def create_volume(
        self,
        volume_id: str,
        capacity_bytes: int,
        source: VolumeSource,
        *,
        content: ImageKey | None = None,
    ) -> VolumeRecord:
        return await self._parts.volumes.create(volume_id, capacity_bytes, source, content=content)

    async def find_volume(self, volume_id: str) -> VolumeRecord | None:
        return await self._parts.volumes.find(volume_id)

    async def list_volumes(self) -> Sequence[VolumeRecord]:
        return await self._parts.volumes.list()

    async def expand_volume(self, volume_id: str, capacity_bytes: int) -> VolumeRecord:
        return await self._parts.volumes.expand(volume_id, capacity_bytes)

    async def delete_volume(self, volume_id: str) -> None:
        await self._parts.volumes.delete(volume_id)

    async def measure_volume(self, volume_id: str) -> FileUsage:
        return await self._parts.volumes.measure(volume_id)

    async def record_format(self, volume_id: str, state: FormatState, fs_type: str) -> VolumeRecord:
        return await self._parts.volumes.record_format(volume_id, state, fs_type)

    async def create_snapshot(self, snapshot_id: str, volume_id: str) -> SnapshotRecord:
        existing = await self._parts.snapshots.find_of(snapshot_id, volume_id)
        if existing is not None:
            return existing
        volume = await self._parts.volumes.get(volume_id)
        return await self._parts.snapshots.create(snapshot_id, volume)

    async def find_snapshot(self, snapshot_id: str) -> SnapshotRecord | None:
        return await self._parts.snapshots.find(snapshot_id)

    async def list_snapshots(self) -> Sequence[SnapshotRecord]:
        return await self._parts.snapshots.list()

    async def delete_snapshot(self, snapshot_id: str) -> None:
        await self._parts.snapshots.delete(snapshot_id)

    async def measure_snapshot(self, snapshot_id: str) -> FileUsage:
        return await self._parts.snapshots.measure(snapshot_id)

    async def begin_export(
        self, key: ImageKey, volume_id: str, export_format: ImageFormat
    ) -> datetime:
        return await self._parts.exports.begin(
            key, volume_id, export_format, self._parts.volumes.get
        )

    async def finish_export(self, key: ImageKey, report: ReportProgress) -> ImageRecord:
        return await self._parts.exports.finish(key, report)

    async def staging_dir(self, key: ImageKey) -> Path:
        return await self._parts.images.staging_dir(key)

    async def commit_image(self, record: ImageRecord) -> ImageRecord:
        return await self._parts.images.commit_downloaded(record)

    async def discard_staging(self, key: ImageKey) -> None:
        await self._parts.images.discard_staging(key)

    async def find_image(self, key: ImageKey) -> ImageRecord | None:
        return await self._parts.images.find(key)

    async def list_images(self) -> Sequence[ImageRecord]:
        return await self._parts.images.list()

    async def record_checksum(self, key: ImageKey, checksum: str) -> ImageRecord:
        return await self._parts.images.record_checksum(key, checksum)

    async def delete_image(self, key: ImageKey) -> None:
        await self._parts.images.delete(key)

    async def measure_image(self, key: ImageKey) -> FileUsage:
        return await self._parts.images.measure(key)

    async def close(self) -> None:
        """See ports.Engine. May be called again, and when it was never open."""
        if self._opened is not None:
            self._opened = None
            self._lock.release()
