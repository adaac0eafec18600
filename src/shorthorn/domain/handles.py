"""Snapshot handles: the strings by which images and snapshots travel through Kubernetes.

Owns: the grammar of `bi://…` (a backing image) and `snap://volume/snapshot` (a volume's snapshot),
read and written exactly as Longhorn's driver does, so that a handle means the same to both.
Must never: look anything up, nor trust what it read: names come back verbatim and may be anything
that is not empty. Called by the CSI edge, `services.images`, `lint` and `shorthorn handle`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import quote

from shorthorn.domain import go_url
from shorthorn.domain.errors import InvalidArgument
from shorthorn.domain.handle_traps import (
    CHECKSUM,
    CHECKSUM_FORM,
    EXPORT_TYPES,
    IMAGE,
    RESERVED,
    SOURCE_TYPE,
    WEB_URL_FORM,
    TrapKind,
    find_traps,
)
from shorthorn.domain.models import NO_MAP, SourceType
from shorthorn.domain.names import problem_of_name

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Long handles are cut to this many characters in messages: Events hold 1024 bytes (arbitrary).
_SHOWN_CHARS: Final = 200
#: Parameters the documentation names, in its order; others follow sorted.
_WRITTEN_FIRST: Final = ("url", "volume-name", "export-type")
#: Traps that explain why a key which its writer sees in the text was not found there.
_HIDES_KEYS: Final = {TrapKind.MISSPELT_KEY, TrapKind.UNESCAPED_HASH, TrapKind.DROPPED_PAIR}


class InvalidHandle(InvalidArgument):
    """`handle` names nothing that can be looked up; `problem` says why and what to do.

    `shown` is the handle, cut to what a message has room for.
    """

    reason = "InvalidHandle"

    def __init__(self, handle: str, problem: str) -> None:
        self.shown = handle if len(handle) <= _SHOWN_CHARS else handle[:_SHOWN_CHARS] + "…"
        super().__init__("snapshotHandle", f"{self.shown!r} is not a usable handle: {problem}")
        self.handle = handle
        self.problem = problem


@dataclass(frozen=True, slots=True)
class BackingImageHandle:
    """`bi://…`: a backing image by name, with what is believed of its source.

    `checksum` is empty where none is given. `parameters` are all other pairs, verbatim, unknown
    ones too. `warnings` are sentences about traps in the text that was parsed; they are no part of
    the handle's value.
    """

    backing_image: str
    source_type: str
    checksum: str = ""
    parameters: Mapping[str, str] = field(default_factory=lambda: NO_MAP)
    warnings: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameters", MappingProxyType(dict(self.parameters)))

    def format(self) -> str:
        """Write the handle in the documented order, every key and value percent-encoded.

        Raises: InvalidHandle: no text would be read back as this handle.
        """
        pairs = {SOURCE_TYPE: self.source_type, IMAGE: self.backing_image}
        pairs |= {key: self.parameters[key] for key in _written_order(self.parameters)}
        if self.checksum:
            pairs[CHECKSUM] = self.checksum
        problem = self._unwritable(len(pairs))
        if problem:
            raise InvalidHandle(self.backing_image, problem)
        try:
            query = "&".join(f"{_escape(key)}={_escape(value)}" for key, value in pairs.items())
        except UnicodeEncodeError:
            raise InvalidHandle(self.backing_image, "a value is not valid Unicode") from None
        return f"bi://backing?{query}"

    def _unwritable(self, pairs: int) -> str:
        """Say why this handle has no text, or return an empty string."""
        if not self.backing_image or not self.source_type:
            return f"{IMAGE} and {SOURCE_TYPE} must not be empty"
        taken = RESERVED & self.parameters.keys()
        if taken:
            return f"{sorted(taken)[0]} is a field of its own, not a parameter"
        if pairs > go_url.PAIRS_MAX:
            return f"more than {go_url.PAIRS_MAX} parameters"
        return ""


@dataclass(frozen=True, slots=True)
class SnapshotHandle:
    """`snap://volume/name`: a snapshot kept beside its volume. Both parts verbatim, unescaped."""

    volume_id: str
    name: str
    warnings: tuple[str, ...] = field(default=(), compare=False)

    def format(self) -> str:
        """Write the handle.

        Raises: InvalidHandle: a part is empty or contains `/`, which cannot be escaped here.
        """
        for part in (self.volume_id, self.name):
            if not part or "/" in part:
                raise InvalidHandle(
                    f"snap://{self.volume_id}/{self.name}",
                    "volume and snapshot name must not be empty nor contain '/'",
                )
        return f"snap://{self.volume_id}/{self.name}"


def parse(handle: str) -> BackingImageHandle | SnapshotHandle:
    """Read a handle of either kind.

    Raises: InvalidHandle: of no kind known here, or without what its kind requires.
    """
    scheme, separator, rest = handle.partition("://")
    known = find_scheme(handle)
    if known == "bi":
        return _parse_backing_image(handle)
    if known == "snap":
        return _parse_snapshot(handle, rest)
    raise InvalidHandle(handle, _unknown_scheme(scheme if separator else None))


def find_scheme(handle: str) -> Literal["bi", "snap"] | None:
    """Return which kind of handle the text claims to be, None where it is of no known form.

    Tells a broken handle, whose reason somebody waits for, from an id that is none of ours.
    """
    if handle.startswith("bi://"):
        return "bi"
    return "snap" if handle.startswith("snap://") else None


def find_backing_image(handle: str) -> str | None:
    """Return the name a `bi://` handle gives, or None where it gives none or is of another kind.

    Less than `parse` asks for: deleting needs the name alone, and must never fail on a handle.
    """
    if find_scheme(handle) != "bi":
        return None
    try:
        values = go_url.query_of(handle).first_values()
    except go_url.MalformedUrl:
        return None
    return values.get(IMAGE) or None


def make(
    backing_image: str, source_type: str, checksum: str, parameters: Mapping[str, str]
) -> BackingImageHandle:
    """Return a handle that can work: every field checked for what would be refused later.

    A handle without parameters names an existing image and is accepted for every source type.

    Raises: InvalidArgument: the first field that is wrong, named as in the handle.
    """
    problem = problem_of_name(backing_image)
    if problem:
        raise InvalidArgument(IMAGE, f"{backing_image!r}: {problem}")
    if source_type not in list(SourceType):
        known = ", ".join(SourceType)
        raise InvalidArgument(SOURCE_TYPE, f"{source_type!r} is none of {known}")
    if checksum and not CHECKSUM_FORM.fullmatch(checksum):
        raise InvalidArgument(CHECKSUM, "a SHA-512 is 128 lower-case hexadecimal digits")
    for key, value in parameters.items():
        _check_parameter(key, value)
    if parameters:
        _check_complete(source_type, parameters)
    return BackingImageHandle(backing_image, source_type, checksum, parameters)


def _parse_backing_image(handle: str) -> BackingImageHandle:
    try:
        query = go_url.query_of(handle)
    except go_url.MalformedUrl as exc:
        raise InvalidHandle(handle, f"{exc}; percent-encode it") from None
    values = query.first_values()
    image, source_type = values.pop(IMAGE, ""), values.pop(SOURCE_TYPE, "")
    checksum = values.pop(CHECKSUM, "")
    traps = find_traps(handle)
    for key, value in ((IMAGE, image), (SOURCE_TYPE, source_type)):
        if not value:
            form = f"bi://backing?{SOURCE_TYPE}=TYPE&{IMAGE}=NAME"
            causes = [trap.message for trap in traps if trap.kind in _HIDES_KEYS]
            problem = "; ".join((f"{key} is missing", *causes, f"write {form}"))
            raise InvalidHandle(handle, problem)
    warnings = tuple(trap.message for trap in traps)
    return BackingImageHandle(image, source_type, checksum, values, warnings)


def _parse_snapshot(handle: str, rest: str) -> SnapshotHandle:
    # A second "://" ends what is read, and so does a second "/": both as Longhorn splits.
    pieces = rest.partition("://")[0].split("/")
    if len(pieces) < 2 or not pieces[0] or not pieces[1]:
        raise InvalidHandle(handle, "write snap://VOLUME/SNAPSHOT")
    ignored = rest[len(pieces[0]) + 1 + len(pieces[1]) :]
    warnings = (f"everything from {ignored!r} on is ignored",) if ignored else ()
    return SnapshotHandle(pieces[0], pieces[1], warnings)


def _unknown_scheme(scheme: str | None) -> str:
    known = "a handle begins with bi:// (a backing image) or snap:// (a volume's snapshot)"
    if scheme is None:
        return known
    if scheme in {"bak", "bs"}:
        return f"backups ({scheme}://) are not kept here; {known}"
    if scheme.strip().lower() in {"bi", "snap"}:
        return f"write {scheme.strip().lower()}:// in lower case, without spaces before it"
    return known


def _check_parameter(key: str, value: str) -> None:
    if key in RESERVED or not key:
        raise InvalidArgument(key or "parameter", "not a parameter; it has an option of its own")
    if key == "url" and not WEB_URL_FORM.fullmatch(value):
        raise InvalidArgument("url", f"{value!r}: give a http:// or https:// URL, no spaces")
    if key == "export-type" and value not in EXPORT_TYPES:
        raise InvalidArgument("export-type", f"{value!r} is neither raw nor qcow2")
    if not value:
        raise InvalidArgument(key, "must not be empty")


def _check_complete(source_type: str, parameters: Mapping[str, str]) -> None:
    required = {
        SourceType.DOWNLOAD: ("url",),
        SourceType.EXPORT_FROM_VOLUME: ("volume-name", "export-type"),
    }.get(SourceType(source_type), ())
    for key in required:
        if key not in parameters:
            raise InvalidArgument(key, f"required for {source_type} once any parameter is given")


def _written_order(parameters: Mapping[str, str]) -> list[str]:
    first = [key for key in _WRITTEN_FIRST if key in parameters]
    return first + sorted(parameters.keys() - set(first))


def _escape(text: str) -> str:
    return quote(text, safe="")
