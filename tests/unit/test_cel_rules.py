"""Validation rules in schemas: what they see, when they run, how a broken one is reported."""

from __future__ import annotations

from typing import Any

import pytest

from shorthorn.standalone.apiserver.schema import (
    FieldError,
    InvalidObject,
    Schema,
    SchemaUnsupported,
)

STRING = {"type": "string"}
INTEGER = {"type": "integer"}


def schema(spec: dict[str, Any]) -> Schema:
    return Schema.compile({"type": "object", "properties": {"spec": spec}}, name="tests")


def rules(*texts: str | dict[str, Any]) -> list[dict[str, Any]]:
    return [{"rule": text} if isinstance(text, str) else text for text in texts]


def with_rules(declared: dict[str, Any], *texts: str | dict[str, Any]) -> dict[str, Any]:
    return {**declared, "x-kubernetes-validations": rules(*texts)}


def errors(compiled: Schema, spec: Any, old: Any = None) -> list[FieldError]:
    previous = None if old is None else {"metadata": {"name": "a"}, "spec": old}
    try:
        compiled.admit({"metadata": {"name": "a"}, "spec": spec}, previous)
    except InvalidObject as exc:
        return exc.errors
    return []


def fields(compiled: Schema, spec: Any, old: Any = None) -> list[str]:
    return [error.field for error in errors(compiled, spec, old)]


OBJECT = {"type": "object", "properties": {"a": STRING, "n": INTEGER}}


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({}, 'spec: Invalid value: "object": failed rule: has(self.a)'),
        ({"message": "say a"}, 'spec: Invalid value: "object": say a'),
        ({"message": "say a", "reason": "FieldValueForbidden"}, "spec: Forbidden: say a"),
        (
            {"message": "say a", "reason": "FieldValueRequired", "fieldPath": ".a"},
            "spec.a: Required value: say a",
        ),
        ({"reason": "FieldValueDuplicate"}, 'spec: Duplicate value: "object"'),
        (
            {"messageExpression": "'n is ' + string(self.n)"},
            'spec: Invalid value: "object": n is 5',
        ),
        (
            {"messageExpression": "'a is ' + self.a", "message": "say a"},
            'spec: Invalid value: "object": say a',
        ),
        (
            {"messageExpression": "'two\\nlines'", "message": "say a"},
            'spec: Invalid value: "object": say a',
        ),
    ],
)
def test_a_broken_rule_is_reported_as_it_asks(extra: dict[str, Any], message: str) -> None:
    compiled = schema(with_rules(OBJECT, {"rule": "has(self.a)", **extra}))
    assert [str(error) for error in errors(compiled, {"n": 5})] == [message]
    assert errors(compiled, {"n": 5, "a": ""}) == []


def test_a_rule_that_cannot_be_evaluated_for_an_object_refuses_it() -> None:
    compiled = schema(with_rules(OBJECT, "self.a == 'x' || self.n / 0 == 1"))
    (error,) = errors(compiled, {"a": "y", "n": 1})
    assert error.reason == "FieldValueInvalid"
    assert "could not be evaluated" in error.message
    assert errors(compiled, {"a": "x"}) == []


def test_rules_wait_until_types_are_right() -> None:
    compiled = schema(with_rules(OBJECT, "false"))
    assert fields(compiled, {"n": "5"}) == ["spec.n", "<nil>"]


def test_rules_are_judged_beside_a_value_out_of_range() -> None:
    bounded = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 4}}}
    assert fields(schema(with_rules(bounded, "false")), {"n": 5}) == ["spec.n", "spec"]


def test_rules_see_absent_fields_as_absent_and_values_by_their_type() -> None:
    declared = {
        "type": "object",
        "properties": {
            "count": INTEGER,
            "ratio": {"type": "number"},
            "at": {"type": "string", "format": "date-time"},
            "raw": {"type": "string", "format": "byte"},
            "size": {"x-kubernetes-int-or-string": True},
            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
            "gone": STRING,
            "nothing": {"type": "string", "nullable": True},
        },
    }
    compiled = schema(
        with_rules(
            declared,
            "type(self.count) == int",
            "type(self.ratio) == double && self.ratio == 2.0",
            "self.at < timestamp('2030-01-01T00:00:00Z')",
            "self.raw == b'ab'",
            "self.size == 5",
            "self.free.x == 1",
            "!has(self.gone)",
            "self.nothing == null",
        )
    )
    spec = {
        "count": 5,
        "ratio": 2,
        "at": "2020-01-01T00:00:00.123456789Z",
        "raw": "YWI=",
        "size": 5,
        "free": {"x": 1},
        "gone": None,
        "nothing": None,
    }
    assert errors(compiled, spec) == []


