"""Volumes: raw files that are made blank or as clones, grow, and go.

Owns `volumes/<id>/`. Must never attach, mount or format one (the node's work; what it did is
recorded here) and never decide whether a size is allowed beyond what the source needs. Called by
`engines.local`.

A blank volume is a sparse file with no extent size hints. Measured on XFS, 20,000 random 4 KiB
writes over 1 GiB: a hint of 64 KiB leaves 11,500 extents instead of 19,200, but allocates 721 MiB
instead of 75; a larger copy-on-write hint than XFS's own 128 KiB changes neither extents (35,800)
nor time.
"""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from shorthorn.domain.errors import (
    AlreadyExists,
    Corrupt,
    InUse,
    InvalidArgument,
    NotFound,
    SizeOutOfRange,
    WrongState,
)
from shorthorn.domain.models import FormatState, ImageKey, VolumeRecord, VolumeSource
from shorthorn.engines import records
from shorthorn.engines.capture import METADATA_BYTES, mount_points
from shorthorn.engines.catalogue import Catalogue, subdirectories
from shorthorn.engines.failures import cleaned_up, translated
from shorthorn.engines.layout import (
    IMAGE_BASE,
    IMAGE_RECORD,
    SNAPSHOT_DATA,
    SNAPSHOT_RECORD,
    VOLUME_DATA,
    VOLUME_RECORD,
    is_name,
)
from shorthorn.host import extents, files, loop_devices
from shorthorn.kit.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from shorthorn.domain.models import FileUsage
    from shorthorn.engines.pool import OpenPool

#: A block device is counted in these; a loop device would hide the rest of a file.
SECTOR_BYTES = 512
#: The kernel's file offsets are signed.
CAPACITY_BYTES_MAX = (1 << 63) - SECTOR_BYTES


