"""Snapshots: copies of a volume at one moment that stay as they are.

Owns `snapshots/<id>/`. Must never know what uses one. Called by `engines.local`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shorthorn.domain.errors import AlreadyExists, NotFound
from shorthorn.engines import records
from shorthorn.engines.catalogue import Catalogue, subdirectories
from shorthorn.engines.failures import cleaned_up, translated
from shorthorn.engines.layout import SNAPSHOT_DATA, SNAPSHOT_RECORD, VOLUME_DATA, is_name
from shorthorn.host import extents
from shorthorn.kit.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from shorthorn.domain.models import FileUsage, SnapshotRecord, VolumeRecord
    from shorthorn.engines.pool import OpenPool


class Snapshots:
    """The snapshots of one open pool."""

    def __init__(self, pool: OpenPool) -> None:
        self._pool = pool
        self._catalogue = Catalogue(
            "snapshot",
            SNAPSHOT_RECORD,
            records.SnapshotJson,
            records.SnapshotJson.record,
            lambda: subdirectories(pool.layout.snapshots),
        )

    async def create(self, snapshot_id: str, volume: VolumeRecord) -> SnapshotRecord:
        """See ports.Engine."""
        directory = self._pool.layout.snapshot(snapshot_id)
        source = self._pool.layout.volume(volume.volume_id) / VOLUME_DATA
        needed_bytes = self._pool.cloner.cost_bytes(source)
        async with (
            translated(self._pool.root, "snapshot", snapshot_id, needed_bytes=needed_bytes),
            cleaned_up(self._pool.staging, directory),
        ):
            return await self._build(directory, source, volume.volume_id)

    async def _build(self, directory: Path, source: Path, volume_id: str) -> SnapshotRecord:
        staging = self._pool.staging
        staged = await staging.begin(directory)
        data = staged / SNAPSHOT_DATA
        moment = await self._pool.capture.take(volume_id, source, data)
        content = records.SnapshotJson(
            snapshot_id=directory.name,
            volume_id=volume_id,
            size_bytes=data.stat().st_size,
            point_in_time=moment,
        )
        await staging.write_record(staged / SNAPSHOT_RECORD, content)
        await staging.commit(directory)
        return content.record(directory)

    async def find_of(self, snapshot_id: str, volume_id: str) -> SnapshotRecord | None:
        """Return the snapshot. Raises AlreadyExists where it is one of another volume."""
        found = await self.find(snapshot_id)
        if found is not None and found.volume_id != volume_id:
            raise AlreadyExists("snapshot", snapshot_id, f"it is of volume {found.volume_id}")
        return found

    async def find(self, snapshot_id: str) -> SnapshotRecord | None:
        """See ports.Engine."""
        if not is_name(snapshot_id):
            return None
        return await in_thread(self._catalogue.find, self._pool.layout.snapshot(snapshot_id))

    async def list(self) -> Sequence[SnapshotRecord]:
        """See ports.Engine."""
        return await self._catalogue.list()

    async def delete(self, snapshot_id: str) -> None:
        """See ports.Engine. One whose record is damaged goes too, a newer version's stays."""
        if not is_name(snapshot_id):
            return
        directory = self._pool.layout.snapshot(snapshot_id)
        async with translated(self._pool.root, "snapshot", snapshot_id):
            await in_thread(self._catalogue.refuse_newer, directory)
            await self._pool.staging.discard(directory)
            await self._pool.staging.remove(directory)

    async def measure(self, snapshot_id: str) -> FileUsage:
        """See ports.Engine. Raises NotFound."""
        if await self.find(snapshot_id) is None:
            raise NotFound("snapshot", snapshot_id)
        async with translated(self._pool.root, "snapshot", snapshot_id):
            return await extents.usage(self._pool.layout.snapshot(snapshot_id) / SNAPSHOT_DATA)