def test_names_that_cel_cannot_spell_are_escaped() -> None:
    names = ["namespace", "a-b", "c.d", "e/f", "g__h", "plain_name"]
    declared = {"type": "object", "properties": dict.fromkeys(names, STRING)}
    compiled = schema(
        with_rules(
            declared,
            "self.__namespace__ == 'namespace' && self.a__dash__b == 'a-b'",
            "self.c__dot__d == 'c.d' && self.e__slash__f == 'e/f'",
            "self.g__underscores__h == 'g__h' && self.plain_name == 'plain_name'",
        )
    )
    assert errors(compiled, {name: name for name in names}) == []


def test_the_root_sees_type_and_name_but_no_other_metadata() -> None:
    openapi = with_rules(
        {"type": "object"},
        "self.kind == 'A' && self.metadata.name.startsWith('a') && self.apiVersion == 'x/v1'",
    )
    compiled = Schema.compile(openapi, name="tests")
    compiled.admit({"apiVersion": "x/v1", "kind": "A", "metadata": {"name": "ab"}})
    with pytest.raises(InvalidObject) as caught:
        compiled.admit({"apiVersion": "x/v1", "kind": "A", "metadata": {"name": "b"}})
    assert caught.value.errors[0].field == ""
    with pytest.raises(SchemaUnsupported, match=r"no such field: metadata\.labels"):
        Schema.compile(with_rules({"type": "object"}, "has(self.metadata.labels)"), name="tests")


def test_rules_run_at_every_depth_with_exact_paths() -> None:
    positive = with_rules(INTEGER, "self > 0")
    compiled = schema(
        {
            "type": "object",
            "properties": {
                "list": {"type": "array", "items": positive},
                "map": {"type": "object", "additionalProperties": positive},
                "maybe": {**positive, "nullable": True},
            },
        }
    )
    spec = {"list": [1, 0, -1], "map": {"a": 0, "b": 1}, "maybe": None}
    assert fields(compiled, spec) == ["spec.list[1]", "spec.list[2]", "spec.map.a"]


# ---- Transition rules ---------------------------------------------------------------------------

FROZEN = with_rules(STRING, {"rule": "self == oldSelf", "message": "is immutable"})


def test_a_transition_rule_judges_updates_only() -> None:
    compiled = schema({"type": "object", "properties": {"x": FROZEN}})
    assert errors(compiled, {"x": "a"}) == []
    assert errors(compiled, {"x": "a"}, {}) == []
    assert errors(compiled, {}, {"x": "a"}) == []
    assert errors(compiled, {"x": "a"}, {"x": "a"}) == []
    assert [str(error) for error in errors(compiled, {"x": "b"}, {"x": "a"})] == [
        'spec.x: Invalid value: "string": is immutable'
    ]


def test_a_rule_does_not_judge_what_an_update_leaves_as_it_is() -> None:
    inner = with_rules(OBJECT, "has(self.a)")
    outer = {"type": "object", "properties": {"kept": inner, "n": INTEGER}}
    compiled = schema(with_rules(outer, "self.n > 0"))
    broken = {"kept": {"n": 1}, "n": 0}
    assert fields(compiled, broken) == ["spec", "spec.kept"]
    assert fields(compiled, broken, old=broken) == []
    assert fields(compiled, {**broken, "n": 1}, old=broken) == []
    assert fields(compiled, {**broken, "n": -1}, old=broken) == ["spec"]
    assert fields(compiled, {"kept": {"n": 2}, "n": 1}, old=broken) == ["spec.kept"]


def test_a_transition_rule_judges_also_what_is_as_it_was() -> None:
    compiled = schema(with_rules(OBJECT, "self.n > oldSelf.n"))
    assert fields(compiled, {"n": 1}, old={"n": 1}) == ["spec"]


