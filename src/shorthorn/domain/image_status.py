"""What a backing image's status says, as pure functions of its copies.

Owns: gathering the states of copies on many pools, and the conditions. Must never: do I/O or know
the time. Called by `controllers.backing_images`, the only writer of that status.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Final

from shorthorn.domain.copy_steps import CopyStep, CreateCopy, Wait
from shorthorn.domain.image_bytes import VERIFY_AT
from shorthorn.domain.models import (
    BackingImage,
    BackingImageStatus,
    Condition,
    CopyState,
    DiskFileStatus,
    ImageCopy,
)

ENOUGH: Final = "EnoughCopies"
"""The condition that tells of `minNumberOfCopies` and of copies that were asked for."""

COMPUTED: Final = "Computed"
"""Why ChecksumVerified is true where nothing was expected, and no copy has been read again yet."""

AWAY: Final = "the copy's node does not report"
_LACKING = ("NoPool", "Copying", "Computing", "CopyFailed")


def gather(
    image: BackingImage, copies: Sequence[ImageCopy], alive: Collection[str], now: datetime
) -> BackingImageStatus:
    """Return the image's status as its copies tell it.

    Args: alive: UUIDs of the pools whose nodes report; a copy elsewhere is unknown.
    """
    live = [copy for copy in copies if not copy.meta.deleting]
    if not live:
        return _without_copies(image, copies, now)
    here = [copy for copy in live if copy.spec.pool_uuid in alive]
    ready = [copy for copy in here if copy.status.state is CopyState.READY]
    image = dataclasses.replace(image, status=_measured(image, live, ready or here or live, alive))
    if ready:
        return with_conditions(image, _ready_conditions(image, live, ready), now)
    if all(copy.status.state is CopyState.FAILED for copy in live) and len(here) == len(live):
        wanted = _failed_conditions(live[0].status.reason, live[0].status.message)
        return with_conditions(image, [*wanted, *_condemnation(live)], now)
    if not here:
        return waiting(image, "NodeAway", AWAY, now)
    moving = [copy for copy in here if copy.status.state is not CopyState.FAILED]
    best = (moving or here)[0].status
    reason = best.reason or ("Pending" if best.state is CopyState.PENDING else "InProgress")
    message = best.message or f"{best.progress_percent} % of the image is here"
    return waiting(image, reason, message, now)


def failed(image: BackingImage, reason: str, message: str, now: datetime) -> BackingImageStatus:
    """Return the status of an image that cannot be made."""
    return with_conditions(image, _failed_conditions(reason, message), now)


def waiting(image: BackingImage, reason: str, message: str, now: datetime) -> BackingImageStatus:
    """Return the status of an image that is not there yet."""
    return with_conditions(image, [Condition("Ready", False, reason, message)], now)


def with_enough(
    image: BackingImage, steps: Sequence[CopyStep], now: datetime
) -> BackingImageStatus:
    """Return the status of a ready image with what its plan says about the number of copies.

    An image of which one copy is enough, and to which nothing is lacking, says nothing.
    """
    lacking = next((s for s in steps if isinstance(s, Wait) and s.reason in _LACKING), None)
    if lacking is not None:
        condition = Condition(ENOUGH, False, lacking.reason, lacking.message)
    elif any(isinstance(step, CreateCopy) for step in steps):
        condition = Condition(ENOUGH, False, "Copying", "a copy is about to be made")
    elif image.spec.min_number_of_copies > 1 or image.spec.disk_file_spec:
        condition = Condition(ENOUGH, True, "Enough")
    else:
        return image.status
    others = [c for c in image.status.conditions if c.type != ENOUGH]
    return with_conditions(image, [*others, condition], now)


def with_conditions(
    image: BackingImage, wanted: Sequence[Condition], now: datetime
) -> BackingImageStatus:
    """Replace the conditions; the time of one changes only with its status, or to a later one that
    it has already.
    """
    old = {condition.type: condition for condition in image.status.conditions}
    conditions = []
    for condition in wanted:
        before = old.get(condition.type)
        kept = before is not None and before.is_true == condition.is_true
        changed_at = before.changed_at if kept and before is not None else now
        if condition.changed_at is not None and (
            changed_at is None or changed_at < condition.changed_at
        ):
            changed_at = condition.changed_at
        conditions.append(dataclasses.replace(condition, changed_at=changed_at))
    return dataclasses.replace(image.status, conditions=tuple(conditions))


def _without_copies(
    image: BackingImage, copies: Sequence[ImageCopy], now: datetime
) -> BackingImageStatus:
    """A failure stays until a copy is made again; whatever else is gone is not ready."""
    if not copies:
        return image.status
    status = dataclasses.replace(image.status, disk_file_status={})
    image = dataclasses.replace(image, status=status)
    if image.failure is not None:
        return status
    return waiting(image, "Removing", "its copy is being removed", now)


def _measured(
    image: BackingImage,
    live: Sequence[ImageCopy],
    telling: Sequence[ImageCopy],
    alive: Collection[str],
) -> BackingImageStatus:
    """Sizes and checksum come from the first copy that knows them, and stay: a later copy is the
    same bytes.
    """
    status = image.status
    told = [copy.status for copy in telling]
    best = told[0]
    return dataclasses.replace(
        status,
        size_bytes=best.size_bytes or status.size_bytes,
        virtual_size_bytes=best.virtual_size_bytes or status.virtual_size_bytes,
        real_size_bytes=best.real_size_bytes or status.real_size_bytes,
        checksum=status.checksum or next((s.checksum for s in told if s.checksum), ""),
        format=best.format or status.format,
        # An export's. One that was never ready and is made anew has another one than it had.
        point_in_time=next((s.point_in_time for s in told if s.point_in_time), None)
        or (status.point_in_time if status.size_bytes else None),
        disk_file_status={
            copy.spec.pool_uuid: _disk_file(copy, is_alive=copy.spec.pool_uuid in alive)
            for copy in live
        },
    )


def _failed_conditions(reason: str, message: str) -> list[Condition]:
    return [Condition("Ready", False, reason, message), Condition("Failed", True, reason, message)]


def _ready_conditions(
    image: BackingImage, live: Sequence[ImageCopy], ready: Sequence[ImageCopy]
) -> list[Condition]:
    checksum = image.status.checksum
    condemned = _condemnation(live)
    if condemned:
        return [Condition("Ready", True, "Ready"), *condemned]
    if not checksum:
        verified = Condition(
            "ChecksumVerified", False, "Computing", "the checksum is being computed"
        )
    elif image.spec.checksum and image.spec.checksum != checksum:
        message = f"expected {image.spec.checksum}, the artifact has {checksum}"
        verified = Condition("ChecksumVerified", False, "ChecksumMismatch", message)
    else:
        is_compared = bool(image.spec.checksum) or any(c.status.verified_at for c in ready)
        reason = "Verified" if is_compared else COMPUTED
        verified = Condition("ChecksumVerified", True, reason, "", _verified_at(image, ready))
    return [Condition("Ready", True, "Ready"), verified]


def _condemnation(live: Sequence[ImageCopy]) -> list[Condition]:
    """Return that a copy is damaged, as long as it is there."""
    told = next((copy.status.message for copy in live if copy.is_condemned), None)
    return [] if told is None else [Condition("ChecksumVerified", False, "Corrupt", told)]


def _verified_at(image: BackingImage, ready: Sequence[ImageCopy]) -> datetime | None:
    """Return when the last of all ready copies was verified as was asked for; None: not all were.

    It becomes the condition's time: who asked sees that it is said anew.
    """
    wanted = image.meta.annotations.get(VERIFY_AT, "")
    done = [c.status.verified_at for c in ready if c.status.verify_at == wanted != ""]
    times = [when for when in done if when is not None]
    return max(times) if times and len(times) == len(ready) else None


def _disk_file(copy: ImageCopy, *, is_alive: bool) -> DiskFileStatus:
    status = copy.status
    if not is_alive:
        return DiskFileStatus(CopyState.UNKNOWN, status.progress_percent, AWAY, status.changed_at)
    return DiskFileStatus(status.state, status.progress_percent, status.message, status.changed_at)
