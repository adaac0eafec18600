"""One backing image in full: parameters, checksum, copies, what deleting it would do.

Owns: what the detail page says, and which actions an image's state allows. Pure. Called by
`pages.image` and `web.feeds`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from shorthorn.domain.models import (
    BackingImage,
    Condition,
    CopyState,
    ImageCopy,
    Pool,
    SourceType,
)
from shorthorn.web.rates import Rates, Speed
from shorthorn.web.views.images import Row, State, is_retrying, row_of, shown_url, true_message

_PARAMETER_WORDS: Final = {
    "url": "URL",
    "volume-name": "Volume",
    "export-type": "Exported as",
    "backing-image": "Cloned from",
}


@dataclass(frozen=True, slots=True)
class CopyRow:
    """One copy: where, in which state, since when, and what it takes there."""

    node: str
    pool_uuid: str
    state: str
    progress_percent: int | None
    bytes_done: int
    bytes_total: int
    speed: Speed
    message: str
    changed_at: datetime | None
    allocated_bytes: int | None
    shared_bytes: int | None
    extent_count: int | None


@dataclass(frozen=True, slots=True)
class Detail:
    """What the page says of an image that changes by itself."""

    row: Row
    uuid: str
    checksum: str
    expected_checksum: str
    verification: Condition | None
    parameters: Sequence[tuple[str, str]]
    min_number_of_copies: int
    node_selector: Sequence[str]
    disk_selector: Sequence[str]
    point_in_time: datetime | None
    copies: Sequence[CopyRow]
    conditions: Sequence[Condition]
    awaits_upload: bool
    may_retry: bool

    @property
    def has_bytes(self) -> bool:
        return self.row.state is State.READY


def detail_of(
    image: BackingImage,
    copies: Sequence[ImageCopy],
    pools: Mapping[str, Pool],
    rates: Rates,
) -> Detail:
    """Return what the page says of `image`. `pools` by UUID."""
    spec, status = image.spec, image.status
    row = row_of(image, copies, rates)
    by_pool = {copy.spec.pool_uuid: copy for copy in copies}
    known = [*status.disk_file_status, *(u for u in by_pool if u not in status.disk_file_status)]
    return Detail(
        row=row,
        uuid=status.uuid,
        checksum=status.checksum,
        expected_checksum=spec.checksum,
        verification=next((c for c in status.conditions if c.type == "ChecksumVerified"), None),
        parameters=_parameters(image),
        min_number_of_copies=spec.min_number_of_copies,
        node_selector=spec.node_selector,
        disk_selector=spec.disk_selector,
        point_in_time=status.point_in_time,
        copies=[_copy_row(uuid, image, by_pool.get(uuid), pools, rates) for uuid in known],
        conditions=status.conditions,
        awaits_upload=awaits_upload(image),
        may_retry=row.state is State.FAILED
        or any(f.state is CopyState.FAILED for f in status.disk_file_status.values()),
    )


def awaits_upload(image: BackingImage) -> bool:
    """Whether somebody's bytes are still to come."""
    is_upload = image.spec.source_type == SourceType.UPLOAD
    return is_upload and not (image.is_ready or image.failure or image.meta.deleting)


def _copy_row(
    uuid: str,
    image: BackingImage,
    copy: ImageCopy | None,
    pools: Mapping[str, Pool],
    rates: Rates,
) -> CopyRow:
    file = image.status.disk_file_status.get(uuid)
    pool = pools.get(uuid)
    node = copy.spec.node_id if copy else (pool.spec.node_id if pool else "unknown node")
    status = copy.status if copy else None
    state = file.state if file else (status.state if status else CopyState.UNKNOWN)
    is_moving = state not in (CopyState.READY, CopyState.FAILED, CopyState.UNKNOWN)
    percent = file.progress_percent if file else 0
    is_failing = copy is not None and is_retrying(copy)
    speed = rates.speed_of(copy) if copy and is_moving and not is_failing else Speed()
    message = (file.message if file else "") or (status.message if status else "")
    return CopyRow(
        node=node,
        pool_uuid=uuid,
        state=State.RETRYING if is_failing else state,
        progress_percent=percent if is_moving and (percent or not is_failing) else None,
        bytes_done=status.bytes_done if status else 0,
        bytes_total=status.bytes_total if status else 0,
        speed=speed,
        message=true_message(message, is_stalled=speed.is_stalled),
        changed_at=(file.changed_at if file else None) or (status.changed_at if status else None),
        allocated_bytes=status.real_size_bytes or None if status else None,
        shared_bytes=status.shared_bytes if status and status.real_size_bytes else None,
        extent_count=status.extent_count or None if status else None,
    )


def _parameters(image: BackingImage) -> list[tuple[str, str]]:
    """Return the source's parameters in words; a URL without what may be secret in it."""
    return [
        (_PARAMETER_WORDS.get(key, key), shown_url(value) if key == "url" else value)
        for key, value in image.spec.source_parameters.items()
    ]
