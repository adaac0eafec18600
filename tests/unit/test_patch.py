"""JSON patch and JSON merge patch: the RFCs' examples, their laws, and plain refusals."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shorthorn.standalone.apiserver.patch import (
    COPIED_BYTES_MAX,
    OPERATIONS_MAX,
    PatchError,
    apply_json_patch,
    apply_merge_patch,
    apply_strategic_merge_patch,
)

SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=4)
KEYS = st.sampled_from(["a", "b", "a/b", "m~n", "", "0", "~1"])
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=10,
)
OBJECTS = st.dictionaries(KEYS, JSON, max_size=4)


def canonical(value: Any) -> str:
    """Text that tells true from 1, which Python's equality does not."""
    return json.dumps(value, sort_keys=True)


# ---- JSON patch ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "operations", "result"),
    [
        ({"a": 1}, [{"op": "add", "path": "/b", "value": 2}], {"a": 1, "b": 2}),
        ({"a": 1}, [{"op": "add", "path": "/a", "value": 2}], {"a": 2}),
        ({"a": [1, 2]}, [{"op": "add", "path": "/a/1", "value": 9}], {"a": [1, 9, 2]}),
        ({"a": [1, 2]}, [{"op": "add", "path": "/a/2", "value": 9}], {"a": [1, 2, 9]}),
        ({"a": [1]}, [{"op": "add", "path": "/a/-", "value": [2]}], {"a": [1, [2]]}),
        ({"a": 1}, [{"op": "add", "path": "", "value": [1]}], [1]),
        ({"a": 1, "b": 2}, [{"op": "remove", "path": "/a"}], {"b": 2}),
        ({"a": [1, 2]}, [{"op": "remove", "path": "/a/0"}], {"a": [2]}),
        ({"a": None}, [{"op": "replace", "path": "/a", "value": {}}], {"a": {}}),
        ({"a": [1, 2]}, [{"op": "replace", "path": "/a/1", "value": 3}], {"a": [1, 3]}),
        ({"a": 1}, [{"op": "replace", "path": "", "value": None}], None),
        ({"a": {"b": 1}, "c": {}}, [{"op": "move", "from": "/a/b", "path": "/c/d"}], "moved"),
        ({"a": [1, 2, 3]}, [{"op": "move", "from": "/a/0", "path": "/a/2"}], {"a": [2, 3, 1]}),
        ({"a": 1}, [{"op": "move", "from": "/a", "path": "/a"}], {"a": 1}),
        ({"a": [1]}, [{"op": "copy", "from": "/a", "path": "/b"}], {"a": [1], "b": [1]}),
        ({"a/b": 1, "m~n": 2}, [{"op": "test", "path": "/a~1b", "value": 1}], "same"),
        ({"a/b": 1, "m~n": 2}, [{"op": "test", "path": "/m~0n", "value": 2.0}], "same"),
        ({"~1": 1}, [{"op": "test", "path": "/~01", "value": 1}], "same"),
        (
            {"a": {"x": [1, None]}},
            [{"op": "test", "path": "", "value": {"a": {"x": [1, None]}}}],
            "same",
        ),
        ({"": 1}, [{"op": "remove", "path": "/"}], {}),
        ({"0": 1}, [{"op": "replace", "path": "/0", "value": 2}], {"0": 2}),
    ],
)
def test_each_operation_does_what_the_rfc_says(
    document: Any, operations: list[Any], result: Any
) -> None:
    expected = {"same": document, "moved": {"a": {}, "c": {"d": 1}}}.get(
        result if isinstance(result, str) else "", result
    )
    before = copy.deepcopy(document)
    assert canonical(apply_json_patch(document, operations)) == canonical(expected)
    assert document == before


