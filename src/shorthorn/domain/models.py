"""The things Shorthorn keeps, as plain values.

Owns: the shapes of our five kinds (spec and status) and of what an engine records on disk. Must
never: do I/O or know how a shape is stored. `kube.resources` maps them to custom resources
(camelCase keys), engines to JSON files. Sizes are bytes, times are aware UTC datetimes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType

NO_MAP: Mapping[str, str] = MappingProxyType({})


class SourceType(StrEnum):
    """How an image's bytes first arrive; Longhorn's exact words (BackingImage.spec.sourceType)."""

    DOWNLOAD = "download"
    UPLOAD = "upload"
    EXPORT_FROM_VOLUME = "export-from-volume"
    RESTORE = "restore"
    CLONE = "clone"
    #: Of an ImageCopy alone: from a peer that has the image already.
    SYNC = "sync"


class ImageFormat(StrEnum):
    """Format of an image's artifact; decided once, stored, and told to every tool."""

    RAW = "raw"
    QCOW2 = "qcow2"


class CopyState(StrEnum):
    """State of one image on one pool; Longhorn's words (status.diskFileStatusMap)."""

    #: Accepted, nothing begun.
    PENDING = "pending"
    #: The source is being opened.
    STARTING = "starting"
    #: Bytes are moving; `progress` counts.
    IN_PROGRESS = "in-progress"
    #: Complete in staging, waiting for its commit.
    READY_FOR_TRANSFER = "ready-for-transfer"
    #: Durable, inspected, usable.
    READY = "ready"
    #: Cannot be made; `message` says why. Terminal.
    FAILED = "failed"
    #: Failed, and what was half made is gone.
    FAILED_AND_CLEANUP = "failed-and-cleanup"
    #: The copy's node does not report.
    UNKNOWN = "unknown"


class VolumeState(StrEnum):
    """State of a volume or snapshot object."""

    PENDING = "pending"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Meta:
    """The part of ObjectMeta that we use. `resource_version`: opaque, empty until stored.

    `stored` is the whole object as it was read, for the registry alone: writing it back, it keeps
    what others put there and we do not know.
    """

    name: str
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    created_at: datetime | None = None
    deleting: bool = False
    finalizers: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=lambda: NO_MAP)
    annotations: Mapping[str, str] = field(default_factory=lambda: NO_MAP)
    stored: object = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Condition:
    """A standard Kubernetes condition."""

    type: str
    is_true: bool
    reason: str
    message: str = ""
    changed_at: datetime | None = None


# --- BackingImage (longhorn.io/v1beta2)
# ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DiskFileSpec:
    """One entry of spec.diskFileSpecMap: a copy is wanted on that pool, or (`eviction_requested`)
    shall leave it as soon as another copy exists.
    """

    eviction_requested: bool = False
    data_engine: str = ""


@dataclass(frozen=True, slots=True)
class BackingImageSpec:
    """Longhorn's fields that mean something here. `checksum`: expected SHA-512, empty where none
    is. `disk_file_spec`: by pool UUID, copies that somebody asked for beyond the minimum.
    """

    source_type: str
    source_parameters: Mapping[str, str] = field(default_factory=lambda: NO_MAP)
    checksum: str = ""
    min_number_of_copies: int = 1
    node_selector: tuple[str, ...] = ()
    disk_selector: tuple[str, ...] = ()
    disk_file_spec: Mapping[str, DiskFileSpec] = field(default_factory=lambda: MappingProxyType({}))
    data_engine: str = "v1"


@dataclass(frozen=True, slots=True)
class DiskFileStatus:
    """One entry of status.diskFileStatusMap; the key is the pool's UUID."""

    state: CopyState
    progress_percent: int = 0
    message: str = ""
    changed_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class BackingImageStatus:
    """Gathered from the image's copies by the BackingImage controller alone.

    `uuid` is chosen once and names the image's directory. `checksum` is the SHA-512 of the
    artifact, empty until known. `point_in_time` is when an export's data was fixed.
    `disk_last_ref_at`: by pool UUID, when the last volume made from the copy there went.
    """

    uuid: str = ""
    size_bytes: int = 0
    virtual_size_bytes: int = 0
    real_size_bytes: int = 0
    checksum: str = ""
    format: str = ""
    point_in_time: datetime | None = None
    disk_file_status: Mapping[str, DiskFileStatus] = field(
        default_factory=lambda: MappingProxyType({})
    )
    disk_last_ref_at: Mapping[str, datetime] = field(default_factory=lambda: MappingProxyType({}))
    conditions: tuple[Condition, ...] = ()


