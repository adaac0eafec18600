"""Kubernetes objects as plain dictionaries, for the roles of this package.

Owns: which resources the roles read and write, and the few verbs they use. Must never: decide
anything. Our own kinds have typed registries instead (`kube.registry`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from lightkube import AsyncClient
from lightkube.types import PatchType

from shorthorn.domain import errors
from shorthorn.kube.client import domain_errors
from shorthorn.kube.generic import resource_class
from shorthorn.kube.informer import Informer, as_mapping

Object = dict[str, Any]
"""One Kubernetes object as JSON."""

_SNAPSHOT_API = "snapshot.storage.k8s.io/v1"

PVC = resource_class("v1", "PersistentVolumeClaim", "persistentvolumeclaims", is_namespaced=True)
PV = resource_class("v1", "PersistentVolume", "persistentvolumes", is_namespaced=False)
EVENT = resource_class("v1", "Event", "events", is_namespaced=True)
STORAGE_CLASS = resource_class(
    "storage.k8s.io/v1", "StorageClass", "storageclasses", is_namespaced=False
)
SNAPSHOT = resource_class(_SNAPSHOT_API, "VolumeSnapshot", "volumesnapshots", is_namespaced=True)
SNAPSHOT_CONTENT = resource_class(
    _SNAPSHOT_API, "VolumeSnapshotContent", "volumesnapshotcontents", is_namespaced=False
)
SNAPSHOT_CLASS = resource_class(
    _SNAPSHOT_API, "VolumeSnapshotClass", "volumesnapshotclasses", is_namespaced=False
)


class Objects:
    """One resource: fresh reads and writes by name, and an informer for its picture.

    Keys are `namespace/name`, for cluster-scoped resources `name`.
    """

    def __init__(self, client: AsyncClient, resource: Any, *, is_namespaced: bool) -> None:
        self._client: Any = client
        self._resource = resource
        self._is_namespaced = is_namespaced
        self.informer = Informer(client, resource, namespace="*" if is_namespaced else None)

    def cached(self) -> list[Object]:
        """Return all objects as last seen; not to be changed."""
        return [dict(obj) for obj in self.informer.objects.values()]

    async def find(self, key: str) -> Object | None:
        """Return a copy of the object, or None; also where half of the name is missing."""
        if not name_of(key) or not self._in(key).get("namespace", "-"):
            return None  # else the request would ask for the whole list
        try:
            with domain_errors(self._kind, key):
                found = await self._client.get(self._resource, name_of(key), **self._in(key))
        except errors.NotFound:
            return None
        return copy.deepcopy(dict(as_mapping(found)))

    async def list(self, *, namespace: str = "*") -> list[Object]:
        """Return all objects, or those of one namespace, from the API server."""
        place = {"namespace": namespace} if self._is_namespaced else {}
        with domain_errors(self._kind, "list"):
            listing = self._client.list(self._resource, **place)
            return [dict(as_mapping(obj)) async for obj in listing]

    async def create(self, obj: Object) -> Object:
        """Store a new object. Raises AlreadyExists, InvalidArgument."""
        key = key_of(obj)
        with domain_errors(self._kind, key):
            created = await self._client.create(self._resource(obj), **self._in(key))
        return dict(as_mapping(created))

    async def replace(self, obj: Object) -> Object:
        """Write the whole object except its status. Raises Conflict where it changed since it was
        read.
        """
        key = key_of(obj)
        with domain_errors(self._kind, key):
            written = await self._client.replace(self._resource(obj), name_of(key), **self._in(key))
        return dict(as_mapping(written))

    async def replace_status(self, obj: Object) -> Object:
        """Write the status alone. Raises Conflict."""
        key = key_of(obj)
        body = self._resource.Status(obj)
        with domain_errors(self._kind, key):
            written = await self._client.replace(body, name_of(key), **self._in(key))
        return dict(as_mapping(written))

    async def ensure_phase(self, obj: Object, phase: str) -> None:
        """Write `status.phase` where it says something else. Raises Conflict."""
        status = obj.get("status") or {}
        if status.get("phase") != phase:
            await self.replace_status({**obj, "status": {**status, "phase": phase}})

    async def merge(self, key: str, patch: Mapping[str, Any]) -> Object:
        """Apply a JSON merge patch (RFC 7386)."""
        with domain_errors(self._kind, key):
            patched = await self._client.patch(
                self._resource,
                name_of(key),
                dict(patch),
                patch_type=PatchType.MERGE,
                **self._in(key),
            )
        return dict(as_mapping(patched))

    async def delete(self, key: str) -> None:
        """Ask for deletion; missing is success."""
        try:
            with domain_errors(self._kind, key):
                await self._client.delete(self._resource, name_of(key), **self._in(key))
        except errors.NotFound:
            return

    @property
    def _kind(self) -> str:
        return str(self._resource._api_info.resource.kind)

    def _in(self, key: str) -> dict[str, str]:
        return {"namespace": key.partition("/")[0]} if self._is_namespaced else {}


def key_of(obj: Mapping[str, Any]) -> str:
    """Return `namespace/name`, or `name` for a cluster-scoped object."""
    meta = obj["metadata"]
    return f"{meta['namespace']}/{meta['name']}" if meta.get("namespace") else str(meta["name"])


def name_of(key: str) -> str:
    return key.rpartition("/")[2]


def is_deleting(obj: Mapping[str, Any]) -> bool:
    return bool(obj["metadata"].get("deletionTimestamp"))


def annotations_of(obj: Mapping[str, Any]) -> Mapping[str, str]:
    return obj["metadata"].get("annotations") or {}


def reference_to(obj: Mapping[str, Any]) -> Object:
    """Return an ObjectReference to `obj`, as claimRef, involvedObject and volumeSnapshotRef want
    it.
    """
    meta = obj["metadata"]
    reference = {
        "apiVersion": obj["apiVersion"],
        "kind": obj["kind"],
        "name": meta["name"],
        "uid": meta["uid"],
        "resourceVersion": meta["resourceVersion"],
    }
    if meta.get("namespace"):
        reference["namespace"] = meta["namespace"]
    return reference


def with_finalizers(obj: Object, *names: str) -> bool:
    """Add the finalizers that `obj` lacks; True where anything was added."""
    have = obj["metadata"].setdefault("finalizers", [])
    missing = [name for name in names if name not in have]
    have.extend(missing)
    return bool(missing)


def without_finalizers(obj: Object, *names: str) -> bool:
    """Remove the finalizers; True where anything was removed."""
    have = obj["metadata"].get("finalizers") or []
    left = [name for name in have if name not in names]
    obj["metadata"]["finalizers"] = left
    return len(left) != len(have)
