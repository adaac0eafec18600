"""Traps in `bi://` handles: text that parses, and means something else than its writer thinks.

Owns: the words of a handle (keys, source types, export types) and every warning about them.
Must never: refuse a handle (`domain.handles` does) or look anything up. Called by
`domain.handles`, and by `lint`, which gives each kind a severity.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from typing import Final

from shorthorn.domain import go_url
from shorthorn.domain.models import ImageFormat, SourceType
from shorthorn.domain.names import problem_of_name

IMAGE: Final = "backingImage"
SOURCE_TYPE: Final = "backingImageDataSourceType"
CHECKSUM: Final = "backingImageChecksum"
#: Keys that are fields of the handle; all others are source parameters.
RESERVED: Final = frozenset({IMAGE, SOURCE_TYPE, CHECKSUM})
EXPORT_TYPES: Final = frozenset(ImageFormat)
CHECKSUM_FORM: Final = re.compile(r"[0-9a-f]{128}")
WEB_URL_FORM: Final = re.compile(r"https?://[^/?#\s]\S*", re.IGNORECASE)

#: The parameters each source type stores in BackingImage.spec.sourceParameters.
PARAMETERS: Final = {
    SourceType.DOWNLOAD: frozenset({"url"}),
    SourceType.UPLOAD: frozenset[str](),
    SourceType.EXPORT_FROM_VOLUME: frozenset({"volume-name", "export-type"}),
    SourceType.RESTORE: frozenset({"backup-url", "concurrent-limit", "backup-target-name"}),
    SourceType.CLONE: frozenset({"backing-image", "encryption", "secret", "secret-namespace"}),
}
_KEYS: Final = sorted(RESERVED.union(*PARAMETERS.values()))
#: Names people write that are spelt too differently for a similarity match to find.
_ALIASES: Final = {
    "sourcetype": SOURCE_TYPE,
    "datasourcetype": SOURCE_TYPE,
    "volume": "volume-name",
    "name": IMAGE,
}
#: What an escaped URL never holds: a url with one of these was written, or ends, unescaped.
_UNESCAPED: Final = re.compile(r"[:/?=]")
#: Longer keys and keys past this many are not compared: handles come from strangers (arbitrary).
_COMPARED_CHARS_MAX: Final = 64
_COMPARED_KEYS_MAX: Final = 32


class TrapKind(StrEnum):
    """Stable names of the traps; docs/handles.md explains each."""

    UNESCAPED_AMPERSAND = "unescaped-ampersand"
    UNESCAPED_HASH = "unescaped-hash"
    UNESCAPED_PLUS = "unescaped-plus"
    DROPPED_PAIR = "dropped-pair"
    DUPLICATE_KEY = "duplicate-key"
    CHECKSUM_KEY = "checksum-key"
    CHECKSUM_FORMAT = "checksum-format"
    UPPER_CASE = "upper-case"
    UNKNOWN_SOURCE_TYPE = "unknown-source-type"
    UNKNOWN_EXPORT_TYPE = "unknown-export-type"
    MISSPELT_KEY = "misspelt-key"
    UNEXPECTED_KEY = "unexpected-key"
    MISSING_PARAMETER = "missing-parameter"
    URL_SCHEME = "url-scheme"
    IMAGE_NAME = "image-name"
    PLACEHOLDER = "placeholder"


@dataclass(frozen=True, slots=True)
class Trap:
    """One trap found: what the text really means, and what to write instead."""

    kind: TrapKind
    message: str


def find_traps(handle: str) -> tuple[Trap, ...]:
    """Return the traps in a `bi://` handle; none for one that does not parse at all."""
    try:
        query = go_url.query_of(handle)
    except go_url.MalformedUrl:
        return ()
    values = query.first_values()
    _, _, cut = handle.partition("#")
    return (
        *_cut_traps(cut, has_cut="#" in handle),
        *_pair_traps(query),
        *_name_traps(values),
        *_source_type_traps(values),
        *_checksum_traps(values),
        *_parameter_traps(values),
        *_key_traps(query, values),
    )


def lower_case_of(value: str, known: frozenset[str] | frozenset[SourceType]) -> str | None:
    """Return the known word that `value` is but for its case, or None."""
    return value.lower() if value not in known and value.lower() in known else None


def close_source_type(value: str) -> str | None:
    """Return the source type that `value` was probably meant to be, or None."""
    return next(
        iter(get_close_matches(value[:_COMPARED_CHARS_MAX].lower(), list(SourceType))), None
    )


def close_key(key: str) -> str | None:
    """Return the known key that the unknown `key` was probably meant to be, or None.

    `checksum` is not among them: it has a trap of its own.
    """
    if len(key) > _COMPARED_CHARS_MAX:
        return None
    folded = re.sub(r"[-_]", "", key).lower()
    if folded in _ALIASES:
        return _ALIASES[folded]
    spelt = {re.sub(r"-", "", known).lower(): known for known in _KEYS}
    found = get_close_matches(folded, list(spelt), n=1, cutoff=0.82)
    return spelt[found[0]] if found else None


def stray_keys(query: go_url.Query) -> tuple[str, ...]:
    """Return the keys an unescaped `&` probably cut off the URL: unknown, right behind `url`."""
    keys = [pair.key for pair in query.pairs]
    if "url" not in keys:
        return ()
    at = keys.index("url")
    if not _UNESCAPED.search(query.pairs[at].raw.partition("=")[2]):
        return ()
    strays: list[str] = []
    for key in keys[at + 1 : at + 1 + _COMPARED_KEYS_MAX]:
        if key in _KEYS or key == "checksum" or close_key(key):
            break
        strays.append(key)
    return tuple(strays)


def _cut_traps(cut: str, *, has_cut: bool) -> list[Trap]:
    if not has_cut:
        return []
    return [
        Trap(
            TrapKind.UNESCAPED_HASH,
            f"everything after '#' is dropped ({_short(cut)}); write '#' as %23",
        )
    ]


def _pair_traps(query: go_url.Query) -> list[Trap]:
    traps: list[Trap] = []
    strays = stray_keys(query)
    if strays:
        listed = ", ".join(_short(key) for key in strays)
        traps.append(
            Trap(
                TrapKind.UNESCAPED_AMPERSAND,
                f"the url ends at the first '&'; {listed} became parameters of their own;"
                " write '&' within the url as %26",
            )
        )
    traps.extend(
        Trap(
            TrapKind.UNESCAPED_PLUS,
            f"'+' in {_short(pair.key)} is read as a space; write %2B for a plus sign",
        )
        for pair in query.pairs
        if "+" in pair.raw.partition("=")[2]
    )
    traps.extend(
        Trap(
            TrapKind.DROPPED_PAIR,
            f"{_short(raw)} is dropped because of ';' or a broken % escape;"
            " write ';' as %3B and '%' as %25",
        )
        for raw in query.dropped
    )
    return traps + _duplicate_traps(query)


def _duplicate_traps(query: go_url.Query) -> list[Trap]:
    first = query.first_values()
    repeated = {pair.key: None for pair in query.pairs if first[pair.key] != pair.value}
    return [
        Trap(
            TrapKind.DUPLICATE_KEY,
            f"{_short(key)} is given more than once; the first, {_short(first[key])}, counts",
        )
        for key in repeated
    ]


def _name_traps(values: dict[str, str]) -> list[Trap]:
    placeholders = [value for value in values.values() if "${" in value]
    if placeholders:
        return [
            Trap(TrapKind.PLACEHOLDER, f"{_short(placeholders[0])} is a placeholder; fill it in")
        ]
    image = values.get(IMAGE, "")
    problem = problem_of_name(image) if image else ""
    if not problem:
        return []
    message = f"no BackingImage can be named {_short(image)}: {problem}"
    return [Trap(TrapKind.IMAGE_NAME, message)]


def _source_type_traps(values: dict[str, str]) -> list[Trap]:
    value = values.get(SOURCE_TYPE, "")
    if not value or value in list(SourceType) or "${" in value:
        return []
    lower = lower_case_of(value, frozenset(SourceType))
    if lower:
        message = f"source types are lower-case: write {lower}, not {_short(value)}"
        return [Trap(TrapKind.UPPER_CASE, message)]
    meant = close_source_type(value)
    hint = f"; did you mean {meant}?" if meant else f"; known are {', '.join(SourceType)}"
    return [Trap(TrapKind.UNKNOWN_SOURCE_TYPE, f"{_short(value)} is no source type{hint}")]


def _checksum_traps(values: dict[str, str]) -> list[Trap]:
    traps: list[Trap] = []
    if "checksum" in values:
        traps.append(
            Trap(
                TrapKind.CHECKSUM_KEY,
                f"checksum is an ordinary parameter that is never verified and that keeps the"
                f" handle from matching an existing image; write {CHECKSUM}",
            )
        )
    value = values.get(CHECKSUM, "")
    if value and "${" not in value and not CHECKSUM_FORM.fullmatch(value):
        traps.append(
            Trap(
                TrapKind.CHECKSUM_FORMAT,
                f"{CHECKSUM} is not a SHA-512 of 128 lower-case hexadecimal digits"
                f" ({len(value)} characters)",
            )
        )
    return traps


def _parameter_traps(values: dict[str, str]) -> list[Trap]:
    traps: list[Trap] = []
    export_type = values.get("export-type")
    if export_type is not None and export_type not in EXPORT_TYPES and "${" not in export_type:
        lower = lower_case_of(export_type, frozenset(EXPORT_TYPES))
        if lower:
            message = f"export types are lower-case: write {lower}, not {_short(export_type)}"
            traps.append(Trap(TrapKind.UPPER_CASE, message))
        else:
            message = f"export-type {_short(export_type)} is neither raw nor qcow2"
            traps.append(Trap(TrapKind.UNKNOWN_EXPORT_TYPE, message))
    url = values.get("url")
    if url and "${" not in url and not re.match(r"https?://", url, re.IGNORECASE):
        message = f"the url {_short(url)} is neither http:// nor https://"
        traps.append(Trap(TrapKind.URL_SCHEME, message))
    return traps + _missing_traps(values)


def _missing_traps(values: dict[str, str]) -> list[Trap]:
    """Without any parameter a handle names an existing image; with some it must have all."""
    source_type = values.get(SOURCE_TYPE, "")
    if source_type not in {SourceType.DOWNLOAD, SourceType.EXPORT_FROM_VOLUME}:
        return []
    if not values.keys() - RESERVED:
        return []
    return [
        Trap(
            TrapKind.MISSING_PARAMETER,
            f"{key} is missing: an image that does not exist yet cannot be made by"
            f" {source_type} without it",
        )
        for key in sorted(PARAMETERS[SourceType(source_type)])
        if not values.get(key)
    ]


def _key_traps(query: go_url.Query, values: dict[str, str]) -> list[Trap]:
    source_type = values.get(SOURCE_TYPE, "")
    if source_type not in list(SourceType):
        expected = frozenset(_KEYS)
    else:
        expected = RESERVED | PARAMETERS[SourceType(source_type)]
    skipped = expected | {"checksum", *stray_keys(query)}
    unknown = [key for key in values if key not in skipped]
    return [_key_trap(key, source_type) for key in unknown[:_COMPARED_KEYS_MAX]]


def _key_trap(key: str, source_type: str) -> Trap:
    meant = None if key in _KEYS else close_key(key)
    if meant:
        return Trap(TrapKind.MISSPELT_KEY, f"{_short(key)} is unknown; did you mean {meant}?")
    return Trap(
        TrapKind.UNEXPECTED_KEY,
        f"{_short(key)} is no parameter of {_short(source_type)}; it is kept, and matches only an"
        " image that was made with it",
    )


def _short(text: str) -> str:
    """Quote `text` for a message, cut to a length that fits one line."""
    return repr(text if len(text) <= 60 else text[:60] + "…")
