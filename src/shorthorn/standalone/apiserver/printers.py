"""Columns of core kinds, as everybody knows them from `kubectl get`.

Owns what a real API server has in code instead of in a CRD. Values only; ages are put in words by
`table`.
Source: Kubernetes `pkg/printers/internalversion/printers.go`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_ACCESS_MODES = {
    "ReadWriteOnce": "RWO",
    "ReadOnlyMany": "ROX",
    "ReadWriteMany": "RWX",
    "ReadWriteOncePod": "RWOP",
}
_DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"


@dataclass(frozen=True, slots=True)
class CoreColumn:
    """One column; `value` returns the cell, or the time when `is_time`."""

    name: str
    value: Callable[[dict[str, Any]], Any]
    priority: int = 0
    is_time: bool = False


def _at(*members: str, default: Any = "") -> Callable[[dict[str, Any]], Any]:
    def value(obj: dict[str, Any]) -> Any:
        found: Any = obj
        for member in members:
            if not isinstance(found, dict) or found.get(member) is None:
                return default
            found = found[member]
        return found

    return value


def _phase(obj: dict[str, Any]) -> str:
    if "deletionTimestamp" in obj["metadata"]:
        return "Terminating"
    return str(obj.get("status", {}).get("phase", ""))


def _modes(modes: list[str]) -> str:
    return ",".join(_ACCESS_MODES.get(mode, mode) for mode in modes)


def _claim_bound(obj: dict[str, Any], bound: Callable[[dict[str, Any]], Any]) -> Any:
    return bound(obj) if obj.get("spec", {}).get("volumeName") else ""


def _claim_class(obj: dict[str, Any]) -> str:
    legacy = obj["metadata"].get("annotations", {}).get("volume.beta.kubernetes.io/storage-class")
    return str(legacy or obj["spec"].get("storageClassName") or "")


def _claim_ref(obj: dict[str, Any]) -> str:
    claim = obj["spec"].get("claimRef")
    return f"{claim.get('namespace', '')}/{claim.get('name', '')}" if claim else ""


def shown_name(obj: dict[str, Any]) -> str:
    """Return an object's name cell; the default StorageClass says so."""
    name = str(obj["metadata"]["name"])
    annotations = obj["metadata"].get("annotations") or {}
    is_default = obj["kind"] == "StorageClass" and annotations.get(_DEFAULT_CLASS) == "true"
    return f"{name} (default)" if is_default else name


def _involved(obj: dict[str, Any]) -> str:
    involved = obj.get("involvedObject", {})
    kind = str(involved.get("kind", "")).lower()
    return f"{kind}/{involved.get('name', '')}" if kind else str(involved.get("name", ""))


def _last_seen(obj: dict[str, Any]) -> Any:
    series = obj.get("series") or {}
    return (
        series.get("lastObservedTime")
        or obj.get("lastTimestamp")
        or obj.get("eventTime")
        or obj.get("firstTimestamp")
    )


def _node_ready(obj: dict[str, Any]) -> str:
    conditions = {c["type"]: c["status"] for c in obj.get("status", {}).get("conditions", ())}
    ready = {"True": "Ready", "False": "NotReady"}.get(conditions.get("Ready", ""), "Unknown")
    return f"{ready},SchedulingDisabled" if obj.get("spec", {}).get("unschedulable") else ready


def _node_roles(obj: dict[str, Any]) -> str:
    prefix = "node-role.kubernetes.io/"
    labels = obj["metadata"].get("labels", {})
    roles = sorted(key.removeprefix(prefix) for key in labels if key.startswith(prefix))
    return ",".join(roles) or "<none>"


def _unset(value: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], str]:
    return lambda obj: str(value(obj)) or "<unset>"


#: Kinds whose rows do not begin with the name.
NAMELESS = frozenset({"events"})

_AGE = CoreColumn("Age", _at("metadata", "creationTimestamp"), is_time=True)

