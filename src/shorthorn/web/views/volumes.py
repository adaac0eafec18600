"""Volumes and snapshots: from objects to rows.

Owns: what a row says, and in which words a volume's origin is told. Pure. Called by
`pages.volumes` and `web.live`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from shorthorn.domain.handles import SnapshotHandle
from shorthorn.domain.models import Snapshot, Volume, VolumeSource

PAGE_ROWS: Final = 100


@dataclass(frozen=True, slots=True)
class VolumeRow:
    """One volume. `origin_link`: where its origin is shown; empty where it is not."""

    id: str
    state: str
    message: str
    origin: str
    origin_link: str
    node: str
    capacity_bytes: int
    allocated_bytes: int
    shared_bytes: int
    created_at: datetime | None


@dataclass(frozen=True, slots=True)
class SnapshotRow:
    """One snapshot that is kept beside its volume."""

    id: str
    state: str
    message: str
    volume: str
    node: str
    size_bytes: int
    allocated_bytes: int
    shared_bytes: int
    point_in_time: datetime | None
    handle: str


@dataclass(frozen=True, slots=True)
class Listing:
    """One page of volumes, and the snapshots that match."""

    text: str
    page: int
    volumes: Sequence[VolumeRow]
    matching: int
    total: int
    snapshots: Sequence[SnapshotRow]
    snapshots_matching: int

    @property
    def fields(self) -> Mapping[str, str]:
        """What a link to another page of the list says besides its number."""
        return {"q": self.text} if self.text else {}

    @property
    def pages(self) -> int:
        return max(1, -(-max(self.matching, self.snapshots_matching) // PAGE_ROWS))


def list_volumes(
    volumes: Sequence[Volume], snapshots: Sequence[Snapshot], text: str, page: int
) -> Listing:
    """Return one page of what has `text` in its name or origin."""
    wanted = text.lower()
    found = sorted(
        (
            v
            for v in volumes
            if wanted in f"{v.meta.name} {v.spec.csi_name} {_origin(v)[0]}".lower()
        ),
        key=lambda v: v.meta.name,
    )
    kept = sorted(
        (s for s in snapshots if wanted in f"{s.meta.name} {s.spec.volume_id}".lower()),
        key=lambda s: s.meta.name,
    )
    pages = max(1, -(-max(len(found), len(kept)) // PAGE_ROWS))
    page = min(max(1, page), pages)
    here = slice((page - 1) * PAGE_ROWS, page * PAGE_ROWS)
    return Listing(
        text=text,
        page=page,
        volumes=[volume_row(volume) for volume in found[here]],
        matching=len(found),
        total=len(volumes),
        snapshots=[snapshot_row(snapshot) for snapshot in kept[here]],
        snapshots_matching=len(kept),
    )


def volume_row(volume: Volume) -> VolumeRow:
    """Return what the list says of one volume."""
    origin, link = _origin(volume)
    status = volume.status
    return VolumeRow(
        id=volume.meta.name,
        state="deleting" if volume.meta.deleting else str(status.state),
        message=status.message,
        origin=origin,
        origin_link=link,
        node=volume.spec.node_id,
        capacity_bytes=status.capacity_bytes or volume.spec.capacity_bytes,
        allocated_bytes=status.allocated_bytes,
        shared_bytes=status.shared_bytes,
        created_at=volume.meta.created_at,
    )


def snapshot_row(snapshot: Snapshot) -> SnapshotRow:
    """Return what the list says of one snapshot."""
    status = snapshot.status
    return SnapshotRow(
        id=snapshot.meta.name,
        state="deleting" if snapshot.meta.deleting else str(status.state),
        message=status.message,
        volume=snapshot.spec.volume_id,
        node=snapshot.spec.node_id,
        size_bytes=status.size_bytes,
        allocated_bytes=status.allocated_bytes,
        shared_bytes=status.shared_bytes,
        point_in_time=status.point_in_time,
        handle=SnapshotHandle(snapshot.spec.volume_id, snapshot.meta.name).format(),
    )


def _origin(volume: Volume) -> tuple[str, str]:
    source: VolumeSource = volume.spec.source
    if source.image:
        return f"image {source.image}", f"/images/{source.image}"
    if source.snapshot:
        return f"snapshot {source.snapshot}", f"/volumes?q={source.snapshot}"
    if source.volume:
        return f"volume {source.volume}", f"/volumes?q={source.volume}"
    return "blank", ""