@pytest.mark.parametrize(
    ("operation", "problem"),
    [
        ({"op": "test", "path": "/a", "value": 2}, "test of '/a' failed"),
        ({"op": "test", "path": "/a", "value": True}, "test of '/a' failed"),
        ({"op": "test", "path": "/list", "value": [1]}, "failed"),
        ({"op": "test", "path": "/nothing", "value": None}, "'nothing'"),
        ({"op": "remove", "path": "/nothing"}, "there is no 'nothing' to follow"),
        ({"op": "remove", "path": "/list/2"}, "index 2 is outside a list of 2"),
        ({"op": "remove", "path": "/list/-"}, "'-' is no index"),
        ({"op": "remove", "path": ""}, "whole document"),
        ({"op": "add", "path": "/list/3", "value": 1}, "index 3 is outside"),
        ({"op": "add", "path": "/list/01", "value": 1}, "'01' is no index"),
        ({"op": "add", "path": "/list/-1", "value": 1}, "'-1' is no index"),
        ({"op": "add", "path": "/list/٣", "value": 1}, "is no index"),
        ({"op": "add", "path": "/a/b", "value": 1}, "has no members"),
        ({"op": "add", "path": "/no/b", "value": 1}, "there is no 'no'"),
        ({"op": "add", "path": "a", "value": 1}, "must be empty or begin with '/'"),
        ({"op": "add", "path": "/~2", "value": 1}, "bad escape"),
        ({"op": "add", "path": "/x"}, "needs a value"),
        ({"op": "add", "value": 1}, "'path' must be a JSON pointer"),
        ({"op": "replace", "path": "/nothing", "value": 1}, "there is no 'nothing'"),
        ({"op": "move", "from": "/list", "path": "/list/0"}, "into itself"),
        ({"op": "move", "path": "/a"}, "'from' must be a JSON pointer"),
        ({"op": "copy", "from": "/nothing", "path": "/a"}, "there is no 'nothing'"),
        ({"op": "merge", "path": "/a"}, "unknown op 'merge'"),
        ({"path": "/a"}, "unknown op None"),
        ("add", "an operation is an object"),
    ],
)
def test_an_operation_that_cannot_be_applied_says_why_and_which(
    operation: Any, problem: str
) -> None:
    first = {"op": "add", "path": "/b", "value": 1}
    document = {"a": 1, "list": [1, 2]}
    with pytest.raises(PatchError, match=r"^operation 1: ") as caught:
        apply_json_patch(document, [first, operation])
    assert problem in str(caught.value)
    assert document == {"a": 1, "list": [1, 2]}


def test_a_patch_that_is_no_list_or_too_long_is_refused() -> None:
    with pytest.raises(PatchError, match="list of operations"):
        apply_json_patch({}, {"op": "add"})  # type: ignore[arg-type]
    noop = {"op": "test", "path": "", "value": {}}
    with pytest.raises(PatchError, match="at most"):
        apply_json_patch({}, [noop] * (OPERATIONS_MAX + 1))


def test_copies_of_copies_are_stopped_before_they_fill_memory() -> None:
    doubling = [{"op": "copy", "from": "/a", "path": "/a/-"}] * 64
    with pytest.raises(PatchError, match=f"more than {COPIED_BYTES_MAX} bytes"):
        apply_json_patch({"a": ["x" * 1024]}, doubling)


def test_the_result_shares_nothing_with_document_or_patch() -> None:
    document: dict[str, Any] = {"a": {"x": []}}
    operations: list[dict[str, Any]] = [
        {"op": "add", "path": "/b", "value": {"y": []}},
        {"op": "copy", "from": "/a", "path": "/c"},
    ]
    result = apply_json_patch(document, operations)
    for each in (result["a"]["x"], result["b"]["y"], result["c"]["x"]):
        each.append(1)
    assert result["a"] == {"x": [1]}
    assert document == {"a": {"x": []}}
    assert operations[0]["value"] == {"y": []}


