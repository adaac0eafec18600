"""What a fresh host has before its user applies anything.

Owns: the classes that the chart makes in a cluster, each made where there is no class of its kind;
a user's own stay untouched. Must never: replace anything. Called by `daemon`.
"""

from __future__ import annotations

import contextlib

from lightkube import AsyncClient

from shorthorn.domain import errors
from shorthorn.standalone import objects
from shorthorn.standalone.objects import Object, Objects
from shorthorn.standalone.storage_class import DEFAULT_CLASS

CLASS_NAME = "longhorn"
SNAPSHOT_CLASS_NAME = "longhorn-backing-image"


async def ensure_defaults(client: AsyncClient, *, driver_name: str) -> None:
    """Make the default StorageClass where there is none, and a class for images likewise."""
    storage_class = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": CLASS_NAME, "annotations": {DEFAULT_CLASS: "true"}},
        "provisioner": driver_name,
        "reclaimPolicy": "Delete",
        "volumeBindingMode": "Immediate",
        "allowVolumeExpansion": True,
        "parameters": {},
    }
    snapshot_class = {
        "apiVersion": "snapshot.storage.k8s.io/v1",
        "kind": "VolumeSnapshotClass",
        "metadata": {"name": SNAPSHOT_CLASS_NAME},
        "driver": driver_name,
        "deletionPolicy": "Delete",
        "parameters": {"type": "bi", "export-type": "qcow2"},
    }
    await _ensure(Objects(client, objects.STORAGE_CLASS, is_namespaced=False), storage_class)
    await _ensure(Objects(client, objects.SNAPSHOT_CLASS, is_namespaced=False), snapshot_class)


async def _ensure(classes: Objects, wanted: Object) -> None:
    if await classes.list():
        return
    with contextlib.suppress(errors.AlreadyExists):
        await classes.create(wanted)
