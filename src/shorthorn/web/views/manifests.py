"""Ready manifests: a VolumeSnapshotContent, a VolumeSnapshot and a claim for one handle.

Owns: the three objects and their YAML. Must never: write a handle by hand (`domain.handles` does).
Pure. Called by the pages of images, handles and restores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import yaml

from shorthorn.domain import handles
from shorthorn.domain.errors import InvalidArgument
from shorthorn.domain.models import BackingImage

_MIB: Final = 1 << 20
_SNAPSHOTS: Final = "snapshot.storage.k8s.io/v1"


@dataclass(frozen=True, slots=True)
class Names:
    """What the objects are called, and the classes they name."""

    name: str
    namespace: str = "default"
    snapshot_class: str = "longhorn-backing-image"
    storage_class: str = "longhorn"


def handle_of(image: BackingImage) -> str | None:
    """Return the handle that names an existing image; None where its source is not offered."""
    try:
        return handles.make(image.meta.name, image.spec.source_type, "", {}).format()
    except InvalidArgument:
        return None


def objects_for(
    handle: str, names: Names, *, driver: str, size_bytes: int, volume_mode: str = "Filesystem"
) -> tuple[dict[str, Any], ...]:
    """Return content, snapshot and claim. The content keeps the image when it is deleted."""
    content = {
        "apiVersion": _SNAPSHOTS,
        "kind": "VolumeSnapshotContent",
        "metadata": {"name": names.name},
        "spec": {
            "volumeSnapshotClassName": names.snapshot_class,
            "driver": driver,
            "deletionPolicy": "Retain",
            "source": {"snapshotHandle": handle},
            "volumeSnapshotRef": {"name": names.name, "namespace": names.namespace},
        },
    }
    snapshot = {
        "apiVersion": _SNAPSHOTS,
        "kind": "VolumeSnapshot",
        "metadata": {"name": names.name, "namespace": names.namespace},
        "spec": {
            "volumeSnapshotClassName": names.snapshot_class,
            "source": {"volumeSnapshotContentName": names.name},
        },
    }
    claim = claim_from_snapshot(
        names, snapshot=names.name, size_bytes=size_bytes, volume_mode=volume_mode
    )
    return content, snapshot, claim


def claim_from_snapshot(
    names: Names, *, snapshot: str, size_bytes: int, volume_mode: str = "Filesystem"
) -> dict[str, Any]:
    """Return a claim with a VolumeSnapshot as its source."""
    spec: dict[str, Any] = {
        "storageClassName": names.storage_class,
        "accessModes": ["ReadWriteOnce"],
        "dataSource": {
            "apiGroup": "snapshot.storage.k8s.io",
            "kind": "VolumeSnapshot",
            "name": snapshot,
        },
        "resources": {"requests": {"storage": quantity(size_bytes)}},
    }
    if volume_mode != "Filesystem":
        spec = {"volumeMode": volume_mode} | spec
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": names.name, "namespace": names.namespace},
        "spec": spec,
    }


def to_yaml(*documents: Mapping[str, Any]) -> str:
    """Return the objects as YAML documents, in the order of their keys."""
    texts = [
        yaml.safe_dump(dict(document), sort_keys=False, width=10_000, allow_unicode=True)
        for document in documents
    ]
    return "---\n".join(texts)


def quantity(size_bytes: int) -> str:
    """Return a Kubernetes quantity that holds so many bytes: whole Gi where it fits, else Mi."""
    mebibytes = max(1, -(-size_bytes // _MIB))
    return f"{mebibytes >> 10}Gi" if mebibytes % 1024 == 0 else f"{mebibytes}Mi"
