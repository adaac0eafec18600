"""The overview: room, what is shared, what moves, what went wrong.

Owns: the sums over pools, images and volumes, and which errors are the last ones. Pure. Called by
`pages.overview` and `web.feeds`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from shorthorn.domain.models import CopyState, ImageCopy, Pool, VolumeState
from shorthorn.web.rates import MOVING, Rates, Speed
from shorthorn.web.views.images import State, is_retrying, state_of, true_message
from shorthorn.web.watched import Watched

ERRORS_MAX: Final = 8
TRANSFERS_MAX: Final = 20
_EPOCH: Final = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, slots=True)
class PoolCard:
    """One pool. `obstacle`: why nothing is placed there; empty: it is well."""

    node: str
    uuid: str
    path: str
    clone_method: str
    capacity_bytes: int
    allocated_bytes: int
    available_bytes: int
    promised_bytes: int
    obstacle: str
    tags: Sequence[str]

    @property
    def used_percent(self) -> int:
        return round(100 * self.allocated_bytes / self.capacity_bytes) if self.capacity_bytes else 0


@dataclass(frozen=True, slots=True)
class Transfer:
    """One copy that is being made."""

    image: str
    node: str
    source: str
    progress_percent: int
    bytes_done: int
    bytes_total: int
    speed: Speed
    message: str


@dataclass(frozen=True, slots=True)
class Error:
    """Something that went wrong, and where to look."""

    what: str
    link: str
    reason: str
    message: str
    at: datetime | None


@dataclass(frozen=True, slots=True)
class Overview:
    """All of the page."""

    pools: Sequence[PoolCard]
    images: int
    image_states: Sequence[tuple[State, int]]
    volumes: int
    snapshots: int
    #: What files say they take, together, and how much of it they have in common.
    allocated_bytes: int
    shared_bytes: int
    transfers: Sequence[Transfer]
    transfers_total: int
    errors: Sequence[Error]

    @property
    def is_retrying(self) -> bool:
        return any(state is State.RETRYING for state, _ in self.image_states)

    @property
    def is_well(self) -> bool:
        return bool(self.pools) and not any(pool.obstacle for pool in self.pools)


def overview_of(watched: Watched, rates: Rates) -> Overview:
    """Return the overview of everything."""
    images = watched.images.cached()
    copies = watched.copies.cached()
    volumes = watched.volumes.cached()
    snapshots = watched.snapshots.cached()
    states = Counter(state_of(image)[0] for image in images)
    moving = [c for c in copies if c.status.state in MOVING and not is_retrying(c)]
    return Overview(
        pools=[_card(p) for p in sorted(watched.pools.cached(), key=lambda p: p.spec.node_id)],
        images=len(images),
        image_states=[(state, states[state]) for state in State if states[state]],
        volumes=len(volumes),
        snapshots=len(snapshots),
        allocated_bytes=sum(c.status.real_size_bytes for c in copies)
        + sum(v.status.allocated_bytes for v in volumes)
        + sum(s.status.allocated_bytes for s in snapshots),
        shared_bytes=sum(c.status.shared_bytes for c in copies)
        + sum(v.status.shared_bytes for v in volumes)
        + sum(s.status.shared_bytes for s in snapshots),
        transfers=[
            _transfer(copy, rates.speed_of(copy))
            for copy in sorted(moving, key=lambda c: c.spec.image)[:TRANSFERS_MAX]
        ],
        transfers_total=len(moving),
        errors=_errors(watched),
    )


def _card(pool: Pool) -> PoolCard:
    spec, status = pool.spec, pool.status
    bad = [c for c in status.conditions if c.type == "Ready" and not c.is_true]
    return PoolCard(
        node=spec.node_id,
        uuid=spec.pool_uuid,
        path=spec.path,
        clone_method=status.clone_method,
        capacity_bytes=status.capacity_bytes,
        allocated_bytes=status.allocated_bytes,
        available_bytes=status.available_bytes,
        promised_bytes=status.promised_bytes,
        obstacle=(bad[0].message or bad[0].reason) if bad else "",
        tags=(*spec.node_tags, *spec.tags),
    )


def _transfer(copy: ImageCopy, speed: Speed) -> Transfer:
    return Transfer(
        image=copy.spec.image,
        node=copy.spec.node_id,
        source=copy.spec.source_type,
        progress_percent=copy.status.progress_percent,
        bytes_done=copy.status.bytes_done,
        bytes_total=copy.status.bytes_total,
        speed=speed,
        message=true_message(copy.status.message, is_stalled=speed.is_stalled),
    )


def _errors(watched: Watched) -> list[Error]:
    found = []
    for image in watched.images.cached():
        failure = image.failure
        if failure is not None:
            name = image.meta.name
            what, link = f"Image {name}", f"/images/{name}"
            found.append(Error(what, link, failure.reason, failure.message, failure.changed_at))
    for copy in watched.copies.cached():
        status, name = copy.status, copy.spec.image
        if status.state is CopyState.FAILED and not _has_failed(watched, name):
            what, link = f"Copy of {name} on {copy.spec.node_id}", f"/images/{name}"
            found.append(Error(what, link, status.reason, status.message, status.changed_at))
        elif is_retrying(copy):
            what, link = f"Copy of {name} on {copy.spec.node_id}, retrying", f"/images/{name}"
            found.append(Error(what, link, status.reason, status.message, status.changed_at))
    for kind, objects in (("Volume", watched.volumes), ("Snapshot", watched.snapshots)):
        for obj in objects.cached():
            if obj.status.state is VolumeState.FAILED:
                what, link = f"{kind} {obj.meta.name}", f"/volumes?q={obj.meta.name}"
                reason, message = obj.status.reason, obj.status.message
                found.append(Error(what, link, reason, message, obj.meta.created_at))
    found.sort(key=lambda error: error.at or _EPOCH, reverse=True)
    return found[:ERRORS_MAX]


def _has_failed(watched: Watched, name: str) -> bool:
    image = watched.images.find_cached(name)
    return image is not None and image.failure is not None
