"""The provisioner role: claims get volumes, volumes go with their claims.

Owns: PersistentVolumeClaims of classes of our driver, and the PersistentVolumes made for them:
provisioning, binding, growth, release. Must never: reach the driver other than over its socket.
Plays external-provisioner, external-resizer and kube-controller-manager's volume binder on one
host; not used in a cluster.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from shorthorn.csi.proto import csi_pb2
from shorthorn.domain import errors
from shorthorn.standalone import claim_source, storage_class
from shorthorn.standalone.claim_source import NotYet, Refused
from shorthorn.standalone.csi_client import CALL_TIMEOUT_S, CsiClient, CsiError, answer
from shorthorn.standalone.events import EventRecorder
from shorthorn.standalone.objects import (
    Object,
    Objects,
    annotations_of,
    is_deleting,
    key_of,
    reference_to,
    with_finalizers,
    without_finalizers,
)
from shorthorn.standalone.quantity import format_quantity, parse_quantity

log = logging.getLogger(__name__)

SELECTED_NODE = "volume.kubernetes.io/selected-node"
"""Set by the first consumer of a WaitForFirstConsumer claim: here by `shorthorn mount` and `path`.
"""

PUBLISHED = "shorthorn.io/published"
"""Where a claim is mounted now, one path a line; its deletion waits for it to become empty."""

_CLAIM_PROTECTION = "kubernetes.io/pvc-protection"
_VOLUME_PROTECTION = "kubernetes.io/pv-protection"
_DATA_PROTECTION = "external-provisioner.volume.kubernetes.io/finalizer"
_PROVISIONED_BY = "pv.kubernetes.io/provisioned-by"
_BIND_COMPLETED = {
    "pv.kubernetes.io/bind-completed": "yes",
    "pv.kubernetes.io/bound-by-controller": "yes",
}
_CREATE_TIMEOUT_S = 10.0
"""A volume may wait for a long download. The next call joins that work; between two, the claim
tells its progress and may be deleted.
"""
_RETRY_S = 1.0
_RETRY_S_MAX = 30.0


class Provisioner:
    """Reconciles one claim or one volume at a time."""

    def __init__(
        self,
        claims: Objects,
        volumes: Objects,
        classes: Objects,
        lookups: claim_source.Lookups,
        driver: CsiClient,
        events: EventRecorder,
        *,
        driver_name: str,
    ) -> None:
        self._claims = claims
        self._volumes = volumes
        self._classes = classes
        self._lookups = lookups
        self._driver = driver
        self._events = events
        self._driver_name = driver_name
        self._failures: dict[str, int] = {}

    # claims

    async def reconcile_claim(self, key: str) -> float | None:
        claim = await self._claims.find(key)
        if claim is None:
            self._failures.pop(key, None)
            return None
        if is_deleting(claim):
            return await self._let_go(claim)
        if claim["spec"].get("volumeName"):
            return await self._reconcile_bound(claim)
        cls = await self._class_of(claim)
        if cls is None or cls["provisioner"] != self._driver_name:
            return None
        if with_finalizers(claim, _CLAIM_PROTECTION):
            claim = await self._claims.replace(claim)
        if claim["spec"].get("selector"):
            problem = "spec.selector is not supported for volumes that are made on demand"
            self._events.warning(claim, "ProvisioningFailed", problem)
            return None
        if not await self._is_wanted_now(claim, cls):
            return None
        return await self._provision(claim, cls)

    async def _class_of(self, claim: Object) -> Object | None:
        name = claim["spec"].get("storageClassName")
        if not name:
            self._events.normal(
                claim,
                "FailedBinding",
                "no StorageClass is set, so the claim waits for spec.volumeName to be set to a "
                "PersistentVolume that exists",
            )
            return None
        found = await self._classes.find(name)
        if found is None:
            self._events.warning(
                claim, "ProvisioningFailed", f'storageclass.storage.k8s.io "{name}" not found'
            )
        return found

    async def _is_wanted_now(self, claim: Object, cls: Object) -> bool:
        if cls.get("volumeBindingMode") != "WaitForFirstConsumer":
            return True
        if SELECTED_NODE in annotations_of(claim):
            return True
        self._events.normal(
            claim,
            "WaitForFirstConsumer",
            "waiting for first consumer: run `shorthorn mount` or `shorthorn path` on this claim",
        )
        return False

    async def _provision(self, claim: Object, cls: Object) -> float | None:
        key = key_of(claim)
        if key not in self._failures:
            self._events.normal(
                claim, "Provisioning", f"driver {self._driver_name} is making the volume"
            )
        try:
            source = await claim_source.content_source(claim, self._driver_name, self._lookups)
            request = self._create_request(claim, cls, source)
            created = await answer(
                self._driver.controller.CreateVolume(request, timeout=_CREATE_TIMEOUT_S)
            )
        except (NotYet, Refused, errors.InvalidArgument) as exc:
            self._events.warning(claim, "ProvisioningFailed", str(exc))
            return self._retry_s(key)
        except CsiError as exc:
            if not exc.is_final:
                self._events.normal(claim, "Provisioning", exc.message)
                return _RETRY_S
            self._events.warning(claim, "ProvisioningFailed", exc.message)
            return self._retry_s(key)
        self._failures.pop(key, None)
        await self._create_volume(claim, cls, created.volume)
        self._events.normal(
            claim, "ProvisioningSucceeded", f"volume {created.volume.volume_id} is provisioned"
        )
        return 0

    def _retry_s(self, key: str) -> float:
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        delay_s: float = min(_RETRY_S_MAX, _RETRY_S * 2 ** min(failures - 1, 8))
        return delay_s

    def _create_request(
        self, claim: Object, cls: Object, source: csi_pb2.VolumeContentSource | None
    ) -> csi_pb2.CreateVolumeRequest:
        spec = claim["spec"]
        parameters = cls.get("parameters") or {}
        return csi_pb2.CreateVolumeRequest(
            name=f"pvc-{claim['metadata']['uid']}",
            capacity_range=csi_pb2.CapacityRange(
                required_bytes=parse_quantity(spec["resources"]["requests"]["storage"]),
                limit_bytes=parse_quantity(spec["resources"].get("limits", {}).get("storage", "0")),
            ),
            volume_capabilities=storage_class.capabilities(
                spec["accessModes"],
                spec.get("volumeMode", "Filesystem"),
                storage_class.fs_type_of(parameters),
                cls.get("mountOptions") or [],
            ),
            parameters=storage_class.driver_parameters(parameters),
            volume_content_source=source,
        )

    async def _create_volume(self, claim: Object, cls: Object, made: csi_pb2.Volume) -> None:
        volume = self._volume_for(claim, cls, made)
        try:
            created = await self._volumes.create(volume)
        except errors.AlreadyExists:
            created = await self._volumes.find(volume["metadata"]["name"]) or volume
        await self._set_phase(self._volumes, dict(created), "Bound")
        current = await self._claims.find(key_of(claim))
        if current is None or current["metadata"]["uid"] != claim["metadata"]["uid"]:
            return  # gone by force: the volume is released and reclaimed
        claim = current
        claim["spec"]["volumeName"] = volume["metadata"]["name"]
        claim["metadata"].setdefault("annotations", {}).update(_BIND_COMPLETED)
        await self._claims.replace(claim)

    def _volume_for(self, claim: Object, cls: Object, made: csi_pb2.Volume) -> Object:
        parameters = cls.get("parameters") or {}
        spec: Object = {
            "capacity": {"storage": format_quantity(made.capacity_bytes)},
            "accessModes": claim["spec"]["accessModes"],
            "volumeMode": claim["spec"].get("volumeMode", "Filesystem"),
            "persistentVolumeReclaimPolicy": cls.get("reclaimPolicy", "Delete"),
            "storageClassName": cls["metadata"]["name"],
            "claimRef": reference_to(claim),
            "csi": {
                "driver": self._driver_name,
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
                "annotations": {_PROVISIONED_BY: self._driver_name},
                "finalizers": [_VOLUME_PROTECTION, _DATA_PROTECTION],
            },
            "spec": spec,
        }

    async def _reconcile_bound(self, claim: Object) -> float | None:
        volume = await self._volumes.find(claim["spec"]["volumeName"])
        if volume is None:
            was_bound = set(_BIND_COMPLETED) & set(annotations_of(claim))
            await self._set_phase(self._claims, claim, "Lost" if was_bound else "Pending")
            return None
        owner = volume["spec"].get("claimRef") or {}
        if owner.get("uid") not in (None, claim["metadata"]["uid"]):
            self._events.warning(
                claim,
                "FailedBinding",
                f'volume "{claim["spec"]["volumeName"]}" already bound to a different claim',
            )
            return None
        if not owner.get("uid"):
            volume["spec"]["claimRef"] = reference_to(claim)
            volume = await self._volumes.replace(volume)
        await self._set_phase(self._volumes, volume, "Bound")
        return await self._reconcile_size(claim, volume)

    async def _reconcile_size(self, claim: Object, volume: Object) -> float | None:
        capacity = volume["spec"]["capacity"]["storage"]
        try:
            wanted = parse_quantity(claim["spec"]["resources"]["requests"]["storage"])
        except errors.InvalidArgument as exc:
            self._events.warning(claim, "VolumeResizeFailed", str(exc))
            return None
        if wanted > parse_quantity(capacity) and volume["spec"].get("csi"):
            grown = await self._grow(claim, volume, wanted)
            if grown is None:
                return self._retry_s(key_of(claim))
            capacity = grown
        status = {
            "phase": "Bound",
            "accessModes": volume["spec"]["accessModes"],
            "capacity": {"storage": capacity},
        }
        if (claim.get("status") or {}) != status:
            await self._claims.replace_status({**claim, "status": status})
        return None

    async def _grow(self, claim: Object, volume: Object, wanted: int) -> str | None:
        """Grow the volume and, where it is mounted, its file system; None: not this time."""
        csi = volume["spec"]["csi"]
        size = csi_pb2.CapacityRange(required_bytes=wanted)
        ability = storage_class.capability(
            volume["spec"]["accessModes"][0],
            volume["spec"].get("volumeMode", "Filesystem"),
            csi.get("fsType", ""),
            volume["spec"].get("mountOptions") or [],
        )
        try:
            if not await self._may_grow(claim):
                return None
            grown = await answer(
                self._driver.controller.ControllerExpandVolume(
                    csi_pb2.ControllerExpandVolumeRequest(
                        volume_id=csi["volumeHandle"],
                        capacity_range=size,
                        volume_capability=ability,
                    ),
                    timeout=CALL_TIMEOUT_S,
                )
            )
            for path in published_paths(claim) if grown.node_expansion_required else ():
                await answer(
                    self._driver.node.NodeExpandVolume(
                        csi_pb2.NodeExpandVolumeRequest(
                            volume_id=csi["volumeHandle"],
                            volume_path=path,
                            capacity_range=size,
                            volume_capability=ability,
                        ),
                        timeout=CALL_TIMEOUT_S,
                    )
                )
        except CsiError as exc:
            self._events.warning(claim, "VolumeResizeFailed", exc.message)
            return None
        self._failures.pop(key_of(claim), None)
        capacity = format_quantity(grown.capacity_bytes)
        volume["spec"]["capacity"]["storage"] = capacity
        await self._volumes.replace(volume)
        self._events.normal(claim, "VolumeResizeSuccessful", f"the volume has {capacity} now")
        return capacity

    async def _may_grow(self, claim: Object) -> bool:
        cls = await self._classes.find(claim["spec"].get("storageClassName") or "-")
        if cls is not None and cls.get("allowVolumeExpansion"):
            return True
        self._events.warning(
            claim, "VolumeResizeFailed", "the StorageClass does not have allowVolumeExpansion: true"
        )
        return False

    async def _let_go(self, claim: Object) -> float | None:
        """Remove the claim's protection once nothing uses it and nothing half made is left."""
        if published_paths(claim):
            where = ", ".join(published_paths(claim))
            self._events.warning(
                claim, "InUse", f"deletion waits: mounted at {where}; run `shorthorn umount`"
            )
            return None
        if not without_finalizers(claim, _CLAIM_PROTECTION):
            return None
        if not claim["spec"].get("volumeName"):
            # Provisioning may have been begun; the id of a volume named pvc-<uid> is its name.
            try:
                await self._delete_data(f"pvc-{claim['metadata']['uid']}")
            except CsiError as exc:
                self._events.warning(claim, "VolumeFailedDelete", exc.message)
                return self._retry_s(key_of(claim))
        await self._claims.replace(claim)
        return None

    async def _delete_data(self, volume_id: str) -> None:
        request = csi_pb2.DeleteVolumeRequest(volume_id=volume_id)
        await answer(self._driver.controller.DeleteVolume(request, timeout=CALL_TIMEOUT_S))

    # volumes

    async def reconcile_volume(self, key: str) -> float | None:
        volume = await self._volumes.find(key)
        if volume is None or (volume["spec"].get("csi") or {}).get("driver") != self._driver_name:
            return None
        owner = volume["spec"].get("claimRef")
        claim = await self._claims.find(f"{owner['namespace']}/{owner['name']}") if owner else None
        if claim is not None and _is_bound(claim, volume):
            return None
        if owner and owner.get("uid"):
            await self._set_phase(self._volumes, volume, "Released")
            if volume["spec"].get("persistentVolumeReclaimPolicy") == "Delete":
                return await self._reclaim(volume)
        if is_deleting(volume) and without_finalizers(volume, _VOLUME_PROTECTION, _DATA_PROTECTION):
            await self._volumes.replace(volume)
        return None

    async def _reclaim(self, volume: Object) -> float | None:
        """Have the driver delete the data, then let the object go."""
        try:
            await self._delete_data(volume["spec"]["csi"]["volumeHandle"])
        except CsiError as exc:
            self._events.warning(volume, "VolumeFailedDelete", exc.message)
            return self._retry_s(key_of(volume))
        self._failures.pop(key_of(volume), None)
        await self._volumes.delete(key_of(volume))
        current = await self._volumes.find(key_of(volume))
        if current is not None and without_finalizers(
            current, _VOLUME_PROTECTION, _DATA_PROTECTION
        ):
            await self._volumes.replace(current)
        return None

    async def _set_phase(self, objects: Objects, obj: Object, phase: str) -> None:
        status = obj.get("status") or {}
        if status.get("phase") != phase:
            await objects.replace_status({**obj, "status": {**status, "phase": phase}})


def published_paths(claim: Mapping[str, Any]) -> list[str]:
    """Return where the claim is mounted now."""
    return annotations_of(claim).get(PUBLISHED, "").split("\n") if _is_published(claim) else []


def _is_bound(claim: Mapping[str, Any], volume: Mapping[str, Any]) -> bool:
    """Whether `volume`, whose claimRef names `claim`, is or will be the claim's."""
    uid = volume["spec"]["claimRef"].get("uid")
    if uid:
        return bool(uid == claim["metadata"]["uid"])
    return bool(claim["spec"].get("volumeName") == volume["metadata"]["name"])


def _is_published(claim: Mapping[str, Any]) -> bool:
    return bool(annotations_of(claim).get(PUBLISHED))


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
