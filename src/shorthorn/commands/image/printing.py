"""How objects, tables and sizes are printed.

Owns: columns, units, JSON and YAML. Must never: ask a server. Called by the commands beside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

import typer

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_NOTHING: Final = "-"
_AGES: Final = ((86_400 * 2, 86_400, "d"), (3_600 * 2, 3_600, "h"), (60 * 2, 60, "m"))


class Output(StrEnum):
    """How a command prints the objects it read or made."""

    JSON = "json"
    YAML = "yaml"
    NAME = "name"


class ListOutput(StrEnum):
    """How a list is printed."""

    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"
    NAME = "name"


def print_objects(
    objects: Sequence[Mapping[str, Any]], output: Output | ListOutput, *, as_list: bool = False
) -> None:
    """Print Kubernetes objects as they are; a list as `kubectl get -o` does."""
    if output == Output.NAME:
        for obj in objects:
            typer.echo(_reference(obj))
        return
    shown = [_without_noise(obj) for obj in objects]
    if as_list:
        whole: Mapping[str, Any] = {"apiVersion": "v1", "kind": "List", "items": shown}
        typer.echo(dump(whole, output))
        return
    for obj in shown:
        typer.echo(dump(obj, output))


def dump(obj: Mapping[str, Any], output: Output | ListOutput) -> str:
    """Return one object as JSON or YAML text, without the last line's end."""
    if output == Output.JSON:
        return json.dumps(obj, indent=2, ensure_ascii=False)
    return to_yaml(obj)


def to_yaml(*documents: Mapping[str, Any]) -> str:
    """Return objects as YAML documents, in the order of their keys."""
    import yaml

    texts = [
        yaml.safe_dump(dict(document), sort_keys=False, width=10_000, allow_unicode=True)
        for document in documents
    ]
    return "---\n".join(texts).removesuffix("\n")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return lines of aligned columns, as kubectl prints them."""
    cells = [[printable(cell) or _NOTHING for cell in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    return [line(row, widths) for row in cells]


def line(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Return one row with its columns so wide."""
    padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
    return "   ".join(padded).rstrip()


def size(value: int | None) -> str:
    """Return bytes for people: 1.5GiB."""
    if value is None:
        return _NOTHING
    amount = float(value)
    for unit in _UNITS:
        if amount < 1024 or unit == _UNITS[-1]:
            break
        amount /= 1024
    digits = 0 if unit == "B" or amount >= 100 or amount == int(amount) else 1
    return f"{amount:.{digits}f}{unit}"


def age(since: datetime | None, now: datetime | None = None) -> str:
    """Return how long ago that was, as kubectl says it."""
    if since is None:
        return _NOTHING
    seconds = max(0, int(((now or datetime.now(UTC)) - since).total_seconds()))
    for least, unit_s, letter in _AGES:
        if seconds >= least:
            return f"{seconds // unit_s}{letter}"
    return f"{seconds}s"


def printable(text: str) -> str:
    """Replace what would move the cursor or end the line: names and messages come from anywhere."""
    return "".join(char if char.isprintable() else "\ufffd" for char in text)


def _reference(obj: Mapping[str, Any]) -> str:
    group = str(obj["apiVersion"]).rpartition("/")[0]
    kind = str(obj["kind"]).lower()
    return f"{kind}{'.' if group else ''}{group}/{obj['metadata']['name']}"


def _without_noise(obj: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out managedFields, as kubectl does."""
    meta = {k: v for k, v in obj.get("metadata", {}).items() if k != "managedFields"}
    return {**obj, "metadata": meta} if "metadata" in obj else dict(obj)
