"""Strategic merge patch, as kubectl sends it for core kinds."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import shorthorn
from shorthorn.standalone.apiserver.patch import (
    PatchError,
    apply_merge_patch,
    apply_strategic_merge_patch,
)

BUILTIN = Path(shorthorn.__file__).parent / "standalone/apiserver/builtin"
STRING = {"type": "string"}
NAMED = {
    "type": "array",
    "x-kubernetes-patch-strategy": "merge",
    "x-kubernetes-patch-merge-key": "name",
    "items": {
        "type": "object",
        "properties": {
            "name": STRING,
            "value": STRING,
            "args": {"type": "array", "items": STRING},
            "more": {
                "type": "array",
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["id", "protocol"],
                "items": {"type": "object"},
            },
        },
    },
}
SCHEMA = {
    "type": "object",
    "properties": {
        "named": NAMED,
        "set": {"type": "array", "items": STRING, "x-kubernetes-list-type": "set"},
        "atomic": {"type": "array", "items": {"type": "object"}},
        "map": {"type": "object", "additionalProperties": NAMED},
        "union": {"type": "object"},
    },
}


def patched(document: dict[str, Any], patch: dict[str, Any]) -> Any:
    before = copy.deepcopy((document, patch))
    result = apply_strategic_merge_patch(document, patch, SCHEMA)
    assert (document, patch) == before
    return result


A, B, C = ({"name": name, "value": "1"} for name in "abc")


@pytest.mark.parametrize(
    ("document", "patch", "result"),
    [
        pytest.param(
            {"x": {"a": 1, "b": 2}}, {"x": {"a": None, "c": 3}}, {"x": {"b": 2, "c": 3}}, id="maps"
        ),
        pytest.param(
            {"named": [A, B]},
            {"named": [{"name": "b", "value": "2"}, C]},
            {"named": [A, {"name": "b", "value": "2"}, C]},
            id="members merge by key and new ones go last",
        ),
        pytest.param(
            {"named": [{**A, "args": ["x"]}]},
            {"named": [{"name": "a", "value": None, "args": ["y"]}]},
            {"named": [{"name": "a", "args": ["y"]}]},
            id="inside a member too",
        ),
        pytest.param(
            {"named": [{"name": "a", "more": [{"id": 1, "v": 1}]}]},
            {"named": [{"name": "a", "more": [{"id": 1, "w": 2}, {"id": 2}]}]},
            {"named": [{"name": "a", "more": [{"id": 1, "v": 1, "w": 2}, {"id": 2}]}]},
            id="list maps merge by their first key",
        ),
        pytest.param(
            {"map": {"k": [A]}}, {"map": {"k": [B]}}, {"map": {"k": [A, B]}}, id="values of maps"
        ),
        pytest.param({"set": ["a"]}, {"set": ["b", "a", "b"]}, {"set": ["a", "b"]}, id="sets"),
        pytest.param({"atomic": [A]}, {"atomic": [B]}, {"atomic": [B]}, id="atomic lists"),
        pytest.param({}, {"named": [A]}, {"named": [A]}, id="a list that is not there yet"),
        pytest.param({"named": None}, {"named": [A]}, {"named": [A]}, id="or null"),
        pytest.param(
            {"named": [A, B]},
            {"named": [{"$patch": "delete", "name": "a"}]},
            {"named": [B]},
            id="delete a member",
        ),
        pytest.param(
            {"named": [B]},
            {"named": [{"$patch": "delete", "name": "a"}]},
            {"named": [B]},
            id="delete a member that is not there",
        ),
        pytest.param(
            {"named": [A, B]},
            {"named": [{"$patch": "replace"}, C]},
            {"named": [C]},
            id="replace a list",
        ),
        pytest.param(
            {"x": {"a": 1}, "y": 1},
            {"x": {"$patch": "replace", "b": {"c": 2, "d": None}}},
            {"x": {"b": {"c": 2}}, "y": 1},
            id="replace a map",
        ),
        pytest.param(
            {"x": {"a": 1}, "y": 1}, {"x": {"$patch": "delete"}}, {"y": 1}, id="delete a map"
        ),
        pytest.param(
            {"set": ["a", "b", "c"]},
            {"$deleteFromPrimitiveList/set": ["b", "z"]},
            {"set": ["a", "c"]},
            id="delete from a set",
        ),
        pytest.param(
            {"set": ["a", "b"]},
            {"set": ["c"], "$deleteFromPrimitiveList/set": ["a"]},
            {"set": ["b", "c"]},
            id="delete and add",
        ),
        pytest.param(
            {"named": [A, B, C]},
            {
                "$setElementOrder/named": [{"name": "c"}, {"name": "a"}],
                "named": [{"name": "a", "value": "2"}],
            },
            {"named": [C, {"name": "a", "value": "2"}, B]},
            id="order; the server's own stay behind their neighbour",
        ),
        pytest.param(
            {"set": ["x", "a", "b"]},
            {"$setElementOrder/set": ["b", "a"]},
            {"set": ["x", "b", "a"]},
            id="order of a set",
        ),
        pytest.param(
            {"named": [A]},
            {
                "$setElementOrder/named": [{"name": "b"}],
                "named": [{"$patch": "delete", "name": "a"}, B],
            },
            {"named": [B]},
            id="order does not list what is deleted",
        ),
        pytest.param(
            {"union": {"old": {"x": 1}, "type": "old"}},
            {"union": {"$retainKeys": ["type", "new"], "type": "new", "new": {}}},
            {"union": {"type": "new", "new": {}}},
            id="retain keys",
        ),
        pytest.param(
            {},
            {"new": {"$retainKeys": ["a"], "a": {"b": None}}},
            {"new": {"a": {}}},
            id="made anew",
        ),
    ],
)
def test_a_patch_merges_as_kubectl_expects(
    document: dict[str, Any], patch: dict[str, Any], result: dict[str, Any]
) -> None:
    assert patched(document, patch) == result


@pytest.mark.parametrize(
    ("patch", "problem"),
    [
        ({"named": [{"value": "1"}]}, "needs its merge key 'name'"),
        ({"named": ["a"]}, "needs its merge key 'name'"),
        ({"x": {"$patch": "explode"}}, "unknown $patch directive 'explode'"),
        ({"named": [{"$patch": "explode", "name": "a"}]}, "unknown $patch directive"),
        ({"x": {"$retainKeys": ["a"], "b": 1}}, "must list every field"),
        ({"x": {"$retainKeys": "a"}}, "must list every field"),
        ({"$deleteFromPrimitiveList/set": "a"}, "must be a list"),
        ({"$setElementOrder/named": [], "named": [A]}, "does not list ['a']"),
    ],
)
def test_a_patch_that_makes_no_sense_is_refused(patch: dict[str, Any], problem: str) -> None:
    with pytest.raises(PatchError) as caught:
        patched({"named": [A], "set": ["a"], "x": {}}, patch)
    assert problem in str(caught.value)


def test_a_patch_that_is_no_object_is_refused() -> None:
    with pytest.raises(PatchError, match="are objects"):
        apply_strategic_merge_patch({}, [], SCHEMA)


def test_metadata_merges_by_its_own_rules_without_any_schema() -> None:
    document = {
        "metadata": {
            "finalizers": ["a"],
            "ownerReferences": [{"uid": "1", "name": "x"}],
            "labels": {"k": "v"},
        }
    }
    patch = {
        "metadata": {
            "$deleteFromPrimitiveList/finalizers": ["a"],
            "$setElementOrder/finalizers": ["b"],
            "finalizers": ["b"],
            "ownerReferences": [{"uid": "2", "name": "y"}],
            "labels": {"k": None, "l": "w"},
        }
    }
    assert apply_strategic_merge_patch(document, patch, None) == {
        "metadata": {
            "finalizers": ["b"],
            "ownerReferences": [{"uid": "1", "name": "x"}, {"uid": "2", "name": "y"}],
            "labels": {"l": "w"},
        }
    }


def openapi(plural: str) -> Any:
    crd = yaml.load((BUILTIN / f"{plural}.yaml").read_text(), Loader=yaml.CSafeLoader)
    return crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def test_conditions_of_a_claim_merge_by_type_and_access_modes_do_not() -> None:
    claim = {
        "spec": {"accessModes": ["ReadWriteOnce"]},
        "status": {"conditions": [{"type": "Resizing", "status": "True", "reason": "x"}]},
    }
    patch = {
        "spec": {"accessModes": ["ReadOnlyMany"]},
        "status": {
            "conditions": [
                {"type": "Resizing", "status": "False"},
                {"type": "Other", "status": "True"},
            ]
        },
    }
    schema = openapi("persistentvolumeclaims")
    assert apply_strategic_merge_patch(claim, patch, schema) == {
        "spec": {"accessModes": ["ReadOnlyMany"]},
        "status": {
            "conditions": [
                {"type": "Resizing", "status": "False", "reason": "x"},
                {"type": "Other", "status": "True"},
            ]
        },
    }


def test_addresses_of_a_node_merge_by_type_and_its_taints_are_replaced() -> None:
    node = {
        "spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]},
        "status": {"addresses": [{"type": "InternalIP", "address": "1"}]},
    }
    patch = {
        "spec": {"taints": []},
        "status": {"addresses": [{"type": "InternalIP", "address": "2"}]},
    }
    assert apply_strategic_merge_patch(node, patch, openapi("nodes")) == patch


PLAIN = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "b", "c"]), inner, max_size=3)
    ),
    max_leaves=10,
)
OBJECTS = st.dictionaries(st.sampled_from(["a", "b", "c"]), PLAIN, max_size=3)


def without_nulls_in_lists(value: Any) -> Any:
    """Lists as a strategic patch stores them: it drops nulls from objects inside them too."""
    if isinstance(value, dict):
        return {key: without_nulls_in_lists(each) for key, each in value.items()}
    if isinstance(value, list):
        return [strip(each) for each in value]
    return value


def strip(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: strip(each) for key, each in value.items() if each is not None}
    return [strip(each) for each in value] if isinstance(value, list) else value


@given(document=OBJECTS, patch=OBJECTS)
def test_without_a_schema_it_is_a_merge_patch(
    document: dict[str, Any], patch: dict[str, Any]
) -> None:
    patch = without_nulls_in_lists(patch)
    expected = apply_merge_patch(document, patch)
    assert apply_strategic_merge_patch(document, patch, None) == expected


NAMES = st.lists(st.sampled_from("abcdef"), unique=True)


@given(before=NAMES, added=NAMES, removed=NAMES)
def test_a_set_ends_with_what_was_added_and_without_what_was_removed(
    before: list[str], added: list[str], removed: list[str]
) -> None:
    removed = [name for name in removed if name not in added]
    order = added + [name for name in before if name not in added and name not in removed]
    patch = {
        "set": added,
        "$deleteFromPrimitiveList/set": removed,
        "$setElementOrder/set": order,
    }
    assert patched({"set": before}, patch)["set"] == order


@given(before=NAMES, after=NAMES)
def test_the_order_of_members_becomes_the_order_asked_for(
    before: list[str], after: list[str]
) -> None:
    document = {"named": [{"name": name, "value": "old"} for name in before]}
    gone = [{"$patch": "delete", "name": name} for name in before if name not in after]
    patch = {
        "named": [{"name": name, "value": "new"} for name in after] + gone,
        "$setElementOrder/named": [{"name": name} for name in after],
    }
    wanted = [{"name": name, "value": "new"} for name in after]
    assert patched(document, patch)["named"] == wanted


DIRECTIVES = st.sampled_from(
    [
        "$patch",
        "$retainKeys",
        "$setElementOrder/named",
        "$setElementOrder/set",
        "$deleteFromPrimitiveList/set",
        "$deleteFromPrimitiveList/named",
        "name",
        "named",
        "set",
        "map",
    ]
)
WORDS = st.sampled_from(["delete", "replace", "merge", "a", "name"]) | st.none() | st.integers()
ODD = st.recursive(
    WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(DIRECTIVES, inner, max_size=3),
    max_leaves=12,
)


@given(
    document=st.dictionaries(st.sampled_from(["named", "set", "map", "x"]), ODD, max_size=3),
    patch=st.dictionaries(DIRECTIVES, ODD, max_size=4),
)
def test_any_patch_is_applied_or_refused_and_nothing_else(
    document: dict[str, Any], patch: dict[str, Any]
) -> None:
    with contextlib.suppress(PatchError):
        assert isinstance(patched(document, patch), dict)
