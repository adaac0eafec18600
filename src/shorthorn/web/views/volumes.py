"""Volumes and snapshots: from objects to rows.

Owns: what a row says, and in which words a volume's origin is told. Pure. Called by
`pages.volumes` and `web.feeds`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from shorthorn.domain import handles
from shorthorn.domain.handles import InvalidHandle, SnapshotHandle
from shorthorn.domain.models import Snapshot, Volume, VolumeSource

PAGE_ROWS: Final = 100


_NO_NAMES: Final[Mapping[str, str]] = {}


@dataclass(frozen=True, slots=True)
class Names:
    """What people call volumes and snapshots: namespace/name by id, as far as the user may see.

    `hidden`: kinds that the user may not list.
    """

    claims: Mapping[str, str] = field(default_factory=lambda: _NO_NAMES)
    snapshots: Mapping[str, str] = field(default_factory=lambda: _NO_NAMES)
    hidden: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class VolumeRow:
    """One volume. `origin_link`: where its origin is shown; empty where it is not.

    `claim`: namespace/name of the claim that it is bound to; empty where nobody knows.
    """

    id: str
    claim: str
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
    """One snapshot that is kept beside its volume.

    `named`: namespace/name of its VolumeSnapshot, `claim`: that of its volume's claim; empty where
    nobody knows.
    """

    id: str
    named: str
    state: str
    message: str
    volume: str
    claim: str
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


def read_names(
    persistent_volumes: Sequence[Mapping[str, Any]], contents: Sequence[Mapping[str, Any]]
) -> Names:
    """Return the names that PersistentVolumes and VolumeSnapshotContents give to handles."""
    claims = {}
    for pv in persistent_volumes:
        spec = pv.get("spec") or {}
        if claim := _full_name(spec.get("claimRef")):
            claims[str((spec.get("csi") or {}).get("volumeHandle", ""))] = claim
    snapshots: dict[str, str] = {}
    # Those that were taken last, so that their names win over those of restores from them.
    for content in sorted(contents, key=_is_taken):
        id_ = _snapshot_id(content)
        if id_ and (name := _full_name((content.get("spec") or {}).get("volumeSnapshotRef"))):
            snapshots[id_] = name
    return Names(claims, snapshots)


def list_volumes(
    volumes: Sequence[Volume],
    snapshots: Sequence[Snapshot],
    text: str,
    page: int,
    names: Names,
) -> Listing:
    """Return one page of what has `text` in its id, name or origin."""
    wanted = text.lower()
    found = sorted(
        (v for v in volumes if wanted in _words(v, names).lower()), key=lambda v: v.meta.name
    )
    kept = sorted(
        (s for s in snapshots if wanted in _words_of_snapshot(s, names).lower()),
        key=lambda s: s.meta.name,
    )
    pages = max(1, -(-max(len(found), len(kept)) // PAGE_ROWS))
    page = min(max(1, page), pages)
    here = slice((page - 1) * PAGE_ROWS, page * PAGE_ROWS)
    return Listing(
        text=text,
        page=page,
        volumes=[volume_row(volume, names) for volume in found[here]],
        matching=len(found),
        total=len(volumes),
        snapshots=[snapshot_row(snapshot, names) for snapshot in kept[here]],
        snapshots_matching=len(kept),
    )


def volume_row(volume: Volume, names: Names) -> VolumeRow:
    """Return what the list says of one volume."""
    origin, link = _origin(volume)
    status = volume.status
    return VolumeRow(
        id=volume.meta.name,
        claim=names.claims.get(volume.meta.name, ""),
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


def snapshot_row(snapshot: Snapshot, names: Names) -> SnapshotRow:
    """Return what the list says of one snapshot."""
    status = snapshot.status
    return SnapshotRow(
        id=snapshot.meta.name,
        named=names.snapshots.get(snapshot.meta.name, ""),
        state="deleting" if snapshot.meta.deleting else str(status.state),
        message=status.message,
        volume=snapshot.spec.volume_id,
        claim=names.claims.get(snapshot.spec.volume_id, ""),
        node=snapshot.spec.node_id,
        size_bytes=status.size_bytes,
        allocated_bytes=status.allocated_bytes,
        shared_bytes=status.shared_bytes,
        point_in_time=status.point_in_time,
        handle=SnapshotHandle(snapshot.spec.volume_id, snapshot.meta.name).format(),
    )


def _words(volume: Volume, names: Names) -> str:
    claim = names.claims.get(volume.meta.name, "")
    return f"{volume.meta.name} {volume.spec.csi_name} {claim} {_origin(volume)[0]}"


def _words_of_snapshot(snapshot: Snapshot, names: Names) -> str:
    id_, volume = snapshot.meta.name, snapshot.spec.volume_id
    return f"{id_} {names.snapshots.get(id_, '')} {volume} {names.claims.get(volume, '')}"


def _full_name(reference: Mapping[str, Any] | None) -> str:
    if not reference or not reference.get("name"):
        return ""
    return f"{reference.get('namespace', '')}/{reference['name']}"


def _is_taken(content: Mapping[str, Any]) -> bool:
    """Whether a content was made by taking a snapshot, and not for a handle that was there."""
    return bool(((content.get("spec") or {}).get("source") or {}).get("volumeHandle"))


def _snapshot_id(content: Mapping[str, Any]) -> str:
    told = (content.get("status") or {}).get("snapshotHandle")
    written = ((content.get("spec") or {}).get("source") or {}).get("snapshotHandle")
    try:
        parsed = handles.parse(str(told or written or ""))
    except InvalidHandle:
        return ""  # another driver's
    return parsed.name if isinstance(parsed, SnapshotHandle) else ""


def _origin(volume: Volume) -> tuple[str, str]:
    source: VolumeSource = volume.spec.source
    if source.image:
        return f"image {source.image}", f"/images/{source.image}"
    if source.snapshot:
        return f"snapshot {source.snapshot}", f"/volumes?q={source.snapshot}"
    if source.volume:
        return f"volume {source.volume}", f"/volumes?q={source.volume}"
    return "blank", ""