@dataclass(frozen=True, slots=True)
class BackingImage:
    """A golden disk image, as users see it."""

    meta: Meta
    spec: BackingImageSpec
    status: BackingImageStatus = field(default_factory=BackingImageStatus)

    @property
    def is_ready(self) -> bool:
        """Whether at least one durable, complete copy exists."""
        return any(c.type == "Ready" and c.is_true for c in self.status.conditions)

    @property
    def failure(self) -> Condition | None:
        """The Ready condition where it is terminally false, else None."""
        for condition in self.status.conditions:
            if condition.type == "Failed" and condition.is_true:
                return condition
        return None


# --- ImageCopy (shorthorn.io/v1alpha1)
# -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ImageCopySpec:
    """One image on one pool; written by the BackingImage controller, carried out by the pool's
    node.
    """

    image: str
    image_uuid: str
    node_id: str
    pool_uuid: str
    source_type: str
    source_parameters: Mapping[str, str] = field(default_factory=lambda: NO_MAP)
    expected_checksum: str = ""


@dataclass(frozen=True, slots=True)
class ImageCopyStatus:
    """Observed by the pool's node. `reason` is a DomainError's reason where state is failed.

    `verify_at` is the last request to verify that was carried out, verbatim, and `verified_at` when
    that was; both are empty until one was, and in a copy whose files are gone.
    """

    state: CopyState = CopyState.PENDING
    progress_percent: int = 0
    bytes_done: int = 0
    bytes_total: int = 0
    reason: str = ""
    message: str = ""
    point_in_time: datetime | None = None
    size_bytes: int = 0
    virtual_size_bytes: int = 0
    real_size_bytes: int = 0
    shared_bytes: int = 0
    extent_count: int = 0
    format: str = ""
    checksum: str = ""
    verify_at: str = ""
    verified_at: datetime | None = None
    changed_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class ImageCopy:
    meta: Meta
    spec: ImageCopySpec
    status: ImageCopyStatus = field(default_factory=ImageCopyStatus)

    @property
    def is_condemned(self) -> bool:
        """Whether its bytes were looked at and found to be others than were written. It stays so
        until it is removed: a record on disk says nothing of the bytes beside it.
        """
        status = self.status
        is_failed = status.state is CopyState.FAILED and status.reason == "Corrupt"
        return is_failed and bool(status.verify_at)


# --- Volume and Snapshot (shorthorn.io/v1alpha1)
# ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class VolumeSource:
    """What a volume begins as; all fields empty: blank. At most one of image, snapshot, volume is
    set.

    image: BackingImage name with its `image_uuid`; snapshot: Snapshot object name; volume: volume
    id. `handle` is the CSI content source as it was asked for (snapshot_id or volume_id), echoed in
    answers.
    """

    image: str = ""
    image_uuid: str = ""
    snapshot: str = ""
    volume: str = ""
    handle: str = ""

    @property
    def is_blank(self) -> bool:
        return not (self.image or self.snapshot or self.volume)


@dataclass(frozen=True, slots=True)
class VolumeSpec:
    """Desired volume. `csi_name`: CreateVolumeRequest.name. `parameters`: the volume context
    answered to CSI.
    """

    csi_name: str
    node_id: str
    pool_uuid: str
    capacity_bytes: int
    source: VolumeSource = field(default_factory=VolumeSource)
    parameters: Mapping[str, str] = field(default_factory=lambda: NO_MAP)


@dataclass(frozen=True, slots=True)
class VolumeStatus:
    state: VolumeState = VolumeState.PENDING
    reason: str = ""
    message: str = ""
    capacity_bytes: int = 0
    allocated_bytes: int = 0
    shared_bytes: int = 0
    extent_count: int = 0
    observed_generation: int = 0


@dataclass(frozen=True, slots=True)
class Volume:
    meta: Meta
    spec: VolumeSpec
    status: VolumeStatus = field(default_factory=VolumeStatus)


@dataclass(frozen=True, slots=True)
class SnapshotSpec:
    """Desired snapshot of `volume_id`. `csi_name`: CreateSnapshotRequest.name."""

    csi_name: str
    volume_id: str
    node_id: str
    pool_uuid: str


