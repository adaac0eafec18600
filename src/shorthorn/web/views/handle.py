"""What a snapshot handle means, and what is wrong with it.

Owns: the words of the handle checker. Must never: know the grammar (`domain.handles` does). Pure.
Called by `pages.handle`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from shorthorn.domain import handles
from shorthorn.domain.errors import DomainError
from shorthorn.domain.handles import BackingImageHandle, InvalidHandle, SnapshotHandle
from shorthorn.domain.models import BackingImage, Snapshot
from shorthorn.services.image_requests import (
    check_creatable,
    check_matches,
    request_of_handle,
)
from shorthorn.web.views.images import SOURCE_WORDS, shown_url, state_of


@dataclass(frozen=True, slots=True)
class Reading:
    """`verdict`: ok, on-demand, wrong. `summary`: one sentence; `rows`: its fields in words."""

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
) -> Reading:
    """Return what a handle means here and now."""
    try:
        parsed = handles.parse(text.strip())
    except InvalidHandle as exc:
        return Reading("wrong", exc.problem)
    if isinstance(parsed, SnapshotHandle):
        return _snapshot(parsed, find_snapshot(parsed.name))
    return _image(parsed, find_image(parsed.backing_image), text.strip())


def _snapshot(handle: SnapshotHandle, found: Snapshot | None) -> Reading:
    rows = [("Kind", "snapshot kept beside its volume"), ("Volume", handle.volume_id)]
    rows.append(("Snapshot", handle.name))
    if found is None or found.spec.volume_id != handle.volume_id:
        summary = f"There is no snapshot {handle.name} of volume {handle.volume_id}."
        return Reading("wrong", summary, rows, handle.warnings)
    summary = f"The snapshot exists and is {found.status.state}."
    return Reading("ok", summary, rows, handle.warnings, f"/volumes?q={handle.volume_id}")


def _image(handle: BackingImageHandle, image: BackingImage | None, text: str) -> Reading:
    rows = [
        ("Kind", "backing image"),
        ("Backing image", handle.backing_image),
        ("Source", SOURCE_WORDS.get(handle.source_type, handle.source_type)),
    ]
    rows += [
        (key, shown_url(value) or value if key == "url" else value)
        for key, value in handle.parameters.items()
    ]
    rows.append(("Checksum (SHA-512)", handle.checksum or "none is asked for"))
    rewritten = _rewritten(handle, text)
    request = request_of_handle(handle)
    if image is not None:
        link = f"/images/{image.meta.name}"
        try:
            check_matches(image, request)
        except DomainError as exc:
            return Reading("wrong", f"{exc}.", rows, handle.warnings, link, rewritten)
        state, message = state_of(image)
        summary = f"The image exists and is {state}." + (f" {message}" if message else "")
        return Reading("ok", summary, rows, handle.warnings, link, rewritten)
    try:
        check_creatable(request)
    except DomainError as exc:
        return Reading("wrong", f"{exc}.", rows, handle.warnings, "", rewritten)
    summary = "There is no such image yet. It will be made when the first volume needs it."
    return Reading("on-demand", summary, rows, handle.warnings, "", rewritten)


def _rewritten(handle: BackingImageHandle, text: str) -> str:
    try:
        written = handle.format()
    except InvalidHandle:
        return ""
    return written if written != text else ""