class Volumes:
    """The volumes of one open pool."""

    def __init__(self, pool: OpenPool) -> None:
        self._pool = pool
        self._catalogue = Catalogue(
            "volume",
            VOLUME_RECORD,
            records.VolumeJson,
            records.VolumeJson.record,
            lambda: subdirectories(pool.layout.volumes),
        )

    async def create(
        self,
        volume_id: str,
        capacity_bytes: int,
        source: VolumeSource,
        *,
        content: ImageKey | None = None,
    ) -> VolumeRecord:
        """See ports.Engine."""
        directory = self._pool.layout.volume(volume_id)
        _check_capacity(capacity_bytes)
        existing = await self.find(volume_id)
        if existing is not None:
            _check_same(existing, capacity_bytes, source)
            return existing
        here = _source_of(content) if content else source
        origin = self._origin(here, capacity_bytes)
        needed_bytes = METADATA_BYTES if origin is None else self._pool.cloner.cost_bytes(origin)
        async with (
            translated(self._pool.root, "volume", volume_id, needed_bytes=needed_bytes),
            cleaned_up(self._pool.staging, directory),
        ):
            return await self._build(directory, capacity_bytes, source, here, origin)

    async def _build(
        self,
        directory: Path,
        capacity_bytes: int,
        source: VolumeSource,
        here: VolumeSource,
        origin: Path | None,
    ) -> VolumeRecord:
        """Make the volume; `here` is what `origin` is in this pool, `source` what is recorded."""
        staging = self._pool.staging
        staged = await staging.begin(directory)
        data = staged / VOLUME_DATA
        if origin is None:
            await in_thread(_make_blank, data, capacity_bytes)
        elif here.volume:
            await self._pool.capture.take(here.volume, origin, data, size_bytes=capacity_bytes)
        else:
            await self._pool.cloner.clone(origin, data, size_bytes=capacity_bytes)
        staging.reached("volume data staged")
        record = VolumeRecord(
            volume_id=directory.name,
            capacity_bytes=capacity_bytes,
            source=source,
            format_state=FormatState.BLANK if source.is_blank else FormatState.FORBIDDEN,
            fs_type="",
            created_at=datetime.now(UTC),
            path=str(directory / VOLUME_DATA),
        )
        await staging.write_record(staged / VOLUME_RECORD, records.VolumeJson.of(record))
        await staging.commit(directory)
        return record

    def _origin(self, source: VolumeSource, capacity_bytes: int) -> Path | None:
        """Return the file to clone, None for a blank volume. Raises NotFound, SizeOutOfRange."""
        layout = self._pool.layout
        shape: type[records.Stored]
        if source.is_blank:
            return None
        if source.image:
            kind, name = "image", f"{source.image} ({source.image_uuid})"
            directory = layout.image(ImageKey(source.image, source.image_uuid))
            record_name, shape, data_name = IMAGE_RECORD, records.ImageJson, IMAGE_BASE
        elif source.snapshot:
            kind, name = "snapshot", source.snapshot
            directory = layout.snapshot(name)
            record_name, shape, data_name = SNAPSHOT_RECORD, records.SnapshotJson, SNAPSHOT_DATA
        else:
            kind, name = "volume", source.volume
            directory = layout.volume(name)
            record_name, shape, data_name = VOLUME_RECORD, records.VolumeJson, VOLUME_DATA
        origin = directory / data_name
        if records.read(directory / record_name, shape) is None:
            raise NotFound(kind, name)
        if not origin.exists():
            raise Corrupt(kind, name, f"{data_name} is missing")
        origin_bytes = origin.stat().st_size
        if origin_bytes > capacity_bytes:
            raise SizeOutOfRange(f"{kind} {name}", capacity_bytes, minimum_bytes=origin_bytes)
        return origin

    async def find(self, volume_id: str) -> VolumeRecord | None:
        """See ports.Engine. Raises: Corrupt: the data is missing or shorter than recorded."""
        if not is_name(volume_id):
            return None
        return await in_thread(self._find, self._pool.layout.volume(volume_id))

    def _find(self, directory: Path) -> VolumeRecord | None:
        record = self._catalogue.find(directory)
        if record is not None:
            data = directory / VOLUME_DATA
            try:
                size_bytes = data.stat().st_size
            except FileNotFoundError:
                size_bytes = 0
            if size_bytes < record.capacity_bytes:
                if not directory.exists():
                    return None  # it was deleted between our two looks
                raise Corrupt(
                    "volume",
                    record.volume_id,
                    f"{data.name} has {size_bytes} bytes, {record.capacity_bytes} are recorded",
                )
        return record

    async def get(self, volume_id: str) -> VolumeRecord:
        """Return the volume. Raises NotFound."""
        record = await self.find(volume_id)
        if record is None:
            raise NotFound("volume", volume_id)
        return record

    async def list(self) -> Sequence[VolumeRecord]:
        """See ports.Engine."""
        return await self._catalogue.list()

    async def expand(self, volume_id: str, capacity_bytes: int) -> VolumeRecord:
        """See ports.Engine. A smaller capacity than the present one changes nothing."""
        record = await self.get(volume_id)
        _check_capacity(capacity_bytes)
        data = self._pool.layout.volume(volume_id) / VOLUME_DATA
        async with translated(self._pool.root, "volume", volume_id, needed_bytes=METADATA_BYTES):
            if capacity_bytes > record.capacity_bytes:
                # The file first: a record must never promise what the file does not have.
                await files.grow_file(data, max(capacity_bytes, data.stat().st_size))
                self._pool.staging.reached("volume grown")
                record = await self._rewrite(replace(record, capacity_bytes=capacity_bytes))
            device = await loop_devices.find_by_file(data)
            if device is not None:
                await loop_devices.set_capacity(device)
                self._pool.staging.reached("loop device grown")
        return record

    async def delete(self, volume_id: str) -> None:
        """See ports.Engine. A volume whose record is damaged goes too, a newer version's stays."""
        if not is_name(volume_id):
            return
        directory = self._pool.layout.volume(volume_id)
        async with translated(self._pool.root, "volume", volume_id):
            await in_thread(self._catalogue.refuse_newer, directory)
            # Beside the volume there may be a private copy that a read-only mount needed.
            for data in sorted(directory.glob("*.raw")):
                await self._detach(volume_id, data)
                self._pool.staging.reached(f"{data.name} detached")
            await self._pool.staging.discard(directory)
            await self._pool.staging.remove(directory)

    async def _detach(self, volume_id: str, data: Path) -> None:
        device = await loop_devices.find_by_file(data)
        if device is None:
            return
        try:
            await loop_devices.detach(device)
        except loop_devices.LoopDeviceBusy as exc:
            mounted = await in_thread(mount_points, device)
            by = f"a mount at {mounted[0]}" if mounted else f"whoever has {device.path} open"
            raise InUse("volume", volume_id, by) from exc

    async def measure(self, volume_id: str) -> FileUsage:
        """See ports.Engine. Raises NotFound."""
        record = await self.get(volume_id)
        async with translated(self._pool.root, "volume", volume_id):
            return await extents.usage(self._pool.layout.volume(record.volume_id) / VOLUME_DATA)

    async def record_format(self, volume_id: str, state: FormatState, fs_type: str) -> VolumeRecord:
        """See ports.Engine. A formatted volume never goes back to an earlier state."""
        record = await self.get(volume_id)
        now = record.format_state
        if now is FormatState.FORBIDDEN:
            raise WrongState("volume", volume_id, "made from a source", "a blank volume")
        if state is FormatState.FORBIDDEN or (
            now is FormatState.FORMATTED and state is not FormatState.FORMATTED
        ):
            raise WrongState("volume", volume_id, f"recorded as {now}", "a volume to be formatted")
        if (now, record.fs_type) == (state, fs_type):
            return record
        async with translated(self._pool.root, "volume", volume_id, needed_bytes=METADATA_BYTES):
            return await self._rewrite(replace(record, format_state=state, fs_type=fs_type))

    async def _rewrite(self, record: VolumeRecord) -> VolumeRecord:
        path = self._pool.layout.volume(record.volume_id) / VOLUME_RECORD
        await self._pool.staging.replace_record(path, records.VolumeJson.of(record))
        return record


def _check_capacity(capacity_bytes: int) -> None:
    if not 0 < capacity_bytes <= CAPACITY_BYTES_MAX or capacity_bytes % SECTOR_BYTES:
        raise InvalidArgument(
            "capacity_bytes",
            f"{capacity_bytes} is not a multiple of {SECTOR_BYTES} from {SECTOR_BYTES} to"
            f" {CAPACITY_BYTES_MAX}",
        )


def _source_of(content: ImageKey) -> VolumeSource:
    return VolumeSource(image=content.name, image_uuid=content.uuid)


def _make_blank(path: Path, size_bytes: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(descriptor, size_bytes)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_same(existing: VolumeRecord, capacity_bytes: int, source: VolumeSource) -> None:
    """Raise AlreadyExists unless the volume is what is asked for; the handle's spelling is free."""
    if existing.capacity_bytes != capacity_bytes:
        raise AlreadyExists(
            "volume",
            existing.volume_id,
            f"its capacity is {existing.capacity_bytes} bytes, not {capacity_bytes}",
        )
    if replace(existing.source, handle="") != replace(source, handle=""):
        raise AlreadyExists("volume", existing.volume_id, "it was made from another source")
