"""The members of `metadata` that only the server may set, and how they live on from write to write.

Owns new names, uids, times and the carrying over between an old and a new object. Whether names,
labels and the rest are well formed is judged by `schema`; this module must not look at spec or
status and does no I/O. Called by `registry`.
"""

from __future__ import annotations

import datetime as dt
import secrets
import uuid
from typing import Any

from shorthorn.standalone.apiserver.field_errors import FieldError, forbidden

#: Generated names end in five of these (k8s.io/apimachinery/pkg/util/rand): no vowels, no words.
_NAME_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
#: 63 less the five random characters (apiserver/pkg/storage/names).
_GENERATED_BASE_MAX = 58

_STRINGS = ("name", "namespace", "generateName", "uid", "resourceVersion")
#: Never taken from a caller; what else a caller sends (unknown members too) is for the schema to
#: judge.
_SERVER_OWNED = frozenset(
    {
        "name",
        "namespace",
        "generateName",
        "uid",
        "resourceVersion",
        "generation",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "managedFields",
        "selfLink",
    }
)


def now_rfc3339() -> str:
    """Return the current time as Kubernetes writes it: UTC, whole seconds, `Z`."""
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def find_malformed(metadata: object) -> str | None:
    """Say which member has a type that the server itself cannot work with, or None."""
    if not isinstance(metadata, dict):
        return "metadata must be an object"
    for key in _STRINGS:
        if not isinstance(metadata.get(key) or "", str):
            return f"metadata.{key} must be a string"
    finalizers = metadata.get("finalizers") or []
    if not isinstance(finalizers, list) or not all(isinstance(f, str) for f in finalizers):
        return "metadata.finalizers must be a list of strings"
    for key in ("labels", "annotations"):
        if not isinstance(metadata.get(key) or {}, dict):
            return f"metadata.{key} must be a map of strings"
    return None


def for_create(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return the metadata of a new object: the caller's members plus name, uid and time."""
    name, base = metadata.get("name"), metadata.get("generateName")
    if not name and base:
        suffix = "".join(secrets.choice(_NAME_ALPHABET) for _ in range(5))
        name = base[:_GENERATED_BASE_MAX] + suffix
    kept: dict[str, Any] = {}
    if name:
        kept["name"] = name
    if base:
        kept["generateName"] = base
    if metadata.get("namespace"):
        kept["namespace"] = metadata["namespace"]
    kept["uid"] = str(uuid.uuid4())
    kept["creationTimestamp"] = now_rfc3339()
    return kept | _caller_owned(metadata)


def for_update(metadata: dict[str, Any], old: dict[str, Any]) -> dict[str, Any]:
    """Return the old metadata with the caller's labels, annotations, finalizers and owners."""
    kept = {key: value for key, value in old.items() if key in _SERVER_OWNED}
    return kept | _caller_owned(metadata)


def _caller_owned(metadata: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value
        for key, value in metadata.items()
        if key not in _SERVER_OWNED and value is not None and value not in ({}, [])
    }


def find_new_finalizers(metadata: dict[str, Any], old: dict[str, Any]) -> list[FieldError]:
    """Return an error for finalizers that appear on an object which is being deleted."""
    if "deletionTimestamp" not in old:
        return []
    added = [f for f in metadata.get("finalizers", ()) if f not in old.get("finalizers", ())]
    if not added:
        return []
    found = ", ".join(f'"{name}"' for name in added)
    detail = (
        "no new finalizers can be added if the object is being deleted, found new finalizers "
        f"[]string{{{found}}}"
    )
    return [forbidden("metadata.finalizers", detail)]
