"""What to do next, as pure functions of what is wanted and what is there.

Owns: what a node does next about one volume, snapshot or image copy; which copies there should be
is `domain.copies`. Must never: do I/O, wait or know the time. `controllers` observe, call one of
these, and carry out the one step that comes back; a satisfied state plans `Nothing`.
"""

from __future__ import annotations

from enum import StrEnum, auto

from shorthorn.domain.errors import NoSpace
from shorthorn.domain.image_bytes import VERIFY_AT
from shorthorn.domain.models import (
    CopyState,
    ImageCopy,
    ImageRecord,
    Snapshot,
    SnapshotRecord,
    SourceType,
    Volume,
    VolumeRecord,
    VolumeState,
)

DATA_FINALIZER = "shorthorn.io/data"
"""Keeps a Volume, Snapshot or ImageCopy until its node has removed the data."""

IMAGE_FINALIZER = "longhorn.io"
"""Keeps a BackingImage until its copies are gone; Longhorn's own name."""


class Step(StrEnum):
    """One bounded step of a reconciler."""

    #: Wanted and observed agree.
    NOTHING = auto()
    #: Add the finalizer before any data exists.
    HOLD = auto()
    #: Make the data.
    CREATE = auto()
    #: Grow the data.
    EXPAND = auto()
    #: Remove the data.
    DELETE = auto()
    #: Data is gone: remove the finalizer.
    RELEASE = auto()
    #: Write what was observed.
    REPORT = auto()
    #: What was there is gone and was not asked to go: say so, make nothing in its place.
    REPORT_LOST = auto()
    #: What is there is something else than what is wanted: say so, and use nothing of it.
    REPORT_OTHER = auto()
    #: Fix an export's data in time.
    CAPTURE = auto()
    #: Start or go on with the transfer in the background.
    TRANSFER = auto()
    #: Compute the checksum in the background.
    HASH = auto()
    #: Compute it again, and compare.
    VERIFY = auto()


def plan_volume(volume: Volume | None, record: VolumeRecord | None) -> Step:
    """Plan one volume on its own node.

    A volume that was reported ready and whose data is gone is never made anew: an empty disk in
    place of somebody's only copy would look like success.
    """
    if volume is None:
        return Step.NOTHING
    if volume.meta.deleting:
        return _plan_deletion(DATA_FINALIZER in volume.meta.finalizers, has_data=record is not None)
    if DATA_FINALIZER not in volume.meta.finalizers:
        return Step.HOLD
    if record is None:
        return _plan_missing(volume.status.state)
    if record.capacity_bytes < volume.spec.capacity_bytes:
        return Step.EXPAND
    is_reported = (
        volume.status.state is VolumeState.READY
        and volume.status.capacity_bytes == record.capacity_bytes
    )
    return Step.NOTHING if is_reported else Step.REPORT


def plan_snapshot(snapshot: Snapshot | None, record: SnapshotRecord | None) -> Step:
    """Plan one snapshot on its own node; the same rules as for a volume."""
    if snapshot is None:
        return Step.NOTHING
    if snapshot.meta.deleting:
        return _plan_deletion(
            DATA_FINALIZER in snapshot.meta.finalizers, has_data=record is not None
        )
    if DATA_FINALIZER not in snapshot.meta.finalizers:
        return Step.HOLD
    if record is None:
        return _plan_missing(snapshot.status.state)
    return Step.NOTHING if snapshot.status.state is VolumeState.READY else Step.REPORT


def _plan_deletion(is_held: bool, *, has_data: bool) -> Step:
    if not is_held:
        return Step.NOTHING
    return Step.DELETE if has_data else Step.RELEASE


def _plan_missing(state: VolumeState) -> Step:
    match state:
        case VolumeState.PENDING:
            return Step.CREATE
        case VolumeState.READY:
            return Step.REPORT_LOST
        case VolumeState.FAILED:
            return Step.NOTHING


def plan_copy(copy: ImageCopy | None, record: ImageRecord | None, *, is_moving: bool) -> Step:
    """Plan one image copy on its own node. `is_moving`: a transfer or hash of it runs in this
    process.
    """
    if copy is None:
        return Step.NOTHING
    if copy.meta.deleting:
        # The data may be half made, which no record tells, so deletion always goes through DELETE.
        return Step.DELETE if DATA_FINALIZER in copy.meta.finalizers else Step.NOTHING
    if DATA_FINALIZER not in copy.meta.finalizers:
        return Step.HOLD
    if record is not None:
        return _plan_complete_copy(copy, record, is_moving=is_moving)
    if copy.status.state is CopyState.READY:
        return Step.REPORT_LOST
    is_failed = copy.status.state in (CopyState.FAILED, CopyState.FAILED_AND_CLEANUP)
    if is_moving or (is_failed and not _awaits_room(copy)):
        return Step.NOTHING
    is_export = copy.spec.source_type == SourceType.EXPORT_FROM_VOLUME
    if is_export and copy.status.point_in_time is None:
        return Step.CAPTURE
    return Step.TRANSFER


def is_captured(copy: ImageCopy) -> bool:
    """Whether what an export is made of was fixed in time: nothing else holds that moment."""
    is_export = copy.spec.source_type == SourceType.EXPORT_FROM_VOLUME
    return is_export and copy.status.point_in_time is not None


def _awaits_room(copy: ImageCopy) -> bool:
    """Whether it failed in a full pool only; its maker keeps what it is made of."""
    return copy.status.reason == NoSpace.reason and is_captured(copy)


def _plan_complete_copy(copy: ImageCopy, record: ImageRecord, *, is_moving: bool) -> Step:
    # What has been renamed into place is found before it is synced: only the transfer's end says
    # that it is durable.
    if is_moving or copy.is_condemned:
        return Step.NOTHING
    if _holds_other_bytes(copy, record):
        return Step.NOTHING if copy.status.state is CopyState.FAILED else Step.REPORT_OTHER
    if copy.status.state is not CopyState.READY or copy.status.checksum != record.checksum:
        return Step.REPORT
    if not record.checksum:
        return Step.HASH
    if copy.meta.annotations.get(VERIFY_AT, "") not in ("", copy.status.verify_at):
        return Step.VERIFY
    return Step.NOTHING


def _holds_other_bytes(copy: ImageCopy, record: ImageRecord) -> bool:
    """Whether a pool that was away has bytes of another time for what peers are to be asked for.

    So it can be where an image was deleted meanwhile, and put back with its UUID.
    """
    is_sync = copy.spec.source_type == SourceType.SYNC and copy.status.state is not CopyState.READY
    expected = copy.spec.expected_checksum.strip().lower()
    return is_sync and bool(expected and record.checksum) and expected != record.checksum
