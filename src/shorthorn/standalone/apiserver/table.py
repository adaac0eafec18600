"""Tables: what `kubectl get` prints, one row per object.

Owns the `meta.k8s.io` Table form: columns from the CRD (or from `printers` for core kinds), cells
by their type, ages in words. It must not touch the store. Called by `rendering`. Source:
apiextensions-apiserver `registry/customresource/tableconvertor`, apimachinery `util/duration`.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from shorthorn.standalone.apiserver import printers
from shorthorn.standalone.apiserver.jsonpath import compile_path

if TYPE_CHECKING:
    from collections.abc import Callable

    from shorthorn.standalone.apiserver.kinds import Column, Kind

_NAME = {
    "name": "Name",
    "type": "string",
    "format": "name",
    "description": "Name must be unique within a namespace.",
    "priority": 0,
}
_AGE = {
    "name": "Age",
    "type": "string",
    "format": "",
    "description": "Time since the object was created.",
    "priority": 0,
}


@dataclass(frozen=True, slots=True)
class TablePrinter:
    """Makes rows for one version of one kind."""

    columns: list[dict[str, Any]]
    cells: tuple[Callable[[dict[str, Any], dt.datetime], Any], ...]

    def row(self, obj: dict[str, Any], include_object: str) -> dict[str, Any]:
        """Return one row; `include_object` is None, Metadata or Object."""
        now = dt.datetime.now(dt.UTC)
        cells = [cell(obj, now) for cell in self.cells]
        row: dict[str, Any] = {"cells": cells}
        if include_object == "Object":
            row["object"] = obj
        elif include_object != "None":
            row["object"] = partial_metadata(obj)
        return row


def partial_metadata(obj: dict[str, Any]) -> dict[str, Any]:
    """Return an object's metadata alone, as PartialObjectMetadata."""
    return {
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": obj["metadata"],
    }


def table_printer(kind: Kind, version: str) -> TablePrinter:
    """Compile the columns of a kind. Raises: ValueError: a JSONPath is not understood."""
    known = printers.CORE_COLUMNS.get(kind.resource)
    if known is not None:
        columns = [_core_definition(column) for column in known]
        cells = tuple(_core_cell(column) for column in known)
        if kind.resource in printers.NAMELESS:
            return TablePrinter(columns, cells)
        return TablePrinter([_NAME, *columns], (_name_cell, *cells))
    declared = kind.versions[version].columns
    if not declared:
        return TablePrinter([_NAME, _AGE], (_name_cell, _age_cell))
    return TablePrinter(
        [_NAME, *(_definition(column) for column in declared)],
        (_name_cell, *(_cell(column) for column in declared)),
    )


def _definition(column: Column) -> dict[str, Any]:
    return {
        "name": column.name,
        "type": column.type,
        "format": column.format,
        "description": column.description,
        "priority": column.priority,
    }


def _core_definition(column: printers.CoreColumn) -> dict[str, Any]:
    return {
        "name": column.name,
        "type": "string",
        "format": "",
        "description": "",
        "priority": column.priority,
    }


def _core_cell(column: printers.CoreColumn) -> Callable[[dict[str, Any], dt.datetime], Any]:
    if column.is_time:
        return lambda obj, now: age(column.value(obj), now)
    return lambda obj, now: column.value(obj)


def _name_cell(obj: dict[str, Any], now: dt.datetime) -> str:
    return printers.shown_name(obj)


def _age_cell(obj: dict[str, Any], now: dt.datetime) -> str:
    return age(obj["metadata"].get("creationTimestamp"), now)


def _cell(column: Column) -> Callable[[dict[str, Any], dt.datetime], Any]:
    path = compile_path(column.json_path)

    def cell(obj: dict[str, Any], now: dt.datetime) -> Any:
        found = path.find(obj)
        return typed_cell(column.type, found[0], now) if found else None

    return cell


def typed_cell(column_type: str, value: Any, now: dt.datetime) -> Any:
    """Return a cell of the declared type, or None where the value is of another."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if column_type == "date":
        return age(value, now)
    if column_type == "integer":
        return int(value) if is_number else None
    if column_type == "number":
        return float(value) if is_number else None
    if column_type == "boolean":
        return value if isinstance(value, bool) else None
    if isinstance(value, str):
        return value
    return msgspec.json.encode(value).decode()


def age(timestamp: object, now: dt.datetime) -> str:
    """Return how long ago an RFC 3339 time was, in words."""
    if not timestamp:
        return "<unknown>"
    try:
        then = dt.datetime.fromisoformat(str(timestamp))
    except ValueError:
        return "<invalid>"
    if then.tzinfo is None:
        return "<invalid>"
    return human_duration((now - then).total_seconds())


def human_duration(duration_s: float) -> str:
    """Write a duration as kubectl does: 5s, 2m3s, 15m, 3h10m, 4d2h, 400d, 3y12d."""
    seconds = int(duration_s)
    if seconds < -1:
        return "<invalid>"
    if seconds < 0:
        return "0s"
    if seconds < 120:
        return f"{seconds}s"
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if minutes < 10:
        return _two(minutes, "m", seconds % 60, "s")
    if minutes < 180:
        return f"{minutes}m"
    if hours < 8:
        return _two(hours, "h", minutes % 60, "m")
    if hours < 48:
        return f"{hours}h"
    if hours < 192:
        return _two(days, "d", hours % 24, "h")
    if days < 365 * 2:
        return f"{days}d"
    if days < 365 * 8:
        return _two(days // 365, "y", days % 365, "d")
    return f"{days // 365}y"


def _two(large: int, unit: str, small: int, small_unit: str) -> str:
    return f"{large}{unit}{small}{small_unit}" if small else f"{large}{unit}"
