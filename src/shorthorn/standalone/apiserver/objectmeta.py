"""`metadata`: the schema and the naming rules that all kinds share.

Owns which fields ObjectMeta has, server-set ones included, because clients send back what
they read, and what names, keys and label values may look like. Never decides what the server
sets: `meta` does. Called by `structural` and `schema`.

Source: k8s.io/apimachinery, ObjectMeta and its validation; RFC 1123 for names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from shorthorn.domain.names import OBJECT_NAME_LENGTH_MAX, SUBDOMAIN_FORM, is_object_name
from shorthorn.standalone.apiserver.field_errors import (
    FieldError,
    invalid,
    required,
    too_long,
)

LABEL_LENGTH_MAX = 63
ANNOTATIONS_SIZE_MAX_BYTES = 256 * 1024

_QUALIFIED_NAME = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")
_LABEL_VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")

_SUBDOMAIN_RULE = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or "
    "'.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used "
    f"for validation is '{SUBDOMAIN_FORM.pattern}')"
)
_QUALIFIED_NAME_RULE = (
    "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end "
    "with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for "
    f"validation is '{_QUALIFIED_NAME.pattern}')"
)
_LABEL_VALUE_RULE = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or "
    "'.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  "
    f"or '12345', regex used for validation is '{_LABEL_VALUE.pattern}')"
)

_STRING: dict[str, Any] = {"type": "string"}
_STRING_MAP: dict[str, Any] = {"type": "object", "additionalProperties": _STRING}
_TIME: dict[str, Any] = {"type": "string", "format": "date-time"}

OBJECT_META: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": _STRING,
        "generateName": _STRING,
        "namespace": _STRING,
        "selfLink": _STRING,
        "uid": _STRING,
        "resourceVersion": _STRING,
        "generation": {"type": "integer", "format": "int64"},
        "creationTimestamp": _TIME,
        "deletionTimestamp": _TIME,
        "deletionGracePeriodSeconds": {"type": "integer", "format": "int64"},
        "labels": _STRING_MAP,
        "annotations": _STRING_MAP,
        "finalizers": {
            "type": "array",
            "items": _STRING,
            "x-kubernetes-patch-strategy": "merge",
        },
        "ownerReferences": {
            "type": "array",
            "x-kubernetes-patch-strategy": "merge",
            "x-kubernetes-patch-merge-key": "uid",
            "items": {
                "type": "object",
                "required": ["apiVersion", "kind", "name", "uid"],
                "properties": {
                    "apiVersion": _STRING,
                    "kind": _STRING,
                    "name": _STRING,
                    "uid": _STRING,
                    "controller": {"type": "boolean"},
                    "blockOwnerDeletion": {"type": "boolean"},
                },
            },
        },
        "managedFields": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "manager": _STRING,
                    "operation": _STRING,
                    "apiVersion": _STRING,
                    "time": _TIME,
                    "fieldsType": _STRING,
                    "fieldsV1": {
                        "type": "object",
                        "x-kubernetes-preserve-unknown-fields": True,
                    },
                    "subresource": _STRING,
                },
            },
        },
    },
}


def schema(narrowed: Mapping[str, Any]) -> dict[str, Any]:
    """ObjectMeta, with a CRD's own limits on `name` and `generateName` (all it may limit)."""
    limits = narrowed.get("properties", {})
    properties = {
        **OBJECT_META["properties"],
        **{key: limits[key] for key in ("name", "generateName") if key in limits},
    }
    return {**OBJECT_META, "properties": properties}


def problems(metadata: Mapping[str, Any], path: str = "metadata") -> Iterator[FieldError]:
    """Yield what is wrong with well-typed metadata: names, keys, values, sizes."""
    yield from _names(metadata, path)
    for key, value in metadata.get("labels", {}).items():
        yield from _qualified_name(f"{path}.labels", key)
        if len(value) > LABEL_LENGTH_MAX:
            detail = f"must be no more than {LABEL_LENGTH_MAX} bytes"
            yield invalid(f"{path}.labels", value, detail)
        elif not _LABEL_VALUE.fullmatch(value):
            yield invalid(f"{path}.labels", value, _LABEL_VALUE_RULE)
    yield from _annotations(metadata.get("annotations", {}), f"{path}.annotations")
    for finalizer in metadata.get("finalizers", []):
        yield from _qualified_name(f"{path}.finalizers", finalizer)
    yield from _owners(metadata.get("ownerReferences", []), f"{path}.ownerReferences")


def _names(metadata: Mapping[str, Any], path: str) -> Iterator[FieldError]:
    name, prefix = metadata.get("name", ""), metadata.get("generateName", "")
    if not name and not prefix:
        yield required(f"{path}.name", "name or generateName is required")
    if name:
        yield from _subdomain(f"{path}.name", name)
    if prefix:
        # What the server appends is alphanumeric, so the prefix may end in a dash.
        whole = prefix[:-1] + "a" if len(prefix) > 1 and prefix.endswith("-") else prefix
        yield from _subdomain(f"{path}.generateName", whole)


def _subdomain(field: str, value: str) -> Iterator[FieldError]:
    if len(value) > OBJECT_NAME_LENGTH_MAX:
        yield invalid(field, value, f"must be no more than {OBJECT_NAME_LENGTH_MAX} bytes")
    if not SUBDOMAIN_FORM.fullmatch(value):
        yield invalid(field, value, _SUBDOMAIN_RULE)


def _qualified_name(field: str, value: str) -> Iterator[FieldError]:
    prefix, slash, name = value.rpartition("/")
    if slash and not prefix:
        yield invalid(field, value, "prefix part must be non-empty")
    elif slash and not is_object_name(prefix):
        yield invalid(field, value, f"prefix part {_SUBDOMAIN_RULE}")
    if not name:
        yield invalid(field, value, "name part must be non-empty")
    elif len(name) > LABEL_LENGTH_MAX:
        detail = f"name part must be no more than {LABEL_LENGTH_MAX} bytes"
        yield invalid(field, value, detail)
    elif not _QUALIFIED_NAME.fullmatch(name):
        yield invalid(field, value, _QUALIFIED_NAME_RULE)


def _annotations(annotations: Mapping[str, str], field: str) -> Iterator[FieldError]:
    size_bytes = 0
    for key, value in annotations.items():
        yield from _qualified_name(field, key.lower())
        size_bytes += len(key.encode()) + len(value.encode())
    if size_bytes > ANNOTATIONS_SIZE_MAX_BYTES:
        yield too_long(field, ANNOTATIONS_SIZE_MAX_BYTES)


def _owners(owners: list[dict[str, Any]], field: str) -> Iterator[FieldError]:
    controllers = [owner.get("name") for owner in owners if owner.get("controller")]
    if len(controllers) > 1:
        yield invalid(field, controllers, "Only one reference can have Controller set to true")
    for index, owner in enumerate(owners):
        for key in ("apiVersion", "kind", "name", "uid"):
            if owner.get(key) == "":  # an absent one is missing by the schema
                yield invalid(f"{field}[{index}].{key}", "", f"{key} must not be empty")
