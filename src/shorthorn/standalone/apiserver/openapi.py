"""OpenAPI v3: what kubectl wants to know before it trusts the server to validate.

Owns /openapi/v3, made from the kinds' schemas on request, so that `kubectl explain` works and
`kubectl apply` finds server-side field validation and dry run announced. Called by `app`.
Source: client-go `openapi3`, kubectl `pkg/util/openapi`, `pkg/explain/v2`.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import msgspec

from shorthorn.standalone.apiserver.discovery import KUBERNETES_VERSION
from shorthorn.standalone.apiserver.negotiation import JSON_PATCH, MERGE_PATCH
from shorthorn.standalone.apiserver.objectmeta import OBJECT_META

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shorthorn.standalone.apiserver.kinds import Kind, KindSet

_OPTIONS = ("dryRun", "fieldManager", "fieldValidation")
_GVK = "x-kubernetes-group-version-kind"


class OpenApi:
    """The OpenAPI v3 documents of a set of kinds, one per group and version."""

    def __init__(self, kinds: KindSet) -> None:
        self._kinds = kinds
        self._index: bytes | None = None

    def index(self) -> bytes:
        """Return the document at /openapi/v3; hashes in it let kubectl cache the rest."""
        if self._index is None:
            paths = {}
            for group, versions in self._kinds.group_versions().items():
                for version in versions:
                    path = f"apis/{group}/{version}" if group else f"api/{version}"
                    digest = hashlib.sha256(self.document(group, version) or b"").hexdigest()
                    paths[path] = {"serverRelativeURL": f"/openapi/v3/{path}?hash={digest[:32]}"}
            self._index = msgspec.json.encode({"paths": paths})
        return self._index

    def document(self, group: str, version: str) -> bytes | None:
        """Return the document of one group and version, or None; made anew each time."""
        kinds = [k for k in self._kinds if k.group == group and version in k.versions]
        if not kinds:
            return None
        document = {
            "openapi": "3.0.0",
            "info": {"title": "Kubernetes", "version": f"v{KUBERNETES_VERSION}"},
            "paths": dict(path for kind in kinds for path in _paths(kind, version)),
            "components": {
                "schemas": {_schema_name(kind, version): _schema(kind, version) for kind in kinds}
            },
        }
        return msgspec.json.encode(document)


def _gvk(kind: Kind, version: str) -> dict[str, str]:
    return {"group": kind.group, "version": version, "kind": kind.kind}


def _schema_name(kind: Kind, version: str) -> str:
    prefix = ".".join(reversed(kind.group.split("."))) or "io.k8s.api.core"
    return f"{prefix}.{version}.{kind.kind}"


def _schema(kind: Kind, version: str) -> dict[str, Any]:
    openapi = kind.versions[version].openapi
    metadata = {"description": "Standard object's metadata.", **OBJECT_META}
    properties = {**openapi.get("properties", {}), "metadata": metadata}
    return {**openapi, "properties": properties, _GVK: [_gvk(kind, version)]}


def _paths(kind: Kind, version: str) -> Iterator[tuple[str, Any]]:
    base = f"/apis/{kind.group}/{version}" if kind.group else f"/api/{version}"
    if kind.namespaced:
        base += "/namespaces/{namespace}"
    gvk = _gvk(kind, version)
    schema = {"$ref": f"#/components/schemas/{_schema_name(kind, version)}"}
    body = {"content": {"application/json": {"schema": schema}}}
    options = [{"name": name, "in": "query", "schema": {"type": "string"}} for name in _OPTIONS]

    def operation(action: str, **members: Any) -> dict[str, Any]:
        answer = {"responses": {"200": {"description": "OK", **body}}}
        return {"x-kubernetes-action": action, _GVK: gvk, **answer, **members}

    yield (
        f"{base}/{kind.plural}",
        {
            "get": operation("list"),
            "post": operation("post", parameters=options, requestBody=body),
        },
    )
    patches = {"content": {name: {"schema": {"type": "object"}} for name in _patch_types()}}
    yield (
        f"{base}/{kind.plural}/{{name}}",
        {
            "get": operation("get"),
            "put": operation("put", parameters=options, requestBody=body),
            "patch": operation("patch", parameters=options, requestBody=patches),
            "delete": operation("delete", parameters=options[:1]),
        },
    )


def _patch_types() -> tuple[str, ...]:
    """Without strategic merge: kubectl has the merge keys of core kinds built in."""
    return (JSON_PATCH, MERGE_PATCH)
