"""What a snapshot handle means, and what is wrong with it.

Owns: the words of the handle checker. Must never: know the grammar (`domain.handles` does). Pure.
Called by `pages.handle`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from shorthorn.domain import handles
from shorthorn.domain.errors import DomainError, InvalidArgument
from shorthorn.domain.handles import BackingImageHandle, InvalidHandle, SnapshotHandle
from shorthorn.domain.models import BackingImage, Snapshot, SourceType, Volume
from shorthorn.services.image_requests import (
    VOLUME_NAME,
    check_creatable,
    check_matches,
    request_of_handle,
)
from shorthorn.web.views.images import SOURCE_WORDS, State, shown_url, state_of

_VERDICTS: Final = {State.READY: "ok", State.FAILED: "unusable", State.DELETING: "unusable"}


@dataclass(frozen=True, slots=True)
class Reading:
    """`summary`: one sentence; `rows`: its fields in words.

    `verdict`: ok; not-yet and unusable (what it names is there, but not ready, or of no use any
    more); on-demand; wrong.
    """

    verdict: str
    summary: str
    rows: Sequence[tuple[str, str]] = ()
    warnings: Sequence[str] = ()
    link: str = ""
    #: The same, percent-encoded and in the documented order; empty where that cannot be had.
    rewritten: str = field(default="")


def read_handle(
    text: str,
    find_image: Callable[[str], BackingImage | None],
    find_snapshot: Callable[[str], Snapshot | None],
    find_volume: Callable[[str], Volume | None] | None,
) -> Reading:
    """Return what a handle means here and now. `find_volume`: None where the user may not look."""
    try:
        parsed = handles.parse(text.strip())
    except InvalidHandle as exc:
        return Reading("wrong", exc.problem)
    if isinstance(parsed, SnapshotHandle):
        return _snapshot(parsed, find_snapshot(parsed.name))
    image = find_image(parsed.backing_image)
    rewritten = _rewritten(parsed, text.strip())
    if image is None:
        return _absent(parsed, find_volume, rewritten)
    return _image(parsed, image, rewritten)


def _snapshot(handle: SnapshotHandle, found: Snapshot | None) -> Reading:
    rows = [("Kind", "snapshot kept beside its volume"), ("Volume", handle.volume_id)]
    rows.append(("Snapshot", handle.name))
    if found is None or found.spec.volume_id != handle.volume_id:
        summary = f"There is no snapshot {handle.name} of volume {handle.volume_id}."
        return Reading("wrong", summary, rows, handle.warnings)
    state = "deleting" if found.meta.deleting else str(found.status.state)
    summary = f"The snapshot exists and is {state}."
    if found.status.message:
        summary += f" {found.status.message}"
    verdict = {"ready": "ok", "pending": "not-yet"}.get(state, "unusable")
    return Reading(verdict, summary, rows, handle.warnings, f"/volumes?q={handle.volume_id}")


def _image(handle: BackingImageHandle, image: BackingImage, rewritten: str) -> Reading:
    rows, link = _rows(handle), f"/images/{image.meta.name}"
    try:
        check_matches(image, request_of_handle(handle))
    except DomainError as exc:
        return Reading("wrong", _problem(exc), rows, handle.warnings, link, rewritten)
    state, message = state_of(image)
    summary = f"The image exists and is {state}." + (f" {message}" if message else "")
    verdict = _VERDICTS.get(state, "not-yet")
    return Reading(verdict, summary, rows, handle.warnings, link, rewritten)


def _absent(
    handle: BackingImageHandle,
    find_volume: Callable[[str], Volume | None] | None,
    rewritten: str,
) -> Reading:
    """Say whether an image that is not there would be made."""
    rows, request = _rows(handle), request_of_handle(handle)
    try:
        check_creatable(request)
    except DomainError as exc:
        return Reading("wrong", _problem(exc), rows, handle.warnings, "", rewritten)
    summary = "There is no such image yet. It will be made when the first volume needs it"
    if request.source_type == SourceType.EXPORT_FROM_VOLUME:
        source = request.parameters[VOLUME_NAME]
        if find_volume is None:
            summary += f", if there is a volume {source}: your rights do not include listing them"
        else:
            volume = find_volume(source)
            if volume is None or volume.meta.deleting:
                gone = f"There is no such image, and no volume {source} that it could be made of."
                return Reading("wrong", gone, rows, handle.warnings, "", rewritten)
    return Reading("on-demand", f"{summary}.", rows, handle.warnings, "", rewritten)


def _rows(handle: BackingImageHandle) -> list[tuple[str, str]]:
    return [
        ("Kind", "backing image"),
        ("Backing image", handle.backing_image),
        ("Source", SOURCE_WORDS.get(handle.source_type, handle.source_type)),
        *(
            (key, shown_url(value) or value if key == "url" else value)
            for key, value in handle.parameters.items()
        ),
        ("Checksum (SHA-512)", handle.checksum or "none is asked for"),
    ]


def _problem(exc: DomainError) -> str:
    return f"{exc.problem if isinstance(exc, InvalidArgument) else exc}."


def _rewritten(handle: BackingImageHandle, text: str) -> str:
    try:
        written = handle.format()
    except InvalidHandle:
        return ""
    return written if written != text else ""
