"""What an image that is made of another one waits for, as pure functions of what is there.

Owns: whether a clone can begin, why not, and what becomes of one whose source went away while it
was made. Must never: do I/O, wait or know the time. Called by `domain.copies`.
"""

from __future__ import annotations

from typing import Final

from shorthorn.domain.copy_scene import Scene, comes_again, was_ready
from shorthorn.domain.copy_steps import CopyStep, Refuse, RemoveCopy, Wait
from shorthorn.domain.image_bytes import CLONE_SOURCE, CLONE_UUID, RETRIED, RETRY_AT
from shorthorn.domain.models import BackingImage, SourceType

SOURCE_NOT_READY: Final = "SourceNotReady"
"""Why a clone waits: the image that it is made of is not there, or not ready."""

SOURCE_FAILED: Final = "SourceFailed"
"""Why a clone cannot begin: the image that it is made of failed, and somebody must mend it."""

_GONE_SOURCE = ("NotFound", "Unavailable")
"""Reasons by which a clone's copy says that it does not find its source."""


def hindrance(scene: Scene) -> Refuse | Wait | None:
    """Return what keeps a clone from beginning; None: nothing."""
    parameters = scene.image.spec.source_parameters
    if parameters.get("encryption", "ignore") not in ("", "ignore"):
        return Refuse("UnsupportedSource", "clones that encrypt or decrypt are not supported")
    name = parameters.get(CLONE_SOURCE, "")
    if name in ("", scene.image.meta.name):
        message = f"source parameter {CLONE_SOURCE} must name another backing image, not {name!r}"
        return Refuse("InvalidArgument", message)
    origin = scene.origin.image if scene.origin else None
    if origin is None or origin.meta.deleting:
        what = "does not exist" if origin is None else "is being deleted"
        return Wait(SOURCE_NOT_READY, f"waits for backing image {name}, which {what}")
    if _has_failed_for_good(origin):
        return Refuse(SOURCE_FAILED, _why_failed(origin))
    if not origin.is_ready:
        is_circle = origin.spec.source_parameters.get(CLONE_SOURCE) == scene.image.meta.name
        circle = ", which is to be a clone of this one: delete one of them" if is_circle else ""
        return Wait(SOURCE_NOT_READY, f"waits for backing image {name} to be ready{circle}")
    checksum, expected = origin.status.checksum, scene.image.spec.checksum.strip().lower()
    if not checksum:
        return Wait(SOURCE_NOT_READY, f"waits for the checksum of backing image {name}")
    if expected not in ("", checksum):
        message = f"expected {expected}, backing image {name} has {checksum}"
        return Refuse("ChecksumMismatch", message)
    return None


def _has_failed_for_good(origin: BackingImage) -> bool:
    """Whether an image stays failed until somebody does something, and nobody has yet."""
    if origin.failure is None or origin.is_ready:
        return False
    annotations = origin.meta.annotations
    is_tried_again = annotations.get(RETRY_AT, "") not in ("", annotations.get(RETRIED))
    return not is_tried_again and not comes_again(origin)


def _why_failed(origin: BackingImage) -> str:
    """Return why a clone cannot be made, and what to do. The words of a clone's origin are not
    handed on: in a circle of clones they would grow with each turn.
    """
    assert origin.failure is not None, "only failed images are told of"
    reason, message = origin.failure.reason, origin.failure.message
    why = reason if reason == SOURCE_FAILED or not message else f"{reason}: {message}"
    return (
        f"backing image {origin.meta.name}, which is to be cloned, has failed ({why}); when "
        "that is mended and it is tried again, or made anew, the clone begins by itself"
    )


def stranded(scene: Scene) -> tuple[CopyStep, ...]:
    """Plan a clone's copy that was begun and does not find its source any more: it is given up, and
    the clone waits again as before it was begun.
    """
    if not is_unmade_clone(scene.image):
        return ()
    origin = scene.origin.image if scene.origin else None
    is_lost = origin is None or origin.meta.deleting or _has_failed_for_good(origin)
    uuid = origin.status.uuid if origin is not None and not is_lost else ""
    name = scene.image.spec.source_parameters.get(CLONE_SOURCE, "")
    steps = [
        RemoveCopy(copy.meta.name, "the image that it was made of is gone")
        for copy in (*scene.failed, *scene.moving)
        if copy.status.reason in _GONE_SOURCE
        and copy.spec.source_parameters.get(CLONE_UUID) != uuid
    ]
    if not steps:
        return ()
    return (Wait(SOURCE_NOT_READY, f"backing image {name} went away; begins anew"), *steps)


def is_unmade_clone(image: BackingImage) -> bool:
    return image.spec.source_type == SourceType.CLONE and not was_ready(image)
