"""Printer columns: paths, cells and ages."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from shorthorn.standalone.apiserver.jsonpath import compile_path
from shorthorn.standalone.apiserver.table import age, human_duration, typed_cell

OBJECT: dict[str, Any] = {
    "metadata": {"labels": {"example.com/a.b": "x"}},
    "status": {
        "conditions": [
            {"type": "Failed", "status": "False"},
            {"type": "Ready", "status": "True"},
        ],
        "ports": [1, 2, 3],
    },
}


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ('.status.conditions[?(@.type=="Ready")].status', ["True"]),
        (".status.conditions[?(@.type=='Ready')].status", ["True"]),
        ('.status.conditions[?(@.type != "Ready")].type', ["Failed"]),
        (".status.conditions[*].type", ["Failed", "Ready"]),
        (".status.ports[0]", [1]),
        (".status.ports[-1]", [3]),
        (".status.ports[9]", []),
        ("status.ports[1]", [2]),
        (r".metadata.labels.example\.com/a\.b", ["x"]),
        (".metadata.labels['example.com/a.b']", ["x"]),
        (".status.missing.deeper", []),
        (".status.ports.name", []),
    ],
)
def test_paths_find_what_kubernetes_finds(path: str, found: list[Any]):
    assert compile_path(path).find(OBJECT) == found


@pytest.mark.parametrize("path", [".a[", ".a[?(@.b)]", ".a[1:2]", "..a", ".a[?(@.b>1)]"])
def test_paths_beyond_the_subset_are_refused_when_compiled(path: str):
    with pytest.raises(ValueError, match="is not understood"):
        compile_path(path)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "<invalid>"),
        (-1, "0s"),
        (0.9, "0s"),
        (119, "119s"),
        (120, "2m"),
        (123, "2m3s"),
        (599, "9m59s"),
        (600, "10m"),
        (179 * 60, "179m"),
        (180 * 60, "3h"),
        (190 * 60, "3h10m"),
        (8 * 3600, "8h"),
        (47 * 3600, "47h"),
        (48 * 3600, "2d"),
        (50 * 3600, "2d2h"),
        (8 * 86400, "8d"),
        (729 * 86400, "729d"),
        (730 * 86400, "2y"),
        (742 * 86400, "2y12d"),
        (9 * 365 * 86400 + 86400, "9y"),
    ],
)
def test_durations_read_as_in_kubectl(seconds: float, text: str):
    assert human_duration(seconds) == text


def test_ages_survive_what_is_no_time():
    now = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    assert age("2025-12-31T23:59:00Z", now) == "60s"
    assert age("2025-12-31T23:59:00.5+00:00", now) == "59s"
    assert age(None, now) == "<unknown>"
    assert age("yesterday", now) == "<invalid>"
    assert age("2025-12-31", now) == "<invalid>"


@pytest.mark.parametrize(
    ("column_type", "value", "cell"),
    [
        ("string", "x", "x"),
        ("string", ["a", 1], '["a",1]'),
        ("string", True, "true"),
        ("integer", 5, 5),
        ("integer", "5", None),
        ("integer", True, None),
        ("number", 5, 5.0),
        ("boolean", False, False),
        ("boolean", "false", None),
    ],
)
def test_cells_have_the_type_their_column_declares(column_type: str, value: Any, cell: Any):
    typed = typed_cell(column_type, value, dt.datetime.now(dt.UTC))
    assert (typed, type(typed)) == (cell, type(cell))
