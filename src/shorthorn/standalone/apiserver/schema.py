"""Admission of objects by their schema: what a CRD's `openAPIV3Schema` lets in, and how.

Owns the order of things: unknown fields, nulls, defaults, values, metadata, CEL rules. Never
stores anything and knows no HTTP. The embedded API server compiles one `Schema` per served
version at start and admits every object it is about to store.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from shorthorn.standalone.apiserver import objectmeta, structural
from shorthorn.standalone.apiserver.cel_rules import ABSENT, RuleBook
from shorthorn.standalone.apiserver.field_errors import (
    BLOCKING,
    RULES_UNCHECKED,
    TYPE_INVALID,
    FieldError,
    InvalidObject,
    SchemaUnsupported,
    UnknownFields,
    child,
    invalid,
    type_name,
)
from shorthorn.standalone.apiserver.structural import Node
from shorthorn.standalone.apiserver.value_validation import ValueValidator

__all__ = ["FieldError", "InvalidObject", "Schema", "SchemaUnsupported", "UnknownFields"]


class Schema:
    """A compiled structural schema with apiextensions v1 semantics."""

    def __init__(self, root: Node, *, is_core: bool) -> None:
        self._root = root
        self._is_core = is_core
        self._values = ValueValidator(root)
        self._rules = RuleBook(root)

    @classmethod
    def compile(cls, openapi: Mapping[str, Any], *, name: str, is_core: bool = False) -> Schema:
        """Compile the `openAPIV3Schema` of one version of a kind; `name` is for messages.

        Args:   is_core: a real API server has the kind compiled in and knows no CEL rules of it;
                ours are judged when all else is right, and nothing is said of them otherwise.
        Raises: SchemaUnsupported: not structural, or something in it cannot be evaluated.
        """
        try:
            root = structural.compile_node(openapi, "", is_resource=True)
            _demand_valid_defaults(root)
            return cls(root, is_core=is_core)
        except SchemaUnsupported as exc:
            raise SchemaUnsupported(f"schema of {name}: {exc}") from exc

    def admit(self, obj: dict[str, Any], old: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the object as it is to be stored: nulls dropped, defaults filled in.

        Args:   old: the stored object when this is an update; transition rules see it.
        Raises: UnknownFields: fields that the schema does not have, all of them.
                InvalidObject: values that it refuses. CEL rules are judged only when
                types are right and nothing is missing, as they rely on that.
        State:  neither argument is changed; may be called from any thread.
        """
        try:
            return self._admit(obj, old)
        except RecursionError as exc:
            raise InvalidObject([invalid("", type_name(obj), "nested too deeply")]) from exc

    def _admit(self, obj: dict[str, Any], old: dict[str, Any] | None) -> dict[str, Any]:
        if unknown := list(structural.unknown_fields(obj, self._root)):
            raise UnknownFields(unknown)
        result: dict[str, Any] = structural.complete(obj, self._root)
        errors = self._values.errors(result)
        if not any(error.reason == TYPE_INVALID for error in errors):
            errors = [*_metadata_errors(result, self._root, ""), *errors]
        is_blocked = any(error.reason in BLOCKING for error in errors)
        if not errors or not (is_blocked or self._is_core):
            before = ABSENT if old is None else structural.complete(old, self._root)
            errors = [*errors, *self._rules.errors(result, before)]
        if errors:
            if is_blocked and self._rules.has_rules and not self._is_core:
                errors = [*errors, RULES_UNCHECKED]
            raise InvalidObject(errors)
        return result


def _metadata_errors(value: Any, node: Node, path: str) -> Iterator[FieldError]:
    """Judge the metadata of a resource and of every resource embedded in it."""
    if isinstance(value, dict):
        if node.is_resource and ("metadata" in value or not path):
            metadata = value.get("metadata", {})
            yield from objectmeta.problems(metadata, child(path, "metadata"))
        for key, each in value.items():
            if (inner := node.member(key)) is not None:
                yield from _metadata_errors(each, inner, child(path, key))
    elif isinstance(value, list) and node.items is not None:
        for index, each in enumerate(value):
            yield from _metadata_errors(each, node.items, f"{path}[{index}]")


def _demand_valid_defaults(node: Node) -> None:
    if node.has_default and not (node.default is None and node.is_nullable):
        unknown = list(structural.unknown_fields(node.default, node))
        completed = structural.complete(node.default, node)
        if unknown or (problems := ValueValidator(node).errors(completed)):
            found = unknown or [str(error) for error in problems]
            raise SchemaUnsupported(f"{node.path}: the default is not valid: {found}")
    for each in (*node.properties.values(), node.values, node.items):
        if each is not None:
            _demand_valid_defaults(each)
