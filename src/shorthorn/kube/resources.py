"""Our five kinds as lightkube resources, and how each becomes a domain object.

Owns: groups, versions, plurals, and the keys that Longhorn or Kubernetes named differently from us.
Must never: do I/O. Called by `kube.registry` alone; everybody else sees domain objects.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, cast

from shorthorn.domain import models
from shorthorn.kube import codec
from shorthorn.kube.generic import resource_class


class Stored(Protocol):
    """What every kind of domain.models has in common."""

    @property
    def meta(self) -> models.Meta: ...


Domain = TypeVar("Domain", bound=Stored)
"""One of the five classes in domain.models."""

_LONGHORN = "longhorn.io/v1beta2"
_SHORTHORN = "shorthorn.io/v1alpha1"

_COPY_KEYS = {
    "progress_percent": "progress",
    "changed_at": "lastStateTransitionTime",
    "size_bytes": "size",
    "virtual_size_bytes": "virtualSize",
    "real_size_bytes": "realSize",
}
_IMAGE_KEYS = {
    **_COPY_KEYS,
    "disk_file_spec": "diskFileSpecMap",
    "disk_file_status": "diskFileStatusMap",
    "disk_last_ref_at": "diskLastRefAtMap",
}


@dataclass(frozen=True)
class Kind(Generic[Domain]):
    """How one kind is stored: its resource class, its domain classes and its odd keys."""

    name: str
    api_version: str
    plural: str
    domain: type[Domain]
    spec: type[Any]
    status: type[Any]
    keys: Mapping[str, str]

    @property
    def resource(self) -> Any:
        """The lightkube class of the custom resource."""
        return resource_class(self.api_version, self.name, self.plural, is_namespaced=True)

    def to_object(self, value: Domain) -> dict[str, Any]:
        """Return the whole custom resource: metadata, spec and status.

        Of an object that was read, whatever we do not know stays as it was: other controllers'
        labels and owners, and fields of a spec that only Longhorn's own tools read.
        """
        wanted = self._known(value)
        stored = cast("Any", value).meta.stored
        if stored is None:
            return wanted
        merged: dict[str, Any] = codec.merge(stored, self._known(self.from_object(stored)), wanted)
        merged["status"] = {**wanted["status"], **merged.get("status", {})}  # zeros are said
        return merged

    def _known(self, value: Domain) -> dict[str, Any]:
        parts = cast("Any", value)
        return {
            "apiVersion": self.api_version,
            "kind": self.name,
            "metadata": _metadata(parts.meta),
            "spec": codec.encode(parts.spec, self.keys),
            "status": _conditions_out(codec.encode(parts.status, self.keys)),
        }

    def from_object(self, data: Mapping[str, Any]) -> Domain:
        """Return the domain object of a custom resource as an API server sent it."""
        status = _conditions_in(data.get("status") or {})
        build: Any = self.domain
        value: Domain = build(
            meta=_meta(data),
            spec=codec.decode(self.spec, data.get("spec"), self.keys),
            status=codec.decode(self.status, status, self.keys),
        )
        return value


BACKING_IMAGE = Kind(
    "BackingImage",
    _LONGHORN,
    "backingimages",
    models.BackingImage,
    models.BackingImageSpec,
    models.BackingImageStatus,
    _IMAGE_KEYS,
)
IMAGE_COPY = Kind(
    "ImageCopy",
    _SHORTHORN,
    "imagecopies",
    models.ImageCopy,
    models.ImageCopySpec,
    models.ImageCopyStatus,
    _COPY_KEYS,
)
VOLUME = Kind(
    "Volume",
    _SHORTHORN,
    "volumes",
    models.Volume,
    models.VolumeSpec,
    models.VolumeStatus,
    {},
)
SNAPSHOT = Kind(
    "Snapshot",
    _SHORTHORN,
    "snapshots",
    models.Snapshot,
    models.SnapshotSpec,
    models.SnapshotStatus,
    {},
)
POOL = Kind("Pool", _SHORTHORN, "pools", models.Pool, models.PoolSpec, models.PoolStatus, {})


def _metadata(meta: models.Meta) -> dict[str, Any]:
    data: dict[str, Any] = {"name": meta.name, "finalizers": list(meta.finalizers)}
    if meta.resource_version:
        data["resourceVersion"] = meta.resource_version
    if meta.uid:
        data["uid"] = meta.uid
    if meta.labels:
        data["labels"] = dict(meta.labels)
    if meta.annotations:
        data["annotations"] = dict(meta.annotations)
    return data


def _meta(stored: Mapping[str, Any]) -> models.Meta:
    data = stored["metadata"]
    created = data.get("creationTimestamp")
    return models.Meta(
        name=data["name"],
        uid=data.get("uid", ""),
        resource_version=data.get("resourceVersion", ""),
        generation=data.get("generation", 0),
        created_at=codec.parse_time(created) if created else None,
        deleting=bool(data.get("deletionTimestamp")),
        finalizers=tuple(data.get("finalizers") or ()),
        labels=data.get("labels") or {},
        annotations=data.get("annotations") or {},
        stored=stored,
    )


def _conditions_out(status: dict[str, Any]) -> dict[str, Any]:
    """Give conditions their Kubernetes spelling: status "True" or "False", no key left out."""
    if "conditions" in status:
        status["conditions"] = [
            {
                "type": c["type"],
                "status": "True" if c["isTrue"] else "False",
                "reason": c["reason"],
                "message": c.get("message", ""),
                "lastTransitionTime": c["changedAt"]
                if "changedAt" in c
                else c["lastStateTransitionTime"],
            }
            for c in status["conditions"]
        ]
    return status


def _conditions_in(status: Mapping[str, Any]) -> Mapping[str, Any]:
    if not status.get("conditions"):
        return status
    conditions = [
        {
            **c,
            "isTrue": c["status"] == "True",
            "changedAt": c["lastTransitionTime"],
            "lastStateTransitionTime": c["lastTransitionTime"],
        }
        for c in status["conditions"]
    ]
    return {**status, "conditions": conditions}
