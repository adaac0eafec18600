"""Rules about `bi://` and `snap://` handles in manifests, and the mended handle.

Must never: know the grammar (`domain.handles`) or the traps (`domain.handle_traps`); here a trap
gets its place in a file and, where one meaning is clear, the handle that was meant.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from shorthorn.domain import go_url, handles
from shorthorn.domain.handle_traps import (
    CHECKSUM_FORM,
    EXPORT_TYPES,
    TrapKind,
    close_source_type,
    find_traps,
    lower_case_of,
    stray_keys,
)
from shorthorn.domain.models import SourceType
from shorthorn.lint import edits
from shorthorn.lint.findings import Finding, Rule
from shorthorn.lint.structure import finding_at

if TYPE_CHECKING:
    from collections.abc import Iterator

    import yaml

_VOLUME_HANDLE = re.compile(r"pvc-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
#: Traps behind which something is lost that may have been meant: no handle with one is rewritten.
_UNCLEAR: Final = {
    TrapKind.UNESCAPED_HASH,
    TrapKind.UNESCAPED_PLUS,
    TrapKind.DROPPED_PAIR,
    TrapKind.DUPLICATE_KEY,
}
_INSTEAD: Final = {
    TrapKind.MISSING_PARAMETER: "add it, or leave out all parameters to name an existing image",
    TrapKind.UNEXPECTED_KEY: "remove it unless the existing image has this parameter",
    TrapKind.DUPLICATE_KEY: "remove the one that is not meant",
    TrapKind.CHECKSUM_FORMAT: "use the output of sha512sum on the image's file",
}


def check_handle(text: str, node: yaml.Node, handle: str) -> Iterator[Finding]:
    """Yield what is wrong with the handle in the scalar `node`, and what is only suspicious."""
    try:
        parsed = handles.parse(handle)
    except handles.InvalidHandle as exc:
        advice = "write one with: shorthorn handle make --help"
        yield finding_at(node, Rule.HANDLE_INVALID, exc.problem, advice)
        return
    mended = mend_handle(handle)
    for trap in find_traps(handle) if handle.startswith("bi://") else ():
        yield finding_at(
            node,
            Rule(f"handle-{trap.kind}"),
            trap.message,
            _INSTEAD.get(trap.kind, "mend the handle, or write it with: shorthorn handle make"),
            mend=(lambda: edits.replace_scalar(text, node, mended)) if mended else None,
        )
    if isinstance(parsed, handles.BackingImageHandle):
        yield from _check_volume_name(node, parsed)


def mend_handle(handle: str) -> str | None:
    """Return the handle that was meant, canonically written, or None where that is not clear.

    Mended are: case of types, misspelt source types, `checksum` for `backingImageChecksum`,
    upper-case checksums, and `&`, `#`, `+`, `;` within the url.
    """
    escaped = _escape_url(handle)
    try:
        parsed = handles.parse(escaped)
    except handles.InvalidHandle:
        return None
    if not isinstance(parsed, handles.BackingImageHandle):
        return None
    if any(trap.kind in _UNCLEAR for trap in find_traps(escaped)):
        return None
    parameters = dict(parsed.parameters)
    checksum = parsed.checksum or parameters.get("checksum", "")
    if checksum.lower() == parameters.get("checksum", "").lower():
        parameters.pop("checksum", None)
    if CHECKSUM_FORM.fullmatch(checksum.lower()):
        checksum = checksum.lower()
    export_type = parameters.get("export-type", "")
    lower = lower_case_of(export_type, frozenset(EXPORT_TYPES))
    if lower:
        parameters["export-type"] = lower
    source_type = _meant_source_type(parsed.source_type)
    meant = handles.BackingImageHandle(parsed.backing_image, source_type, checksum, parameters)
    mended = meant.format()
    return mended if _is_better(mended, handle) else None


def _is_better(mended: str, handle: str) -> bool:
    """Whether the mended handle has fewer traps, and none that the original had not."""
    before = [trap.kind for trap in find_traps(handle)]
    after = [trap.kind for trap in find_traps(mended)]
    return len(after) < len(before) and set(after) <= set(before)


def _meant_source_type(value: str) -> str:
    if value in list(SourceType):
        return value
    return lower_case_of(value, frozenset(SourceType)) or close_source_type(value) or value


def _escape_url(handle: str) -> str:
    """Escape what stands unescaped in the url of a handle and is meant as part of it."""
    head, mark, query = handle.partition("?")
    start = re.search(r"(?:^|&)url=", query)
    if not mark or start is None:
        return handle
    before, url = query[: start.end()], query[start.end() :]
    hash_at = url.find("#")
    if hash_at >= 0 and "&" not in url[:hash_at]:
        url = url.replace("#", "%23", 1)
    pieces = [piece for piece in url.split("&") if piece]
    if not pieces:
        return handle
    pieces[0] = pieces[0].replace("+", "%2B").replace(";", "%3B")
    try:
        strays = stray_keys(go_url.query_of(f"{head}?{before}{'&'.join(pieces)}"))
    except go_url.MalformedUrl:
        return handle
    whole = "%26".join(pieces[: 1 + len(strays)]).replace("+", "%2B")
    return f"{head}?{before}{'&'.join((whole, *pieces[1 + len(strays) :]))}"


def _check_volume_name(node: yaml.Node, parsed: handles.BackingImageHandle) -> Iterator[Finding]:
    volume = parsed.parameters.get("volume-name", "")
    if not volume or "${" in volume or _VOLUME_HANDLE.fullmatch(volume):
        return
    yield finding_at(
        node,
        Rule.PVC_NAME,
        f"volume-name {volume[:64]!r} does not look like a volume handle (pvc-<uid>)",
        "if it is a PVC's name, write what this prints:"
        f" kubectl get pvc {volume[:64]} -o jsonpath={{.spec.volumeName}}",
    )
