"""The statuses of VolumeSnapshots and VolumeSnapshotContents.

Owns: how what the driver says becomes a content's status, and that a snapshot's. Must never: do
I/O. Used by `standalone.volume_snapshots` and `standalone.snapshot_contents`.
"""

from __future__ import annotations

from datetime import UTC, datetime

from shorthorn.csi.proto import csi_pb2
from shorthorn.standalone.objects import Object
from shorthorn.standalone.quantity import format_quantity

_NS_PER_S = 1_000_000_000


def content_status(snapshot: csi_pb2.Snapshot) -> Object:
    """Return what a content says of the driver's snapshot: time in nanoseconds, size in bytes."""
    created = snapshot.creation_time
    status: Object = {
        "snapshotHandle": snapshot.snapshot_id,
        "creationTime": created.seconds * _NS_PER_S + created.nanos,
        "readyToUse": snapshot.ready_to_use,
    }
    if snapshot.size_bytes:
        status["restoreSize"] = snapshot.size_bytes
    return status


def snapshot_status(content: Object) -> Object:
    """Return what a snapshot says of its content: RFC 3339 time, size as a quantity."""
    known = content.get("status") or {}
    status: Object = {
        "boundVolumeSnapshotContentName": content["metadata"]["name"],
        "readyToUse": bool(known.get("readyToUse")),
    }
    if known.get("creationTime"):
        status["creationTime"] = _rfc3339(known["creationTime"])
    if known.get("restoreSize"):
        status["restoreSize"] = format_quantity(known["restoreSize"])
    if known.get("error"):
        status["error"] = known["error"]
    return status


def status_with_error(obj: Object, message: str) -> Object | None:
    """Return the status of `obj` with this error, as of now; None: it says so already."""
    before = obj.get("status") or {}
    if (before.get("error") or {}).get("message") == message:
        return None
    return {**before, "readyToUse": False, "error": {"message": message, "time": _now()}}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _rfc3339(nanoseconds: int) -> str:
    seconds = nanoseconds // _NS_PER_S
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