@dataclass(frozen=True, slots=True)
class SnapshotStatus:
    state: VolumeState = VolumeState.PENDING
    reason: str = ""
    message: str = ""
    point_in_time: datetime | None = None
    size_bytes: int = 0
    allocated_bytes: int = 0
    shared_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    meta: Meta
    spec: SnapshotSpec
    status: SnapshotStatus = field(default_factory=SnapshotStatus)


# --- Pool (shorthorn.io/v1alpha1)
# ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """`tags` are the pool's own (diskSelector), `node_tags` its node's (nodeSelector).
    `peer_address` is where its node gives image bytes to peers, HOST:PORT; empty: nowhere.
    """

    node_id: str
    pool_uuid: str
    path: str
    tags: tuple[str, ...] = ()
    node_tags: tuple[str, ...] = ()
    peer_address: str = ""
    eviction_requested: bool = False


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """`promised_bytes`: sum of the capacities of the pool's volumes; thin, so it may exceed the
    capacity. `heartbeat_at`: when its node last said that it lives; None: it never has to.
    """

    capacity_bytes: int = 0
    allocated_bytes: int = 0
    available_bytes: int = 0
    promised_bytes: int = 0
    engine: str = ""
    clone_method: str = ""
    heartbeat_at: datetime | None = None
    conditions: tuple[Condition, ...] = ()


@dataclass(frozen=True, slots=True)
class Pool:
    meta: Meta
    spec: PoolSpec
    status: PoolStatus = field(default_factory=PoolStatus)


# --- what an engine records on disk
# ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FileUsage:
    """From FIEMAP after a sync: bytes on disk, bytes of them shared with other files, number of
    extents.
    """

    allocated_bytes: int
    shared_bytes: int
    extent_count: int


class FormatState(StrEnum):
    """Whether a volume may be, is being or was formatted. Only a blank volume is ever formatted,
    once.
    """

    #: Has a source: never to be formatted.
    FORBIDDEN = "forbidden"
    #: Blank, never touched.
    BLANK = "blank"
    #: Recorded before mkfs starts. Nothing was mounted yet, so mkfs may be repeated.
    FORMATTING = "formatting"
    #: mkfs has finished; from here on a missing file system is an error, never a reason to format.
    FORMATTED = "formatted"


@dataclass(frozen=True, slots=True)
class VolumeRecord:
    """volume.json. `path` is the raw file; it is not stored but derived."""

    volume_id: str
    capacity_bytes: int
    source: VolumeSource
    format_state: FormatState
    fs_type: str
    created_at: datetime
    path: str


@dataclass(frozen=True, slots=True)
class SnapshotRecord:
    """snapshot.json."""

    snapshot_id: str
    volume_id: str
    size_bytes: int
    point_in_time: datetime
    path: str


@dataclass(frozen=True, slots=True)
class ImageKey:
    """An image's directory below a pool: images/<name>/<uuid>."""

    name: str
    uuid: str


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """image.json. `size_bytes` is the artifact's length, `virtual_size_bytes` what a guest sees.

    `checksum` is the SHA-512 of the artifact, empty while an export's is still being computed.
    `source` is a summary {"type": …, "url" | "volume-name": …} for people who read a pool with no
    database.
    """

    key: ImageKey
    format: ImageFormat
    size_bytes: int
    virtual_size_bytes: int
    checksum: str
    source: Mapping[str, str]
    created_at: datetime
    point_in_time: datetime | None
    artifact_path: str
    base_path: str


@dataclass(frozen=True, slots=True)
class Peer:
    """A node that can give bytes of its pool to others, at `address` (HOST:PORT)."""

    node_id: str
    pool_uuid: str
    address: str


@dataclass(frozen=True, slots=True)
class PoolUsage:
    """statvfs of the pool: capacity, used and free bytes."""

    capacity_bytes: int
    allocated_bytes: int
    available_bytes: int


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a long piece of work is. `bytes_total` is 0 where nobody knows."""

    bytes_done: int
    bytes_total: int
    message: str = ""

    @property
    def percent(self) -> int:
        """0…99: 100 is said only by what is durable."""
        if self.bytes_total <= 0:
            return 0
        return min(99, self.bytes_done * 100 // self.bytes_total)
