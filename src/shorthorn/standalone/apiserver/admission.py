"""Rules of single core kinds that no schema can say: what a real API server has in code.

Owns the defaults that need other objects (the default StorageClass), first phases, and the
write-only members of Secrets. Binding, protection and provisioning belong to the provisioner, never
here. Called by `registry` inside the writing transaction, before the schema sees the object.
Source: Kubernetes `plugin/pkg/admission/storage/storageclass/setdefault`,
`pkg/registry/core/*/strategy.go`.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shorthorn.standalone.apiserver.kinds import Kind
    from shorthorn.standalone.apiserver.transactions import Transaction

_DEFAULT_CLASS = (
    "storageclass.kubernetes.io/is-default-class",
    "storageclass.beta.kubernetes.io/is-default-class",
)


def prepare_create(kind: Kind, obj: dict[str, Any], tx: Transaction) -> None:
    """Complete a new object in place."""
    if kind.resource == "persistentvolumeclaims":
        obj["status"] = {"phase": "Pending"}
        _default_storage_class(obj, tx)
    elif kind.resource == "persistentvolumes":
        obj["status"] = {"phase": "Pending"}
    elif kind.resource == "namespaces":
        labels = obj["metadata"].setdefault("labels", {})
        labels["kubernetes.io/metadata.name"] = obj["metadata"].get("name", "")
        obj["spec"] = {"finalizers": ["kubernetes"]}
        obj["status"] = {"phase": "Active"}
    elif kind.resource == "secrets":
        _fold_string_data(obj)


def prepare_update(kind: Kind, obj: dict[str, Any], old: dict[str, Any]) -> None:
    """Complete a changed object in place."""
    if kind.resource == "secrets":
        _fold_string_data(obj)
    elif kind.resource == "namespaces" and "spec" in old:
        obj["spec"] = old["spec"]


def _default_storage_class(claim: dict[str, Any], tx: Transaction) -> None:
    spec = claim.get("spec")
    if not isinstance(spec, dict) or spec.get("storageClassName") is not None:
        return
    defaults = []
    for row in tx.list_resource("storageclasses.storage.k8s.io"):
        annotations = row.decode()["metadata"].get("annotations", {})
        if any(annotations.get(key) == "true" for key in _DEFAULT_CLASS):
            defaults.append(row)
    if defaults:
        # The newest wins, as in a cluster; versions order creations made in one second too.
        created = {row.name: row.decode()["metadata"]["creationTimestamp"] for row in defaults}
        spec["storageClassName"] = max(defaults, key=lambda r: (created[r.name], r.name)).name


def _fold_string_data(secret: dict[str, Any]) -> None:
    plain = secret.pop("stringData", None)
    if not isinstance(plain, dict):
        return
    encoded = {k: base64.b64encode(str(v).encode()).decode() for k, v in plain.items()}
    secret["data"] = {**(secret.get("data") or {}), **encoded}
