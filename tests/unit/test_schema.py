"""Structural schemas: unknown fields, defaults, nulls, values, and how refusals are worded."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shorthorn.standalone.apiserver.schema import (
    InvalidObject,
    Schema,
    SchemaUnsupported,
    UnknownFields,
)

META = {"name": "a"}


def spec_schema(**properties: Any) -> Schema:
    return Schema.compile(
        {
            "type": "object",
            "properties": {"spec": {"type": "object", "properties": properties}},
        },
        name="tests",
    )


def admit(schema: Schema, **spec: Any) -> Any:
    return schema.admit({"metadata": META, "spec": spec})["spec"]


def messages(schema: Schema, obj: dict[str, Any], old: dict[str, Any] | None = None) -> list[str]:
    with pytest.raises(InvalidObject) as caught:
        schema.admit(obj, old)
    return [str(error) for error in caught.value.errors]


STRING = {"type": "string"}


# ---- Unknown fields -----------------------------------------------------------------------------


def test_unknown_fields_are_refused_all_at_once_with_full_paths() -> None:
    inner = {"type": "object", "properties": {"x": STRING}}
    schema = spec_schema(
        list={"type": "array", "items": inner},
        map={"type": "object", "additionalProperties": inner},
    )
    obj = {
        "metadata": {**META, "bar": 1, "ownerReferences": [{"uid": "u", "foo": 1}]},
        "spec": {"foo": None, "list": [{"x": "1"}, {"y": 1}], "map": {"k": {"z": {}}}},
        "extra": {},
    }
    with pytest.raises(UnknownFields) as caught:
        schema.admit(obj)
    assert caught.value.paths == [
        "metadata.bar",
        "metadata.ownerReferences[0].foo",
        "spec.foo",
        "spec.list[1].y",
        "spec.map.k.z",
        "extra",
    ]
    assert 'unknown field "spec.list[1].y"' in str(caught.value)


@pytest.mark.parametrize(
    "free",
    [
        {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
        {"x-kubernetes-preserve-unknown-fields": True},
        {"type": "object", "additionalProperties": True},
    ],
)
def test_free_form_objects_keep_whatever_they_have(free: dict[str, Any]) -> None:
    value = {"a": {"b": [1, None, {"c": None}]}}
    assert admit(spec_schema(free=free), free=value) == {"free": value}


def test_declared_fields_of_a_free_form_object_are_still_judged() -> None:
    free = {
        "type": "object",
        "x-kubernetes-preserve-unknown-fields": True,
        "properties": {"n": {"type": "integer"}},
    }
    schema = spec_schema(free=free)
    assert admit(schema, free={"n": 1, "other": 2}) == {"free": {"n": 1, "other": 2}}
    (message,) = messages(schema, {"metadata": META, "spec": {"free": {"n": "1"}}})
    assert message.startswith("spec.free.n: Invalid value")


def test_an_embedded_resource_has_metadata_of_its_own() -> None:
    schema = spec_schema(
        template={
            "type": "object",
            "x-kubernetes-embedded-resource": True,
            "properties": {"spec": {"type": "object"}},
        }
    )
    whole = {"apiVersion": "v1", "kind": "A", "metadata": {"name": "b", "labels": {"a": "b"}}}
    assert admit(schema, template=whole) == {"template": whole}
    with pytest.raises(UnknownFields, match=r"spec\.template\.metadata\.nome"):
        admit(schema, template={"metadata": {"nome": "b"}})
    (message,) = messages(
        schema, {"metadata": META, "spec": {"template": {"metadata": {"name": "B"}}}}
    )
    assert message.startswith('spec.template.metadata.name: Invalid value: "B": a lowercase RFC')


# ---- Defaults and nulls -------------------------------------------------------------------------


def test_defaults_are_filled_in_all_the_way_down_but_create_no_parents() -> None:
    leaf = {"type": "string", "default": "d"}
    inner = {"type": "object", "properties": {"leaf": leaf}}
    schema = spec_schema(
        made={**inner, "default": {}},
        absent=inner,
        list={"type": "array", "items": inner},
        map={"type": "object", "additionalProperties": inner},
    )
    assert admit(schema, list=[{}, {"leaf": "x"}], map={"k": {}}) == {
        "list": [{"leaf": "d"}, {"leaf": "x"}],
        "map": {"k": {"leaf": "d"}},
        "made": {"leaf": "d"},
    }


def test_admission_changes_neither_argument_nor_the_schema() -> None:
    schema = spec_schema(list={"type": "array", "items": STRING, "default": ["x"]}, n=STRING)
    obj: dict[str, Any] = {"metadata": META, "spec": {"n": None}}
    before = copy.deepcopy(obj)
    admitted = schema.admit(obj)
    admitted["spec"]["list"].append("y")
    assert obj == before
    assert schema.admit(obj)["spec"] == {"list": ["x"]}


def test_a_null_is_absent_unless_the_field_is_nullable() -> None:
    schema = spec_schema(
        plain=STRING,
        filled={"type": "string", "default": "d"},
        nullable={"type": "string", "nullable": True, "enum": ["a"], "default": "a"},
    )
    assert admit(schema, plain=None, filled=None, nullable=None) == {
        "filled": "d",
        "nullable": None,
    }


def test_a_null_member_of_a_list_is_a_wrong_type() -> None:
    schema = spec_schema(list={"type": "array", "items": STRING})
    assert messages(schema, {"metadata": META, "spec": {"list": [None]}}) == [
        'spec.list[0]: Invalid value: "null": spec.list[0] in body must be of type string: "null"'
    ]


# ---- Values and their wording -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("declared", "value", "message"),
    [
        (
            {"type": "integer"},
            "1",
            'spec.x: Invalid value: "string": spec.x in body must be of type integer: "string"',
        ),
        (
            {"type": "integer"},
            True,
            'spec.x: Invalid value: "boolean": spec.x in body must be of type integer: "boolean"',
        ),
        (
            {"type": "string", "enum": ["Delete", "Retain"]},
            "Foo",
            'spec.x: Unsupported value: "Foo": supported values: "Delete", "Retain"',
        ),
        (
            {"type": "string", "enum": ["Delete"]},
            5,
            'spec.x: Invalid value: "integer": spec.x in body must be of type string: "integer"',
        ),
        (
            {"type": "string", "pattern": "^a{2}$"},
            "aaa",
            "spec.x: Invalid value: \"aaa\": spec.x in body should match '^a{2}$'",
        ),
        (
            {"type": "integer", "minimum": 1},
            0,
            "spec.x: Invalid value: 0: spec.x in body should be greater than or equal to 1",
        ),
        (
            {"type": "integer", "minimum": 1, "exclusiveMinimum": True},
            1,
            "spec.x: Invalid value: 1: spec.x in body should be greater than 1",
        ),
        (
            {"type": "integer", "maximum": 9},
            10,
            "spec.x: Invalid value: 10: spec.x in body should be less than or equal to 9",
        ),
        (
            {"type": "string", "minLength": 1},
            "",
            'spec.x: Invalid value: "": spec.x in body should be at least 1 chars long',
        ),
        (
            {"type": "string", "maxLength": 2},
            "abc",
            "spec.x: Too long: may not be more than 2 bytes",
        ),
        (
            {"type": "array", "items": STRING, "maxItems": 1},
            ["a", "b"],
            "spec.x: Too many: 2: must have at most 1 items",
        ),
        (
            {"type": "array", "items": STRING, "minItems": 1},
            [],
            'spec.x: Invalid value: "array": spec.x in body should have at least 1 items',
        ),
        (
            {"type": "string", "format": "date-time"},
            "2026-13-01T00:00:00Z",
            'spec.x: Invalid value: "2026-13-01T00:00:00Z": '
            'spec.x in body must be of type date-time: "2026-13-01T00:00:00Z"',
        ),
        (
            {"type": "array", "items": STRING, "x-kubernetes-list-type": "set"},
            ["a", "b", "a"],
            'spec.x[2]: Duplicate value: "a"',
        ),
        (
            {"type": "object", "required": ["y"], "properties": {"y": STRING}},
            {},
            "spec.x.y: Required value",
        ),
        (
            {
                "type": "object",
                "properties": {"a": STRING, "b": STRING},
                "oneOf": [{"required": ["a"]}, {"required": ["b"]}],
            },
            {"a": "1", "b": "2"},
            'spec.x: Invalid value: "object": "spec.x" must validate one and only one schema '
            "(oneOf)",
        ),
        (
            {
                "type": "object",
                "additionalProperties": {"type": "array", "items": STRING},
                "anyOf": [
                    {"additionalProperties": {"minItems": 2}},
                    {"additionalProperties": {"items": {"pattern": "^a$"}}},
                ],
            },
            {"k": ["b"]},
            'spec.x: Invalid value: "object": "spec.x" must validate at least one schema (anyOf)',
        ),
        (
            {"type": "number", "format": "double", "multipleOf": 2},
            3.5,
            "spec.x: Invalid value: 3.5: spec.x in body should be a multiple of 2",
        ),
        (
            {"type": "string", "not": {"enum": ["a"]}},
            "a",
            'spec.x: Invalid value: "a": "spec.x" must not validate the schema (not)',
        ),
    ],
)
def test_a_wrong_value_is_refused_in_kubernetes_words(
    declared: dict[str, Any], value: Any, message: str
) -> None:
    schema = spec_schema(x=declared)
    assert messages(schema, {"metadata": META, "spec": {"x": value}}) == [message]


def test_a_spec_that_is_no_object_is_one_error_and_not_many() -> None:
    assert messages(spec_schema(x=STRING), {"metadata": META, "spec": []}) == [
        'spec: Invalid value: "array": spec in body must be of type object: "array"'
    ]


@pytest.mark.parametrize("value", [5, "5Gi"])
def test_an_int_or_string_takes_both(value: Any) -> None:
    schema = spec_schema(x={"x-kubernetes-int-or-string": True, "pattern": "^[0-9]+(Gi)?$"})
    assert admit(schema, x=value) == {"x": value}


@pytest.mark.parametrize("value", [5.5, True, ["5"], "5G"])
def test_an_int_or_string_takes_nothing_else(value: Any) -> None:
    schema = spec_schema(x={"x-kubernetes-int-or-string": True, "pattern": "^[0-9]+(Gi)?$"})
    (message,) = messages(schema, {"metadata": META, "spec": {"x": value}})
    assert message.startswith("spec.x: Invalid value")


def test_keys_of_a_list_map_are_unique_and_defaults_count() -> None:
    schema = spec_schema(
        ports={
            "type": "array",
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["port", "protocol"],
            "items": {
                "type": "object",
                "required": ["port"],
                "properties": {
                    "port": {"type": "integer"},
                    "protocol": {"type": "string", "default": "TCP"},
                },
            },
        }
    )
    assert len(admit(schema, ports=[{"port": 1}, {"port": 1, "protocol": "UDP"}])["ports"]) == 2
    twice = [{"port": 1}, {"port": 1, "protocol": "TCP"}]
    assert messages(schema, {"metadata": META, "spec": {"ports": twice}}) == [
        'spec.ports[1]: Duplicate value: {"port":1,"protocol":"TCP"}'
    ]


FORMATS: list[tuple[str, str, Any, Any]] = [
    ("string", "date-time", "2026-01-02T03:04:05.123456789+02:00", "2026-01-02 03:04:05Z"),
    ("string", "date", "2026-01-02", "2026-1-2"),
    ("string", "byte", "AAE=", "AAE"),
    ("string", "uuid", "123e4567-e89b-12d3-a456-426614174000", "123e4567"),
    ("string", "ipv4", "10.0.0.1", "10.0.0.256"),
    ("string", "ipv6", "::1", "::g"),
    ("string", "uri", "http://a/b", "no uri"),
    ("integer", "int32", -(2**31), 2**31),
    ("integer", "int64", 2**63 - 1, 2**63),
]


@pytest.mark.parametrize(("kind", "name", "good", "bad"), FORMATS, ids=[f[1] for f in FORMATS])
def test_formats_are_checked(kind: str, name: str, good: Any, bad: Any) -> None:
    schema = spec_schema(x={"type": kind, "format": name})
    assert admit(schema, x=good) == {"x": good}
    (message,) = messages(schema, {"metadata": META, "spec": {"x": bad}})
    assert f"must be of type {name}" in message


@pytest.mark.parametrize(
    ("pattern", "text", "matches"),
    [
        ("^a$", "a\n", False),
        (r"^\d$", "٣", False),
        (r"^[$]$", "$", True),
        (r"^\$$", "$", True),
        (r"^(a$|b)", "a", True),
        (r"^a\z", "a", True),
        ("b", "abc", True),
    ],
)
def test_patterns_mean_what_they_mean_in_a_cluster(pattern: str, text: str, matches: bool) -> None:
    schema = spec_schema(x={"type": "string", "pattern": pattern})
    obj = {"metadata": META, "spec": {"x": text}}
    if matches:
        schema.admit(obj)
    else:
        assert len(messages(schema, obj)) == 1


# ---- Schemas that are refused -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("declared", "problem"),
    [
        ({"$ref": "#/definitions/x"}, "cannot be evaluated"),
        ({"type": "string", "x-kubernetes-new-thing": True}, "x-kubernetes-new-thing"),
        ({"type": "string", "format": "quantum"}, "quantum"),
        ({"type": "object", "anyOf": [{"properties": {"a": {"format": "odd"}}}]}, "odd"),
        ({"type": "object", "allOf": [{"patternProperties": {}}]}, "patternProperties"),
        ({"type": "object", "anyOf": [{"default": {}}]}, "have no effect inside a condition"),
        ({"type": "object", "not": {"x-kubernetes-validations": []}}, "have no effect inside"),
        ({"type": "integer", "exclusiveMinimum": 5}, "beside a minimum"),
        ({"type": "integer", "exclusiveMaximum": True}, "beside a maximum"),
        ({"type": "object", "x-kubernetes-list-type": "set"}, "list type 'set' of object"),
        ({}, "not structural"),
        ({"type": "strng"}, "not structural"),
        ({"type": "array"}, "needs items"),
        (
            {"type": "object", "properties": {"a": STRING}, "additionalProperties": STRING},
            "exclude",
        ),
        ({"type": "array", "items": STRING, "x-kubernetes-list-type": "bag"}, "bag"),
        ({"type": "array", "items": STRING, "x-kubernetes-list-type": "map"}, "belong together"),
        ({"type": "string", "pattern": "(a"}, "cannot be evaluated"),
        ({"type": "string", "pattern": "^(?=a)"}, "is not evaluated here"),
        ({"type": "string", "pattern": r"^[[:alpha:]]\pL$"}, "is not evaluated here"),
        ({"type": "integer", "default": "1"}, "default is not valid"),
        ({"type": "object", "default": {"a": 1}}, "default is not valid"),
    ],
)
def test_a_schema_that_cannot_be_kept_does_not_compile(
    declared: dict[str, Any], problem: str
) -> None:
    with pytest.raises(SchemaUnsupported, match=r"schema of tests: ") as caught:
        spec_schema(x=declared)
    assert problem in str(caught.value)


# ---- Metadata -----------------------------------------------------------------------------------


def test_metadata_takes_all_that_clients_send() -> None:
    metadata = {
        "name": "a.b-c",
        "generateName": "a-",
        "namespace": "default",
        "selfLink": "/x",
        "uid": "u",
        "resourceVersion": "5",
        "generation": 1,
        "creationTimestamp": None,
        "deletionTimestamp": "2026-01-02T03:04:05Z",
        "deletionGracePeriodSeconds": 0,
        "labels": {"example.com/a": "B.c", "empty": ""},
        "annotations": {"kubectl.kubernetes.io/last-applied-configuration": '{"a":1}\n'},
        "finalizers": ["example.com/protect"],
        "ownerReferences": [
            {"apiVersion": "v1", "kind": "A", "name": "a", "uid": "u", "controller": True}
        ],
        "managedFields": [
            {
                "manager": "kubectl",
                "operation": "Update",
                "apiVersion": "v1",
                "time": "2026-01-02T03:04:05Z",
                "fieldsType": "FieldsV1",
                "fieldsV1": {"f:spec": {"f:x": {}}},
                "subresource": "status",
            }
        ],
    }
    admitted = spec_schema().admit({"metadata": metadata})["metadata"]
    assert admitted == {k: v for k, v in metadata.items() if k != "creationTimestamp"}


OWNER = {"apiVersion": "v1", "kind": "A", "name": "a", "uid": "u"}


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "metadata.name: Required value: name or generateName is required"),
        ({"name": "Foo"}, 'metadata.name: Invalid value: "Foo": a lowercase RFC 1123 subdomain'),
        ({"name": "a\n"}, 'metadata.name: Invalid value: "a\\n": a lowercase RFC 1123 subdomain'),
        ({"name": "a" * 254}, "must be no more than 253 bytes"),
        ({"generateName": "A-"}, 'metadata.generateName: Invalid value: "Aa": a lowercase'),
        ({**META, "labels": {"a b": ""}}, 'metadata.labels: Invalid value: "a b": name part must'),
        ({**META, "labels": {"/a": ""}}, "prefix part must be non-empty"),
        ({**META, "labels": {"a/": ""}}, "name part must be non-empty"),
        ({**META, "labels": {"A/b": ""}}, "prefix part a lowercase RFC 1123 subdomain"),
        ({**META, "labels": {"a": "b c"}}, 'metadata.labels: Invalid value: "b c": a valid label'),
        ({**META, "labels": {"a": "b" * 64}}, "must be no more than 63 bytes"),
        ({**META, "labels": {"b" * 64: ""}}, "name part must be no more than 63 bytes"),
        ({**META, "labels": {"a": 1}}, "metadata.labels.a in body must be of type string"),
        ({**META, "annotations": {"a b": ""}}, "metadata.annotations: Invalid value"),
        ({**META, "annotations": {"a": "x" * 262144}}, "metadata.annotations: Too long"),
        ({**META, "finalizers": ["a b"]}, "metadata.finalizers: Invalid value"),
        ({**META, "ownerReferences": [{**OWNER, "uid": ""}]}, "uid must not be empty"),
        (
            {**META, "ownerReferences": [{**OWNER, "controller": True, "uid": x} for x in "ab"]},
            "Only one reference can have Controller set to true",
        ),
    ],
)
def test_wrong_metadata_is_refused(metadata: dict[str, Any], message: str) -> None:
    (found,) = messages(spec_schema(), {"metadata": metadata})
    assert message in found


def test_an_owner_without_its_uid_is_missing_it() -> None:
    owner = {key: value for key, value in OWNER.items() if key != "uid"}
    assert messages(spec_schema(), {"metadata": {**META, "ownerReferences": [owner]}}) == [
        "metadata.ownerReferences[0].uid: Required value"
    ]


def test_a_schema_may_narrow_names() -> None:
    openapi = {
        "type": "object",
        "properties": {
            "metadata": {
                "type": "object",
                "properties": {"name": {"type": "string", "maxLength": 3}},
            }
        },
    }
    schema = Schema.compile(openapi, name="tests")
    assert messages(schema, {"metadata": {"name": "long"}}) == [
        "metadata.name: Too long: may not be more than 3 bytes"
    ]


# ---- Depth, and whatever comes ------------------------------------------------------------------


def test_an_object_that_is_nested_too_deeply_is_refused() -> None:
    schema = spec_schema(free={"x-kubernetes-preserve-unknown-fields": True})
    value: Any = 1
    for _ in range(5000):
        value = [value]
    assert messages(schema, {"metadata": META, "spec": {"free": value}}) == [
        'Invalid value: "object": nested too deeply'
    ]


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["a", "list", "map", "n", "name", "x"]), inner, max_size=3
        )
    ),
    max_leaves=12,
)
WIDE = spec_schema(
    a={"type": "object", "default": {}, "properties": {"n": {"type": "integer", "default": 1}}},
    list={
        "type": "array",
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["name"],
        "items": {"type": "object", "properties": {"name": STRING, "x": {"type": "number"}}},
    },
    map={"type": "object", "additionalProperties": {"type": "array", "items": STRING}},
    x={"x-kubernetes-int-or-string": True},
)


@given(spec=ANY_JSON, metadata=ANY_JSON)
def test_any_json_is_admitted_once_and_for_all_or_refused_plainly(spec: Any, metadata: Any) -> None:
    obj = {"metadata": metadata, "spec": spec}
    before = copy.deepcopy(obj)
    try:
        admitted = WIDE.admit(obj)
    except (InvalidObject, UnknownFields) as exc:
        refused: list[Any] = exc.errors if isinstance(exc, InvalidObject) else exc.paths
    else:
        assert WIDE.admit(admitted) == admitted
        refused = [None]
    assert refused
    assert obj == before
