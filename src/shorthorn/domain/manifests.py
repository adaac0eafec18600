"""Ready manifests: a VolumeSnapshotContent, a VolumeSnapshot and a claim for one handle.

Owns: the three objects. Must never: write a handle by hand (`domain.handles` does), or know how
they are printed. Pure. Called by `shorthorn image handle` and by the pages of images and handles.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from shorthorn.domain import handles
from shorthorn.domain.errors import InvalidArgument
from shorthorn.domain.models import BackingImage

_MIB: Final = 1 << 20
_SNAPSHOT_GROUP: Final = "snapshot.storage.k8s.io"
_SNAPSHOTS: Final = f"{_SNAPSHOT_GROUP}/v1"


@dataclass(frozen=True, slots=True)
class Names:
    """What the objects are called, and the classes they name. An empty `snapshot_class` names
    none: a content that was made by hand needs no class, and none is installed with Shorthorn.
    """

    name: str
    namespace: str = "default"
    snapshot_class: str = ""
    storage_class: str = "longhorn"


def handle_of(image: BackingImage) -> str | None:
    """Return the handle that names an existing image; None where its source is not offered."""
    try:
        return handles.make(image.meta.name, image.spec.source_type, "", {}).format()
    except InvalidArgument:
        return None


def content(handle: str, names: Names, *, driver: str) -> dict[str, Any]:
    """Return a VolumeSnapshotContent for a handle. It keeps the image when it is deleted."""
    return {
        "apiVersion": _SNAPSHOTS,
        "kind": "VolumeSnapshotContent",
        "metadata": {"name": names.name},
        "spec": {
            **_class(names),
            "driver": driver,
            "deletionPolicy": "Retain",
            "source": {"snapshotHandle": handle},
            "volumeSnapshotRef": {"name": names.name, "namespace": names.namespace},
        },
    }


def snapshot(names: Names) -> dict[str, Any]:
    """Return the VolumeSnapshot that stands for that content."""
    return {
        "apiVersion": _SNAPSHOTS,
        "kind": "VolumeSnapshot",
        "metadata": {"name": names.name, "namespace": names.namespace},
        "spec": {**_class(names), "source": {"volumeSnapshotContentName": names.name}},
    }


def claim(
    names: Names, *, snapshot: str, size_bytes: int, volume_mode: str = "Filesystem"
) -> dict[str, Any]:
    """Return a PersistentVolumeClaim with a VolumeSnapshot of its namespace as its source."""
    mode = {} if volume_mode == "Filesystem" else {"volumeMode": volume_mode}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": names.name, "namespace": names.namespace},
        "spec": {
            **mode,
            "storageClassName": names.storage_class,
            "accessModes": ["ReadWriteOnce"],
            "dataSource": {
                "apiGroup": _SNAPSHOT_GROUP,
                "kind": "VolumeSnapshot",
                "name": snapshot,
            },
            "resources": {"requests": {"storage": quantity(size_bytes)}},
        },
    }


def quantity(size_bytes: int) -> str:
    """Return a Kubernetes quantity that holds so many bytes: whole Gi where it fits, else Mi."""
    mebibytes = max(1, -(-size_bytes // _MIB))
    return f"{mebibytes >> 10}Gi" if mebibytes % 1024 == 0 else f"{mebibytes}Mi"


def _class(names: Names) -> dict[str, str]:
    return {"volumeSnapshotClassName": names.snapshot_class} if names.snapshot_class else {}
