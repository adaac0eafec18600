"""The fields of the kinds that lint knows: where each belongs, and which must be there.

Owns: names and places of fields, nothing about values. Must never: grow into a second copy of the
CRDs; only what explains a misplaced or missing field is here. Called by `structure`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final


class Leaf(Enum):
    """What stands where no further fields are known."""

    ANY = "anything"
    TEXT = "a string"


Fields = Mapping[str, "Fields | Leaf"]
Path = tuple[str, ...]

SNAPSHOT_GROUP: Final = "snapshot.storage.k8s.io"

_METADATA_OTHERS: Final = (
    *("labels", "annotations", "finalizers", "ownerReferences", "uid", "resourceVersion"),
    *("generation", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"),
    *("managedFields", "selfLink"),
)
_METADATA: Final[Fields] = {
    "name": Leaf.TEXT,
    "generateName": Leaf.TEXT,
    "namespace": Leaf.TEXT,
    **dict.fromkeys(_METADATA_OTHERS, Leaf.ANY),
}
_OBJECT: Final[Fields] = {"apiVersion": Leaf.TEXT, "kind": Leaf.TEXT, "metadata": _METADATA}
_DATA_SOURCE: Final[Fields] = {"apiGroup": Leaf.ANY, "kind": Leaf.TEXT, "name": Leaf.TEXT}


@dataclass(frozen=True, slots=True)
class KindSchema:
    """One kind: its API version, its tree of fields, and the paths that must not be missing."""

    api_version: str
    fields: Fields
    required: tuple[Path, ...]


KINDS: Final[Mapping[str, KindSchema]] = {
    "VolumeSnapshotClass": KindSchema(
        f"{SNAPSHOT_GROUP}/v1",
        {
            **_OBJECT,
            "driver": Leaf.TEXT,
            "deletionPolicy": Leaf.TEXT,
            "parameters": Leaf.ANY,
        },
        (("driver",), ("deletionPolicy",)),
    ),
    "VolumeSnapshot": KindSchema(
        f"{SNAPSHOT_GROUP}/v1",
        {
            **_OBJECT,
            "spec": {
                "volumeSnapshotClassName": Leaf.TEXT,
                "source": {
                    "persistentVolumeClaimName": Leaf.TEXT,
                    "volumeSnapshotContentName": Leaf.TEXT,
                },
            },
            "status": Leaf.ANY,
        },
        (("spec", "source"),),
    ),
    "VolumeSnapshotContent": KindSchema(
        f"{SNAPSHOT_GROUP}/v1",
        {
            **_OBJECT,
            "spec": {
                "deletionPolicy": Leaf.TEXT,
                "driver": Leaf.TEXT,
                "source": {"snapshotHandle": Leaf.TEXT, "volumeHandle": Leaf.TEXT},
                "sourceVolumeMode": Leaf.TEXT,
                "volumeSnapshotClassName": Leaf.TEXT,
                "volumeSnapshotRef": {
                    "name": Leaf.TEXT,
                    "namespace": Leaf.TEXT,
                    **dict.fromkeys(
                        ("apiVersion", "kind", "uid", "resourceVersion", "fieldPath"), Leaf.ANY
                    ),
                },
            },
            "status": Leaf.ANY,
        },
        (
            ("spec", "driver"),
            ("spec", "deletionPolicy"),
            ("spec", "source"),
            ("spec", "volumeSnapshotRef", "name"),
            ("spec", "volumeSnapshotRef", "namespace"),
        ),
    ),
    "PersistentVolumeClaim": KindSchema(
        "v1",
        {
            **_OBJECT,
            "spec": {
                "accessModes": Leaf.ANY,
                "dataSource": _DATA_SOURCE,
                "dataSourceRef": {**_DATA_SOURCE, "namespace": Leaf.TEXT},
                "resources": {"requests": {"storage": Leaf.ANY}, "limits": Leaf.ANY},
                "selector": Leaf.ANY,
                "storageClassName": Leaf.TEXT,
                "volumeAttributesClassName": Leaf.TEXT,
                "volumeMode": Leaf.TEXT,
                "volumeName": Leaf.TEXT,
            },
            "status": Leaf.ANY,
        },
        (("spec", "accessModes"), ("spec", "resources", "requests", "storage")),
    ),
}


def homes(key: str, tree: Fields) -> list[Path]:
    """Return the path of every mapping in `tree` where the field `key` belongs."""
    found: list[Path] = []
    waiting: list[tuple[Path, Fields]] = [((), tree)]
    while waiting:
        path, known = waiting.pop(0)
        if key in known:
            found.append(path)
        for name, below in known.items():
            if not isinstance(below, Leaf):
                waiting.append(((*path, name), below))
    return found


def names(tree: Fields) -> set[str]:
    """Return every field name of `tree`, at any depth."""
    found = set(tree)
    for below in tree.values():
        if not isinstance(below, Leaf):
            found |= names(below)
    return found
