"""What a fresh host has before its user applies anything.

Owns: the StorageClass `longhorn`, made once when it is missing and there is no class at all; a
user's own stays untouched. Must never: replace anything. Called by `daemon`.
"""

from __future__ import annotations

import contextlib

from lightkube import AsyncClient

from shorthorn.domain import errors
from shorthorn.standalone import objects
from shorthorn.standalone.objects import Objects
from shorthorn.standalone.storage_class import DEFAULT_CLASS

CLASS_NAME = "longhorn"


async def ensure_defaults(client: AsyncClient, *, driver_name: str) -> None:
    """Make the default StorageClass where no StorageClass exists."""
    classes = Objects(client, objects.STORAGE_CLASS, is_namespaced=False)
    if await classes.list():
        return
    with contextlib.suppress(errors.AlreadyExists):
        await classes.create(
            {
                "apiVersion": "storage.k8s.io/v1",
                "kind": "StorageClass",
                "metadata": {"name": CLASS_NAME, "annotations": {DEFAULT_CLASS: "true"}},
                "provisioner": driver_name,
                "reclaimPolicy": "Delete",
                "volumeBindingMode": "Immediate",
                "allowVolumeExpansion": True,
                "parameters": {},
            }
        )