def test_members_of_maps_and_list_maps_meet_their_own_old_values() -> None:
    member = {"type": "object", "properties": {"name": STRING, "x": FROZEN}}
    compiled = schema(
        {
            "type": "object",
            "properties": {
                "map": {"type": "object", "additionalProperties": FROZEN},
                "list": {
                    "type": "array",
                    "x-kubernetes-list-type": "map",
                    "x-kubernetes-list-map-keys": ["name"],
                    "items": member,
                },
            },
        }
    )
    old: dict[str, Any] = {
        "map": {"a": "1"},
        "list": [{"name": "a", "x": "1"}, {"name": "b", "x": "2"}],
    }
    moved = {"map": {"b": "9", "a": "1"}, "list": [*reversed(old["list"]), {"name": "c", "x": ""}]}
    assert errors(compiled, moved, old) == []
    changed = {"map": {"a": "2"}, "list": [{"name": "b", "x": "3"}]}
    assert fields(compiled, changed, old) == ["spec.map.a", "spec.list[0].x"]


@pytest.mark.parametrize("list_type", ["atomic", "set"])
def test_a_transition_rule_where_nothing_correlates_is_refused(list_type: str) -> None:
    with pytest.raises(SchemaUnsupported, match="transition rule"):
        schema({"type": "array", "items": FROZEN, "x-kubernetes-list-type": list_type})


def test_a_default_counts_as_the_old_value_too() -> None:
    compiled = schema({"type": "object", "properties": {"x": {**FROZEN, "default": "d"}}})
    assert errors(compiled, {}, {}) == []
    assert fields(compiled, {"x": "e"}, {}) == ["spec.x"]


def test_an_optional_old_value_lets_a_rule_judge_creation() -> None:
    rule = {
        "rule": "oldSelf.hasValue() ? self == oldSelf.value() : self.startsWith('new')",
        "optionalOldSelf": True,
    }
    compiled = schema({"type": "object", "properties": {"x": with_rules(STRING, rule)}})
    assert errors(compiled, {"x": "new1"}) == []
    assert fields(compiled, {"x": "old"}) == ["spec.x"]
    assert errors(compiled, {"x": "old"}, {"x": "old"}) == []
    assert fields(compiled, {"x": "new1"}, {"x": "old"}) == ["spec.x"]


# ---- Rules that are refused ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        ({"rule": "self.a =="}, "Syntax error"),
        ({"rule": "self.a.fancy()"}, "unknown functions ['fancy']"),
        ({"rule": "true || self.a.fancy()"}, "unknown functions ['fancy']"),
        ({"rule": "self.b == 'x'"}, "no such field: b"),
        ({"rule": "true || has(self.b)"}, "no such field: b"),
        ({"rule": "self.b == oldSelf.a"}, "no such field: b"),
        ({"rule": "self.a == oldSelf.b.c"}, "no such field: b.c"),
        ({"rule": "self.n + 'x' == 'x'"}, "No such overload"),
        ({"rule": "self.n.matches('x')"}, "No such overload|Undefined"),
        ({"rule": "self.a"}, "yields string"),
        ({"rule": "true", "messageExpression": "self.n"}, "yields integer"),
        ({"rule": "true", "messageExpression": "'a' +"}, "Syntax error"),
        ({"rule": "true", "fieldPath": ".b"}, "fieldPath"),
        ({"rule": "true", "reason": "Whatever"}, "unknown reason"),
        ({"rule": "true", "severity": "low"}, "unknown keys"),
    ],
)
def test_a_rule_that_cannot_be_kept_does_not_compile(rule: dict[str, Any], problem: str) -> None:
    with pytest.raises(SchemaUnsupported) as caught:
        schema(with_rules(OBJECT, rule))
    assert any(part in str(caught.value) for part in problem.split("|"))


def test_a_rule_may_look_up_keys_that_no_sample_has() -> None:
    declared = {
        "type": "object",
        "properties": {"m": {"type": "object", "additionalProperties": STRING}},
    }
    compiled = schema(with_rules(declared, "self.m['k'] == 'v' && self.m.k == 'v'"))
    assert errors(compiled, {"m": {"k": "v"}}) == []
    assert fields(compiled, {"m": {}}) == ["spec"]
