"""Domain values to and from the camelCase dictionaries of custom resources.

Owns: the rule that a dataclass field `capacity_bytes` is the key `capacityBytes`, and the few names
that differ because Longhorn named them first. Must never: know one kind from another beyond those
names. Empty texts, maps and lists are left out; numbers are said, also 0, because an empty column
looks like no answer.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, TypeVar

T = TypeVar("T")

_NOTHING: tuple[object, ...] = (None, "", [], {})
_ACRONYMS = {"id": "ID", "uuid": "UUID"}


def camel(name: str) -> str:
    """Return the JSON key of a field: `pool_uuid` → `poolUUID`."""
    head, *tail = name.split("_")
    return head + "".join(_ACRONYMS.get(part, part.capitalize()) for part in tail)


def encode(value: Any, names: Mapping[str, str]) -> Any:
    """Return JSON-ready data for a dataclass, mapping, tuple, enum, datetime or scalar.

    `names` gives the keys of fields that do not follow `camel`.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            names.get(field.name, camel(field.name)): encoded
            for field in dataclasses.fields(value)
            if (encoded := encode(getattr(value, field.name), names)) not in _NOTHING
            or _is_required(field)
        }
    if isinstance(value, datetime):
        return format_time(value)
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): encode(item, names) for key, item in value.items()}
    if isinstance(value, tuple):
        return [encode(item, names) for item in value]
    return value


def decode(cls: type[T], data: Mapping[str, Any] | None, names: Mapping[str, str]) -> T:
    """Return `cls` from its dictionary; keys that the class does not know are ignored.

    Raises TypeError where a field without default is missing, ValueError for a value out of its
    enumeration: both mean an object that did not pass the schema.
    """
    data = data or {}
    hints = _hints(typing.cast("Any", cls))
    values = {}
    for field in dataclasses.fields(typing.cast("Any", cls)):
        key = names.get(field.name, camel(field.name))
        if data.get(key) is not None:
            values[field.name] = _decoded(hints[field.name], data[key], names)
    return cls(**values)


def merge(stored: Any, before: Any, after: Any) -> Any:
    """Return `stored` with what changed from `before` to `after`; whatever neither knows stays.

    `before` is what we understood of `stored`, `after` what we want. Objects are merged key by key,
    lists and scalars replaced as a whole.
    """
    if not (isinstance(stored, Mapping) and isinstance(before, dict) and isinstance(after, dict)):
        return stored if before == after else after
    merged = {key: value for key, value in stored.items() if key in after or key not in before}
    for key, value in after.items():
        if key in stored:
            merged[key] = merge(stored[key], before.get(key), value)
        elif key not in before or before[key] != value:  # else a default that nobody wrote
            merged[key] = value
    return merged


def format_time(when: datetime) -> str:
    """RFC 3339 in UTC; microseconds only where there are any."""
    text = when.astimezone(UTC).isoformat(timespec="auto")
    return text.replace("+00:00", "Z")


def parse_time(text: str) -> datetime:
    """The reverse of `format_time`; accepts every RFC 3339 time."""
    return datetime.fromisoformat(text)


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _decoded(hint: Any, value: Any, names: Mapping[str, str]) -> Any:
    origin = typing.get_origin(hint)
    if origin is types.UnionType:
        inner = next(arg for arg in typing.get_args(hint) if arg is not type(None))
        return _decoded(inner, value, names)
    if origin is tuple:
        item = typing.get_args(hint)[0]
        return tuple(_decoded(item, element, names) for element in value)
    if origin is not None:
        item = typing.get_args(hint)[1]
        return {str(key): _decoded(item, element, names) for key, element in value.items()}
    if dataclasses.is_dataclass(hint):
        return decode(typing.cast("type[Any]", hint), value, names)
    if hint is datetime:
        return parse_time(value)
    return hint(value)
