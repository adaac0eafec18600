"""The JSON files of a pool.

Owns their shapes (version 1 of each), the check of their version and their translation from and to
domain values. Must never write over a file of a newer version: who knows more than we do wrote it.
Called by the other modules of `engines`.

Reading a pool with no database needs nothing else: keys are camelCase, sizes bytes, times RFC 3339
in UTC.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from shorthorn.domain.errors import Corrupt, Unavailable, WrongState
from shorthorn.domain.models import (
    FormatState,
    ImageFormat,
    ImageKey,
    ImageRecord,
    SnapshotRecord,
    VolumeRecord,
    VolumeSource,
)
from shorthorn.engines.layout import (
    IMAGE_ARTIFACT,
    IMAGE_BASE,
    SNAPSHOT_DATA,
    VOLUME_DATA,
)

if TYPE_CHECKING:
    from pathlib import Path

#: Written into every file. A change that an older reader would misread raises it.
FORMAT_VERSION = 1


class _Versioned(msgspec.Struct, rename="camel"):
    format_version: int


class Stored(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """What every JSON file of a pool begins with."""

    format_version: int = FORMAT_VERSION


class PoolJson(Stored, frozen=True, kw_only=True):
    """pool.json."""

    pool_uuid: str


class SourceFields(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """What a volume was made from; see domain.models.VolumeSource."""

    image: str = ""
    image_uuid: str = ""
    snapshot: str = ""
    volume: str = ""
    handle: str = ""


class VolumeJson(Stored, frozen=True, kw_only=True):
    """volume.json."""

    volume_id: str
    capacity_bytes: int
    source: SourceFields
    format_state: FormatState
    fs_type: str
    created_at: datetime

    @classmethod
    def of(cls, record: VolumeRecord) -> VolumeJson:
        source = record.source
        return cls(
            volume_id=record.volume_id,
            capacity_bytes=record.capacity_bytes,
            source=SourceFields(
                source.image, source.image_uuid, source.snapshot, source.volume, source.handle
            ),
            format_state=record.format_state,
            fs_type=record.fs_type,
            created_at=record.created_at,
        )

    def record(self, directory: Path) -> VolumeRecord:
        return VolumeRecord(
            volume_id=self.volume_id,
            capacity_bytes=self.capacity_bytes,
            source=VolumeSource(**msgspec.structs.asdict(self.source)),
            format_state=self.format_state,
            fs_type=self.fs_type,
            created_at=self.created_at,
            path=str(directory / VOLUME_DATA),
        )


class SnapshotJson(Stored, frozen=True, kw_only=True):
    """snapshot.json."""

    snapshot_id: str
    volume_id: str
    size_bytes: int
    point_in_time: datetime

    def record(self, directory: Path) -> SnapshotRecord:
        return SnapshotRecord(
            snapshot_id=self.snapshot_id,
            volume_id=self.volume_id,
            size_bytes=self.size_bytes,
            point_in_time=self.point_in_time,
            path=str(directory / SNAPSHOT_DATA),
        )


class ExportJson(Stored, frozen=True, kw_only=True):
    """export.json: the point in time is fixed, the artifact is still to be made."""

    volume_id: str
    export_format: ImageFormat
    size_bytes: int
    point_in_time: datetime


class ImageJson(Stored, frozen=True, kw_only=True):
    """image.json."""

    name: str
    uuid: str
    format: ImageFormat
    size_bytes: int
    virtual_size_bytes: int
    checksum: str
    source: dict[str, str]
    created_at: datetime
    point_in_time: datetime | None

    @classmethod
    def of(cls, record: ImageRecord) -> ImageJson:
        return cls(
            name=record.key.name,
            uuid=record.key.uuid,
            format=record.format,
            size_bytes=record.size_bytes,
            virtual_size_bytes=record.virtual_size_bytes,
            checksum=record.checksum,
            source=dict(record.source),
            created_at=record.created_at,
            point_in_time=record.point_in_time,
        )

    def record(self, directory: Path) -> ImageRecord:
        return ImageRecord(
            key=ImageKey(self.name, self.uuid),
            format=self.format,
            size_bytes=self.size_bytes,
            virtual_size_bytes=self.virtual_size_bytes,
            checksum=self.checksum,
            source=self.source,
            created_at=self.created_at,
            point_in_time=self.point_in_time,
            artifact_path=str(directory / IMAGE_ARTIFACT),
            base_path=str(directory / IMAGE_BASE),
        )


Json = TypeVar("Json", bound=Stored)


def read(path: Path, shape: type[Json]) -> Json | None:
    """Return the file's content, or None where it (or its directory) is not there.

    Raises: WrongState: a newer version wrote it. Corrupt: it is not what we write. Unavailable: the
        disk does not let us read it.
    """
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as exc:
        raise Unavailable("pool", f"{path}: {exc}") from exc
    try:
        version = msgspec.json.decode(text, type=_Versioned).format_version
    except msgspec.MsgspecError as exc:
        raise Corrupt("file", str(path), str(exc)) from exc
    if version > FORMAT_VERSION:
        raise WrongState(
            "file",
            str(path),
            f"written in format version {version}",
            f"format version {FORMAT_VERSION}, the newest that this Shorthorn reads,",
        )
    try:
        return msgspec.json.decode(text, type=shape)
    except msgspec.MsgspecError as exc:
        raise Corrupt("file", str(path), str(exc)) from exc


def plain(content: Stored) -> dict[str, Any]:
    """Return `content` as JSON's own types."""
    value: dict[str, Any] = msgspec.to_builtins(content)
    return value