CORE_COLUMNS: Mapping[str, tuple[CoreColumn, ...]] = {
    "persistentvolumeclaims": (
        CoreColumn("Status", _phase),
        CoreColumn("Volume", _at("spec", "volumeName")),
        CoreColumn("Capacity", lambda obj: _claim_bound(obj, _at("status", "capacity", "storage"))),
        CoreColumn(
            "Access Modes",
            lambda obj: _claim_bound(obj, lambda o: _modes(_at("status", "accessModes")(o) or [])),
        ),
        CoreColumn("StorageClass", _claim_class),
        CoreColumn(
            "VolumeAttributesClass",
            _unset(_at("spec", "volumeAttributesClassName")),
        ),
        _AGE,
        CoreColumn("VolumeMode", _at("spec", "volumeMode", default="<unset>"), priority=1),
    ),
    "persistentvolumes": (
        CoreColumn("Capacity", _at("spec", "capacity", "storage")),
        CoreColumn("Access Modes", lambda obj: _modes(obj["spec"].get("accessModes", []))),
        CoreColumn("Reclaim Policy", _at("spec", "persistentVolumeReclaimPolicy")),
        CoreColumn("Status", _phase),
        CoreColumn("Claim", _claim_ref),
        CoreColumn("StorageClass", _at("spec", "storageClassName")),
        CoreColumn("VolumeAttributesClass", _unset(_at("spec", "volumeAttributesClassName"))),
        CoreColumn("Reason", _at("status", "reason")),
        _AGE,
        CoreColumn("VolumeMode", _at("spec", "volumeMode", default="<unset>"), priority=1),
    ),
    "storageclasses.storage.k8s.io": (
        CoreColumn("Provisioner", _at("provisioner")),
        CoreColumn("ReclaimPolicy", _at("reclaimPolicy", default="Delete")),
        CoreColumn("VolumeBindingMode", _at("volumeBindingMode", default="Immediate")),
        CoreColumn("AllowVolumeExpansion", _at("allowVolumeExpansion", default=False)),
        _AGE,
    ),
    "csidrivers.storage.k8s.io": (
        CoreColumn("AttachRequired", _at("spec", "attachRequired", default=True)),
        CoreColumn("PodInfoOnMount", _at("spec", "podInfoOnMount", default=False)),
        CoreColumn("StorageCapacity", _at("spec", "storageCapacity", default=False)),
        CoreColumn(
            "Modes",
            lambda obj: ",".join(obj["spec"].get("volumeLifecycleModes", ["Persistent"])),
        ),
        _AGE,
    ),
    "csinodes.storage.k8s.io": (
        CoreColumn("Drivers", lambda obj: len(obj["spec"].get("drivers") or ())),
        _AGE,
    ),
    "namespaces": (CoreColumn("Status", _at("status", "phase")), _AGE),
    "nodes": (
        CoreColumn("Status", _node_ready),
        CoreColumn("Roles", _node_roles),
        _AGE,
        CoreColumn("Version", _at("status", "nodeInfo", "kubeletVersion")),
        CoreColumn("OS-Image", _at("status", "nodeInfo", "osImage"), priority=1),
        CoreColumn("Kernel-Version", _at("status", "nodeInfo", "kernelVersion"), priority=1),
    ),
    "events": (
        CoreColumn("Last Seen", _last_seen, is_time=True),
        CoreColumn("Type", _at("type")),
        CoreColumn("Reason", _at("reason")),
        CoreColumn("Object", _involved),
        CoreColumn("Source", _at("source", "component"), priority=1),
        CoreColumn("Message", lambda obj: str(obj.get("message", "")).strip()),
        CoreColumn("Count", lambda obj: str(obj.get("count") or 1), priority=1),
        CoreColumn("Name", _at("metadata", "name"), priority=1),
    ),
    "secrets": (
        CoreColumn("Type", _at("type", default="Opaque")),
        CoreColumn("Data", lambda obj: len(obj.get("data") or ())),
        _AGE,
    ),
    "configmaps": (
        CoreColumn(
            "Data", lambda obj: len(obj.get("data") or ()) + len(obj.get("binaryData") or ())
        ),
        _AGE,
    ),
    "serviceaccounts": (CoreColumn("Secrets", lambda obj: len(obj.get("secrets") or ())), _AGE),
}
