"""How image bytes for people and machines pass between the web's edge and a node.

Owns paths and headers, and how an error of the domain is told and understood. Must never do I/O.
Called by `images.peer_bytes_server` and `images.peer_bytes_client`.

    HEAD   /v1/images/<name>/<uuid>/upload           how far the upload is
    PATCH  /v1/images/<name>/<uuid>/upload?offset=N  appends the body
    DELETE /v1/images/<name>/<uuid>/upload           gives the upload up
    HEAD   /v1/images/<name>/<uuid>/bytes/<form>     describes what would be read
    GET    /v1/images/<name>/<uuid>/bytes/<form>?start=N&stop=M

A range is two numbers in the query, since an empty one cannot be said in a Range header. What is
described is in headers, errors too: an answer to HEAD has nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from shorthorn.domain import errors
from shorthorn.domain.image_bytes import Artifact, UploadState
from shorthorn.images.peer_wire import image_path

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shorthorn.domain.image_bytes import ArtifactForm
    from shorthorn.domain.models import ImageKey

ERROR_HEADER: Final = "Shorthorn-Error"
ARTIFACT_HEADER: Final = "Shorthorn-Artifact"
UPLOAD_HEADER: Final = "Shorthorn-Upload"

KEEPALIVE_S: Final = 5.0
"""How often a node says that it still makes what was asked for (102 Processing)."""

#: Most letters of each text in an error, and what they are cut to where that is too much for the
#: 8190 bytes that HTTP parsers take: a letter can become twelve when it is escaped.
_LETTERS_MAX = 400
_LETTERS_FEW = 40
_HEADER_BYTES_MAX = 8000

_TEXT = (str,)
_NUMBER = (int,)
_LIMIT = (int, type(None))
#: The errors that keep their meaning, and the fields that make it.
_FIELDS: Mapping[type[errors.DomainError], Mapping[str, tuple[type, ...]]] = {
    errors.InvalidArgument: {"field": _TEXT, "problem": _TEXT},
    errors.NotFound: {"kind": _TEXT, "id": _TEXT, "hint": _TEXT},
    errors.InUse: {"kind": _TEXT, "id": _TEXT, "by": _TEXT},
    errors.OffsetMismatch: {
        "kind": _TEXT,
        "id": _TEXT,
        "state": _TEXT,
        "required": _TEXT,
        "offset_bytes": _NUMBER,
        "asked_bytes": _NUMBER,
    },
    errors.SizeOutOfRange: {
        "requested_bytes": _NUMBER,
        "minimum_bytes": _LIMIT,
        "maximum_bytes": _LIMIT,
    },
    errors.NoSpace: {"pool": _TEXT, "needed_bytes": _NUMBER, "free_bytes": _NUMBER},
    errors.Unavailable: {"part": _TEXT},
    errors.ImageFailed: {"image": _TEXT, "problem": _TEXT},
    errors.ChecksumMismatch: {
        "image": _TEXT,
        "problem": _TEXT,
        "expected": _TEXT,
        "actual": _TEXT,
    },
    errors.ImageRejected: {"image": _TEXT, "problem": _TEXT},
    errors.Corrupt: {"kind": _TEXT, "id": _TEXT},
}
_BY_REASON = {kind.reason: kind for kind in _FIELDS}


Told = TypeVar("Told")


class _Error(msgspec.Struct, frozen=True):
    reason: str
    message: str
    fields: dict[str, str | int | None]


def upload_path(key: ImageKey) -> str:
    """Return the path of an upload."""
    return f"{image_path(key)}/upload"


def bytes_path(key: ImageKey, form: ArtifactForm) -> str:
    """Return the path of an image in one form."""
    return f"{image_path(key)}/bytes/{form.value}"


def encode_error(exc: errors.DomainError) -> str:
    """Return an error as the value of ERROR_HEADER."""
    told = _encode_cut(exc, _LETTERS_MAX)
    return told if len(told) <= _HEADER_BYTES_MAX else _encode_cut(exc, _LETTERS_FEW)


def decode_error(text: str, node: str) -> errors.DomainError:
    """Return the error that `node` tells of; Unavailable where it cannot be understood."""
    try:
        told = msgspec.json.decode(text, type=_Error)
    except msgspec.MsgspecError:
        return errors.Unavailable(f"node {node}", "it tells of an error that cannot be read")
    kind = _BY_REASON.get(told.reason)
    wanted = _FIELDS[kind] if kind is not None else {}
    if kind is None or any(
        name not in told.fields or not isinstance(told.fields[name], types)
        for name, types in wanted.items()
    ):
        return errors.Unavailable(f"node {node}", told.message)
    # Not by its own constructor: that would make the message from parts that only the node knew.
    made = kind.__new__(kind, told.message)
    for name in wanted:
        setattr(made, name, told.fields[name])
    return made


def encode_state(state: UploadState) -> str:
    """Return how far an upload is as the value of UPLOAD_HEADER."""
    return _ascii(state)


def decode_state(text: str, node: str) -> UploadState:
    """Raises Unavailable: it cannot be read."""
    return _decoded(text, node, UploadState)


def encode_artifact(artifact: Artifact) -> str:
    """Return a description as the value of ARTIFACT_HEADER."""
    return _ascii(artifact)


def decode_artifact(text: str, node: str) -> Artifact:
    """Raises Unavailable: it cannot be read."""
    return _decoded(text, node, Artifact)


def _decoded(text: str, node: str, kind: type[Told]) -> Told:
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.MsgspecError as exc:
        raise errors.Unavailable(f"node {node}", f"its answer cannot be read: {exc}") from exc


def _encode_cut(exc: errors.DomainError, letters: int) -> str:
    values = {name: getattr(exc, name) for name in _FIELDS.get(type(exc), {})}
    fields = {n: v[:letters] if isinstance(v, str) else v for n, v in values.items()}
    return _ascii(_Error(exc.reason, str(exc)[:letters], fields))


def _ascii(value: object) -> str:
    """Return JSON that is fit for a header, whatever letters are in it."""
    text = msgspec.json.encode(value).decode()
    return "".join(c if c.isascii() and c.isprintable() else _escaped(c) for c in text)


def _escaped(letter: str) -> str:
    units = letter.encode("utf-16-be")
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))
