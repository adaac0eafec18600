"""Structural schemas: the tree of an `openAPIV3Schema`, its defaults and its fields.

Owns the shape of objects: which fields exist, which are absent, which get a default.
Never judges values (see `value_validation` and `cel_rules`) and never changes its input.
Called by `schema`.

Source: apiextensions.k8s.io/v1, "Specifying a structural schema" and "Defaulting".
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from shorthorn.standalone.apiserver import objectmeta
from shorthorn.standalone.apiserver.field_errors import SchemaUnsupported, child

TYPES = frozenset({"object", "array", "string", "integer", "number", "boolean"})
LIST_TYPES = frozenset({"atomic", "set", "map"})

#: Everything `value_validation`, `cel_rules`, `strategic_merge` or this module evaluates,
#: and what only documents. Any other keyword could be a rule that is silently not kept.
_KEYWORD_NAMES = (
    "type format properties additionalProperties items required nullable default enum "
    "pattern minimum maximum exclusiveMinimum exclusiveMaximum multipleOf minLength maxLength "
    "minItems maxItems minProperties maxProperties allOf anyOf oneOf not "
    "title description example externalDocs "
    "x-kubernetes-preserve-unknown-fields x-kubernetes-int-or-string "
    "x-kubernetes-embedded-resource x-kubernetes-list-type x-kubernetes-list-map-keys "
    "x-kubernetes-map-type x-kubernetes-validations "
    "x-kubernetes-patch-merge-key x-kubernetes-patch-strategy"
)
KEYWORDS = frozenset(_KEYWORD_NAMES.split())


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One place in a schema; equal only to itself.

    `type` is empty where any value, or an int-or-string, may be.
    """

    path: str
    type: str
    format: str = ""
    is_nullable: bool = False
    has_default: bool = False
    default: Any = None
    properties: Mapping[str, Node] = field(default_factory=dict)
    values: Node | None = None
    items: Node | None = None
    keeps_unknown: bool = False
    is_resource: bool = False
    is_int_or_string: bool = False
    list_type: str = "atomic"
    list_keys: tuple[str, ...] = ()
    raw: Mapping[str, Any] = field(default_factory=dict)

    def member(self, key: str) -> Node | None:
        """The node of an object's field or of a map's value; None where none is declared."""
        return self.properties.get(key, self.values)


def with_resource_fields(openapi: Mapping[str, Any]) -> dict[str, Any]:
    """Complete the schema of a resource with what every resource has.

    `metadata` becomes ObjectMeta; a schema may narrow only `name` and `generateName`.
    """
    declared = openapi.get("properties", {})
    return {
        **openapi,
        "properties": {
            **declared,
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": objectmeta.schema(declared.get("metadata", {})),
        },
    }


def compile_node(openapi: Mapping[str, Any], path: str, *, is_resource: bool = False) -> Node:
    """Turn one OpenAPI v3 schema into a tree.

    Raises: SchemaUnsupported: it is not structural, or uses a keyword unknown here.
    """
    if is_resource or openapi.get("x-kubernetes-embedded-resource"):
        openapi = with_resource_fields(openapi)
    _demand_structural(openapi, path)
    values = openapi.get("additionalProperties")
    is_any = values is True or bool(openapi.get("x-kubernetes-preserve-unknown-fields"))
    items = openapi.get("items")
    return Node(
        path=path,
        type=openapi.get("type", ""),
        format=openapi.get("format", ""),
        is_nullable=bool(openapi.get("nullable")),
        has_default="default" in openapi,
        default=openapi.get("default"),
        properties={
            key: compile_node(each, child(path, key))
            for key, each in openapi.get("properties", {}).items()
        },
        values=compile_node(values, f"{path}[*]") if isinstance(values, Mapping) else None,
        items=compile_node(items, f"{path}[*]") if isinstance(items, Mapping) else None,
        keeps_unknown=is_any,
        is_resource=is_resource or bool(openapi.get("x-kubernetes-embedded-resource")),
        is_int_or_string=bool(openapi.get("x-kubernetes-int-or-string")),
        list_type=openapi.get("x-kubernetes-list-type", "atomic"),
        list_keys=tuple(openapi.get("x-kubernetes-list-map-keys", ())),
        raw=openapi,
    )


def _demand_structural(openapi: Mapping[str, Any], path: str) -> None:
    where = path or "the root"
    if unknown := sorted(set(openapi) - KEYWORDS):
        raise SchemaUnsupported(f"{where}: keywords {unknown} cannot be evaluated")
    kind = openapi.get("type", "")
    is_typeless = bool(
        openapi.get("x-kubernetes-int-or-string")
        or openapi.get("x-kubernetes-preserve-unknown-fields")
    )
    if kind not in TYPES and not (kind == "" and is_typeless):
        raise SchemaUnsupported(f"{where}: not structural: type {kind!r}")
    if kind == "array" and not isinstance(openapi.get("items"), Mapping):
        raise SchemaUnsupported(f"{where}: not structural: an array needs items")
    if openapi.get("properties") and "additionalProperties" in openapi:
        raise SchemaUnsupported(f"{where}: properties and additionalProperties exclude each other")
    list_type = openapi.get("x-kubernetes-list-type", "atomic")
    if list_type not in LIST_TYPES or ("x-kubernetes-list-type" in openapi and kind != "array"):
        raise SchemaUnsupported(f"{where}: list type {list_type!r} of {kind or 'any value'}")
    if (list_type == "map") != bool(openapi.get("x-kubernetes-list-map-keys")):
        raise SchemaUnsupported(f"{where}: list type map and list-map-keys belong together")


def unknown_fields(value: Any, node: Node, path: str = "") -> Iterator[str]:
    """Yield the paths of all fields that the schema does not declare, in document order."""
    if isinstance(value, dict):
        for key, each in value.items():
            inner = node.member(key)
            if inner is not None:
                yield from unknown_fields(each, inner, child(path, key))
            elif not node.keeps_unknown and (node.type == "object" or node.properties):
                yield child(path, key)
    elif isinstance(value, list) and node.items is not None:
        for index, each in enumerate(value):
            yield from unknown_fields(each, node.items, f"{path}[{index}]")


def complete(value: Any, node: Node) -> Any:
    """Copy a value; drop nulls where none may be, then fill in defaults, all the way down.

    A null in a field that is not nullable counts as absent, so it gets the default. A quantity
    that is a number becomes text, as Kubernetes stores quantities.
    Defaults are not applied to what they would have to create: an absent object without
    a default of its own stays absent.
    """
    if isinstance(value, dict):
        return _complete_object(value, node)
    if isinstance(value, list):
        return [complete(each, node.items) if node.items else copy.deepcopy(each) for each in value]
    if node.format == "quantity" and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value


def _complete_object(value: Mapping[str, Any], node: Node) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, each in value.items():
        inner = node.member(key)
        if inner is None:
            result[key] = copy.deepcopy(each)
        elif each is not None or inner.is_nullable or inner.keeps_unknown:
            result[key] = complete(each, inner)
    for key, inner in node.properties.items():
        if key not in result and inner.has_default:
            result[key] = complete(copy.deepcopy(inner.default), inner)
    return result
