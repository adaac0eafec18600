"""An engine whose pool is a dictionary: `domain.ports.Engine` without files.

What a file would hold is one string, so that clones can be told from each other. Its promises are
checked by tests/unit/test_services_fakes.py; what needs real files is the engine suite's.

`faults[method]` is raised by the next call of that method. `gates[method]` holds every call until
it is set.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from shorthorn.domain.errors import AlreadyExists, InUse, NotFound, SizeOutOfRange, WrongState
from shorthorn.domain.models import (
    FileUsage,
    FormatState,
    ImageFormat,
    ImageKey,
    ImageRecord,
    PoolUsage,
    Progress,
    SnapshotRecord,
    VolumeRecord,
    VolumeSource,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shorthorn.domain.ports import ReportProgress

CHECKSUM = "c" * 128


class MemoryEngine:
    """See the module."""

    name = "memory"
    clone_method = "reflink"

    def __init__(self, pool_uuid: str = "11111111-0000-4000-8000-000000000000") -> None:
        self.pool_uuid = pool_uuid
        self.volumes: dict[str, VolumeRecord] = {}
        self.snapshots: dict[str, SnapshotRecord] = {}
        self.images: dict[ImageKey, ImageRecord] = {}
        #: What is in a file, by its path; absent: nothing was ever written.
        self.contents: dict[str, str] = {}
        #: Exports that are fixed and not finished: point in time, format, size, content.
        self.fixed: dict[ImageKey, tuple[datetime, ImageFormat, str, int, str]] = {}
        #: What was put together in staging and waits for its commit.
        self.staged: dict[ImageKey, str] = {}
        self.used_by: dict[str, str] = {}
        self.faults: dict[str, Exception] = {}
        self.gates: dict[str, asyncio.Event] = {}
        self.calls: list[tuple[str, str]] = []
        self._called = asyncio.Condition()

    async def entered(self, method: str, what: str) -> None:
        """Return as soon as that call was begun."""
        async with self._called, asyncio.timeout(60):
            await self._called.wait_for(lambda: (method, what) in self.calls)

    async def _enter(self, method: str, what: str) -> None:
        async with self._called:
            self.calls.append((method, what))
            self._called.notify_all()
        await asyncio.sleep(0)
        if method in self.gates:
            await self.gates[method].wait()
        if method in self.faults:
            raise self.faults.pop(method)

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def usage(self) -> PoolUsage:
        return PoolUsage(100 << 30, 10 << 30, 90 << 30)

    # volumes

    async def create_volume(
        self,
        volume_id: str,
        capacity_bytes: int,
        source: VolumeSource,
        *,
        content: ImageKey | None = None,
    ) -> VolumeRecord:
        await self._enter("create_volume", volume_id)
        old = self.volumes.get(volume_id)
        if old:
            if (old.capacity_bytes, old.source) != (capacity_bytes, source):
                raise AlreadyExists("volume", volume_id, "capacity or source")
            return old
        here = VolumeSource(image=content.name, image_uuid=content.uuid) if content else source
        size_bytes, data = self._source(here)
        if size_bytes > capacity_bytes:
            raise SizeOutOfRange("source", capacity_bytes, minimum_bytes=size_bytes)
        path = f"/pool/volumes/{volume_id}/volume.raw"
        state = FormatState.BLANK if source.is_blank else FormatState.FORBIDDEN
        record = VolumeRecord(volume_id, capacity_bytes, source, state, "", datetime.now(UTC), path)
        self.volumes[volume_id] = record
        if data:
            self.contents[path] = data
        return record

    def _source(self, source: VolumeSource) -> tuple[int, str]:
        if source.is_blank:
            return 0, ""
        if source.image:
            image = self.images.get(ImageKey(source.image, source.image_uuid))
            found = (image.virtual_size_bytes, image.base_path) if image else None
        elif source.snapshot:
            snapshot = self.snapshots.get(source.snapshot)
            found = (snapshot.size_bytes, snapshot.path) if snapshot else None
        else:
            volume = self.volumes.get(source.volume)
            found = (volume.capacity_bytes, volume.path) if volume else None
        if found is None:
            raise NotFound("source", source.image or source.snapshot or source.volume)
        return found[0], self.contents.get(found[1], "")

    async def find_volume(self, volume_id: str) -> VolumeRecord | None:
        return self.volumes.get(volume_id)

    async def list_volumes(self) -> Sequence[VolumeRecord]:
        return list(self.volumes.values())

    async def expand_volume(self, volume_id: str, capacity_bytes: int) -> VolumeRecord:
        await self._enter("expand_volume", volume_id)
        record = self._get(volume_id)
        record = replace(record, capacity_bytes=max(record.capacity_bytes, capacity_bytes))
        self.volumes[volume_id] = record
        return record

    async def delete_volume(self, volume_id: str) -> None:
        await self._enter("delete_volume", volume_id)
        if volume_id in self.used_by:
            raise InUse("volume", volume_id, self.used_by[volume_id])
        record = self.volumes.pop(volume_id, None)
        if record:
            self.contents.pop(record.path, None)

    async def measure_volume(self, volume_id: str) -> FileUsage:
        record = self._get(volume_id)
        return self._measure(record.path)

    async def record_format(self, volume_id: str, state: FormatState, fs_type: str) -> VolumeRecord:
        await self._enter("record_format", volume_id)
        record = self._get(volume_id)
        if record.format_state is FormatState.FORBIDDEN:
            raise WrongState("volume", volume_id, record.format_state, FormatState.BLANK)
        record = replace(record, format_state=state, fs_type=fs_type)
        self.volumes[volume_id] = record
        return record

    def _get(self, volume_id: str) -> VolumeRecord:
        if volume_id not in self.volumes:
            raise NotFound("volume", volume_id)
        return self.volumes[volume_id]

    def _measure(self, path: str) -> FileUsage:
        written = 4096 if path in self.contents else 0
        return FileUsage(written, 0, 1 if written else 0)

    # snapshots

    async def create_snapshot(self, snapshot_id: str, volume_id: str) -> SnapshotRecord:
        await self._enter("create_snapshot", snapshot_id)
        old = self.snapshots.get(snapshot_id)
        if old:
            if old.volume_id != volume_id:
                raise AlreadyExists("snapshot", snapshot_id, "its volume")
            return old
        volume = self._get(volume_id)
        path = f"/pool/snapshots/{snapshot_id}/snapshot.raw"
        record = SnapshotRecord(
            snapshot_id, volume_id, volume.capacity_bytes, datetime.now(UTC), path
        )
        self.contents[path] = self.contents.get(volume.path, "")
        self.snapshots[snapshot_id] = record
        return record

    async def find_snapshot(self, snapshot_id: str) -> SnapshotRecord | None:
        return self.snapshots.get(snapshot_id)

    async def list_snapshots(self) -> Sequence[SnapshotRecord]:
        return list(self.snapshots.values())

    async def delete_snapshot(self, snapshot_id: str) -> None:
        await self._enter("delete_snapshot", snapshot_id)
        self.snapshots.pop(snapshot_id, None)

    async def measure_snapshot(self, snapshot_id: str) -> FileUsage:
        return self._measure(self.snapshots[snapshot_id].path)

    # images

    async def begin_export(
        self, key: ImageKey, volume_id: str, export_format: ImageFormat
    ) -> datetime:
        await self._enter("begin_export", key.name)
        if key not in self.fixed:
            volume = self._get(volume_id)
            content = self.contents.get(volume.path, "")
            now = datetime.now(UTC)
            self.fixed[key] = (now, export_format, volume_id, volume.capacity_bytes, content)
        return self.fixed[key][0]

    async def finish_export(self, key: ImageKey, report: ReportProgress) -> ImageRecord:
        report(Progress(1, 4))
        await self._enter("finish_export", key.name)
        when, export_format, volume_id, size_bytes, content = self.fixed[key]
        source = {"type": "export-from-volume", "volume-name": volume_id}
        record = self._record(key, export_format, size_bytes, source, when)
        self.contents[record.base_path] = content
        self.images[key] = record
        return record

    async def staging_dir(self, key: ImageKey) -> Path:
        return Path(f"/pool/staging/{key.name}-{key.uuid}")

    async def commit_image(self, record: ImageRecord) -> ImageRecord:
        await self._enter("commit_image", record.key.name)
        made = self._record(
            record.key,
            record.format,
            record.virtual_size_bytes,
            record.source,
            record.point_in_time,
        )
        made = replace(made, checksum=record.checksum)
        self.contents[made.base_path] = self.staged.pop(record.key, f"image {record.key.name}")
        self.images[record.key] = made
        return made

    def _record(
        self,
        key: ImageKey,
        image_format: ImageFormat,
        size_bytes: int,
        source: object,
        when: datetime | None,
    ) -> ImageRecord:
        base = f"/pool/images/{key.name}/{key.uuid}"
        assert isinstance(source, dict)
        return ImageRecord(
            key=key,
            format=image_format,
            size_bytes=size_bytes,
            virtual_size_bytes=size_bytes,
            checksum="",
            source=source,
            created_at=datetime.now(UTC),
            point_in_time=when,
            artifact_path=f"{base}/artifact",
            base_path=f"{base}/base.raw",
        )

    async def discard_staging(self, key: ImageKey) -> None:
        self.fixed.pop(key, None)
        self.staged.pop(key, None)

    async def find_image(self, key: ImageKey) -> ImageRecord | None:
        return self.images.get(key)

    async def list_images(self) -> Sequence[ImageRecord]:
        return list(self.images.values())

    async def record_checksum(self, key: ImageKey, checksum: str) -> ImageRecord:
        self.images[key] = replace(self.images[key], checksum=checksum)
        return self.images[key]

    async def delete_image(self, key: ImageKey) -> None:
        await self._enter("delete_image", key.name)
        self.images.pop(key, None)
        self.fixed.pop(key, None)
        self.staged.pop(key, None)

    async def measure_image(self, key: ImageKey) -> FileUsage:
        return self._measure(self.images[key].base_path)
