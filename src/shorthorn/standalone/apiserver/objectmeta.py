"""`metadata`: the ObjectMeta schema that all kinds share.

Owns which fields ObjectMeta has and their types, server-set ones included, because clients
send back what they read. Never judges names or labels and never decides what the server
sets: `meta` does. Called by `structural`.

Source: k8s.io/apimachinery/pkg/apis/meta/v1 ObjectMeta.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
