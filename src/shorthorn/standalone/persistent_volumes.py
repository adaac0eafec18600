"""The provisioner role's second half: PersistentVolumes, from their making to their reclaim.

Owns: what a PersistentVolume that we make says, release when its claim has gone, the reclaim
policy, and the deletion of data. Must never: reach the driver other than over its socket, nor touch
volumes of other drivers. Plays external-provisioner's deletion and kube-controller-manager's volume
protection; started by `standalone.roles`, `standalone.claims` has volumes described and half-made
data deleted here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shorthorn.csi.proto import csi_pb2
from shorthorn.standalone import storage_class
from shorthorn.standalone.back_off import BackOff
from shorthorn.standalone.csi_client import CALL_TIMEOUT_S, CsiClient, CsiError, answer
from shorthorn.standalone.objects import (
    Object,
    is_deleting,
    key_of,
    reference_to,
    without_finalizers,
)
from shorthorn.standalone.quantity import format_quantity
from shorthorn.standalone.role_context import RoleContext

_VOLUME_PROTECTION = "kubernetes.io/pv-protection"
_DATA_PROTECTION = "external-provisioner.volume.kubernetes.io/finalizer"
_PROVISIONED_BY = "pv.kubernetes.io/provisioned-by"


class PersistentVolumes:
    """Reconciles one volume at a time."""

    def __init__(self, context: RoleContext) -> None:
        self._claims = context.claims
        self._volumes = context.volumes
        self._driver = context.driver
        self._events = context.events
        self._driver_name = context.driver_name
        self._back_off = BackOff()

    async def reconcile(self, key: str) -> float | None:
        volume = await self._volumes.find(key)
        if volume is None or (volume["spec"].get("csi") or {}).get("driver") != self._driver_name:
            return None
        owner = volume["spec"].get("claimRef")
        claim = await self._claim_of(owner) if owner else None
        if claim is not None and _is_bound(claim, volume):
            return None
        if owner and owner.get("uid"):
            await self._volumes.ensure_phase(volume, "Released")
            if volume["spec"].get("persistentVolumeReclaimPolicy") == "Delete":
                return await self._reclaim(volume)
        if is_deleting(volume) and without_finalizers(volume, _VOLUME_PROTECTION, _DATA_PROTECTION):
            await self._volumes.replace(volume)
        return None

    async def _claim_of(self, owner: Mapping[str, Any]) -> Object | None:
        """Return the claim that a claimRef names; a user may have left out half of the name."""
        namespace, name = owner.get("namespace"), owner.get("name")
        return await self._claims.find(f"{namespace}/{name}") if namespace and name else None

    async def _reclaim(self, volume: Object) -> float | None:
        """Have the driver delete the data, then let the object go."""
        try:
            await delete_data(self._driver, volume["spec"]["csi"]["volumeHandle"])
        except CsiError as exc:
            self._events.warning(volume, "VolumeFailedDelete", exc.message)
            return self._back_off.failed(key_of(volume))
        self._back_off.forget(key_of(volume))
        await self._volumes.delete(key_of(volume))
        current = await self._volumes.find(key_of(volume))
        if current is not None and without_finalizers(
            current, _VOLUME_PROTECTION, _DATA_PROTECTION
        ):
            await self._volumes.replace(current)
        return None


def volume_for(claim: Object, cls: Object, made: csi_pb2.Volume, driver_name: str) -> Object:
    """Return the PersistentVolume of what the driver made for `claim`."""
    parameters = cls.get("parameters") or {}
    spec: Object = {
        "capacity": {"storage": format_quantity(made.capacity_bytes)},
        "accessModes": claim["spec"]["accessModes"],
        "volumeMode": claim["spec"].get("volumeMode", "Filesystem"),
        "persistentVolumeReclaimPolicy": cls.get("reclaimPolicy", "Delete"),
        "storageClassName": cls["metadata"]["name"],
        "claimRef": reference_to(claim),
        "csi": {
            "driver": driver_name,
            "volumeHandle": made.volume_id,
            "volumeAttributes": dict(made.volume_context),
        },
    }
    if spec["volumeMode"] == "Filesystem":
        spec["csi"]["fsType"] = storage_class.fs_type_of(parameters)
    if cls.get("mountOptions"):
        spec["mountOptions"] = cls["mountOptions"]
    if made.accessible_topology:
        spec["nodeAffinity"] = {"required": {"nodeSelectorTerms": _terms(made)}}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {
            "name": f"pvc-{claim['metadata']['uid']}",
            "annotations": {_PROVISIONED_BY: driver_name},
            "finalizers": [_VOLUME_PROTECTION, _DATA_PROTECTION],
        },
        "spec": spec,
    }


async def delete_data(driver: CsiClient, volume_id: str) -> None:
    """Have the driver delete a volume; missing is success. Raises CsiError."""
    request = csi_pb2.DeleteVolumeRequest(volume_id=volume_id)
    await answer(driver.controller.DeleteVolume(request, timeout=CALL_TIMEOUT_S))


def _is_bound(claim: Mapping[str, Any], volume: Mapping[str, Any]) -> bool:
    """Whether `volume`, whose claimRef names `claim`, is or will be the claim's."""
    uid = volume["spec"]["claimRef"].get("uid")
    if uid:
        return bool(uid == claim["metadata"]["uid"])
    return bool(claim["spec"].get("volumeName") == volume["metadata"]["name"])


def _terms(made: csi_pb2.Volume) -> list[Object]:
    """Return the node selector terms of a volume's accessible topology."""
    return [
        {
            "matchExpressions": [
                {"key": key, "operator": "In", "values": [value]}
                for key, value in sorted(topology.segments.items())
            ]
        }
        for topology in made.accessible_topology
    ]
