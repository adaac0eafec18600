"""The part of JSONPath that printer columns use.

Owns parsing and evaluation of `.a.b`, `['a']`, `.a\\.b`, `[0]`, `[*]` and `[?(@.type=="Ready")]`. A
path that is not understood is refused when it is compiled, at start. Called by `table`.
Source: kubernetes.io "JSONPath Support"; k8s.io/client-go `util/jsonpath`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

_STEP = re.compile(
    r"""
      \.(?P<name>(?:\\.|[^.\[\]\\])+)
    | \[['"](?P<quoted>[^'"]*)['"]\]
    | \[(?P<index>-?\d+)\]
    | (?P<every>\[\*\]|\.\*)
    | \[\?\(\s*@(?P<filter>(?:\.(?:\\.|[^.\[\]\\=!\s])+)+)\s*
        (?P<operator>==|!=)\s*['"](?P<wanted>[^'"]*)['"]\s*\)\]
    """,
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class _Filter:
    path: JsonPath
    is_equal: bool
    wanted: str

    def holds_for(self, item: Any) -> bool:
        found = self.path.find(item)
        return bool(found) and (str(found[0]) == self.wanted) is self.is_equal


@dataclass(frozen=True, slots=True)
class JsonPath:
    """A compiled path: member names, indexes, None for every item, or filters."""

    steps: tuple[str | int | _Filter | None, ...]

    def find(self, obj: Any) -> list[Any]:
        """Return every value at this path, in order; none when a member is missing."""
        found = [obj]
        for step in self.steps:
            found = [value for item in found for value in _take(item, step)]
        return found


def compile_path(text: str) -> JsonPath:
    """Compile a path. Raises: ValueError: it uses more of JSONPath than is known here."""
    steps: list[str | int | _Filter | None] = []
    position = 0
    text = text if text.startswith((".", "[")) else f".{text}"
    while position < len(text):
        matched = _STEP.match(text, position)
        if matched is None:
            raise ValueError(f"JSONPath {text!r} is not understood at {text[position:]!r}")
        steps.append(_step(matched))
        position = matched.end()
    return JsonPath(tuple(steps))


def _step(matched: re.Match[str]) -> str | int | _Filter | None:
    if (name := matched["name"]) is not None:
        return re.sub(r"\\(.)", r"\1", name)
    if (quoted := matched["quoted"]) is not None:
        return quoted
    if (index := matched["index"]) is not None:
        return int(index)
    if matched["every"] is not None:
        return None
    return _Filter(compile_path(matched["filter"]), matched["operator"] == "==", matched["wanted"])


def _take(item: Any, step: str | int | _Filter | None) -> list[Any]:
    if isinstance(step, str):
        return [item[step]] if isinstance(item, dict) and step in item else []
    if step is None:
        return list(item.values()) if isinstance(item, dict) else _items(item)
    if isinstance(step, int):
        items = _items(item)
        return [items[step]] if -len(items) <= step < len(items) else []
    return [value for value in _items(item) if step.holds_for(value)]


def _items(item: Any) -> list[Any]:
    return item if isinstance(item, list) else []