def escaped(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


@given(document=OBJECTS, key=KEYS, value=JSON)
def test_remove_undoes_add_and_test_finds_what_add_put(
    document: dict[str, Any], key: str, value: Any
) -> None:
    document.pop(key, None)
    path = f"/{escaped(key)}"
    added = apply_json_patch(
        document,
        [{"op": "add", "path": path, "value": value}, {"op": "test", "path": path, "value": value}],
    )
    assert canonical(added[key]) == canonical(value)
    removed = apply_json_patch(added, [{"op": "remove", "path": path}])
    assert canonical(removed) == canonical(document)


@given(items=st.lists(JSON, max_size=5), data=st.data())
def test_remove_undoes_add_in_lists(items: list[Any], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(items)))
    value = data.draw(JSON)
    path = f"/{index}"
    added = apply_json_patch(items, [{"op": "add", "path": path, "value": value}])
    assert len(added) == len(items) + 1
    removed = apply_json_patch(added, [{"op": "remove", "path": path}])
    assert canonical(removed) == canonical(items)


@given(document=JSON, other=JSON)
def test_test_passes_for_equal_json_only(document: Any, other: Any) -> None:
    operation = [{"op": "test", "path": "", "value": other}]
    if canonical(document) == canonical(other):
        apply_json_patch(document, operation)
    else:
        with pytest.raises(PatchError):
            apply_json_patch(document, operation)


POINTERS = st.sampled_from(["", "/", "/a", "/a/0", "/a/-", "/b/a", "/0", "a", "/~", "/~0", None])
OPERATIONS: st.SearchStrategy[Any] = st.fixed_dictionaries(
    {"op": st.sampled_from(["add", "remove", "replace", "move", "copy", "test", "x", None, []])},
    optional={"path": POINTERS, "from": POINTERS, "value": JSON},
)


@given(document=JSON, operations=st.lists(OPERATIONS | JSON, max_size=4) | JSON)
def test_operations_are_applied_or_refused_and_nothing_else(document: Any, operations: Any) -> None:
    before = canonical(document)
    with contextlib.suppress(PatchError):
        canonical(apply_json_patch(document, operations))
    assert canonical(document) == before


# ---- JSON merge patch ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "patch", "result"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"a": "foo"}, None, None),
        ({"a": "foo"}, "bar", "bar"),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merge_patch_does_what_the_rfc_shows(document: Any, patch: Any, result: Any) -> None:
    before = copy.deepcopy((document, patch))
    assert canonical(apply_merge_patch(document, patch)) == canonical(result)
    assert (document, patch) == before


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_nulls(each) for key, each in value.items() if each is not None}
    return value


def merge_diff(old: Any, new: Any) -> Any:
    """The merge patch from one value to another that has no nulls in its objects."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    changed = {
        key: merge_diff(old.get(key), value)
        for key, value in new.items()
        if key not in old or canonical(old[key]) != canonical(value)
    }
    return {**changed, **{key: None for key in old if key not in new}}


@given(old=OBJECTS, new=OBJECTS)
def test_applying_a_difference_gives_the_other_object(
    old: dict[str, Any], new: dict[str, Any]
) -> None:
    wanted = without_nulls(new)
    result = apply_merge_patch(old, merge_diff(old, wanted))
    assert canonical(result) == canonical(wanted)


@given(document=OBJECTS, patch=JSON)
def test_applying_a_patch_twice_is_applying_it_once(document: Any, patch: Any) -> None:
    once = apply_merge_patch(document, patch)
    assert canonical(apply_merge_patch(once, patch)) == canonical(once)


@given(document=OBJECTS)
def test_an_empty_patch_changes_nothing(document: Any) -> None:
    assert canonical(apply_merge_patch(document, {})) == canonical(document)


# ---- Depth --------------------------------------------------------------------------------------


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.parametrize("depth", [100, 5000])
def test_a_patch_that_is_nested_too_deeply_is_refused(depth: int) -> None:
    patch = nested(depth)
    attempts: list[Callable[[], Any]] = [
        lambda: apply_merge_patch({}, patch),
        lambda: apply_json_patch({}, [{"op": "add", "path": "", "value": patch}]),
        lambda: apply_strategic_merge_patch({}, patch, None),
    ]
    for attempt in attempts:
        if depth == 100:
            assert attempt() == patch
        else:
            with pytest.raises(PatchError, match="nested too deeply"):
                attempt()
