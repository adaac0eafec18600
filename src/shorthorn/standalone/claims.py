"""The provisioner role's first half: claims get volumes.

Owns: PersistentVolumeClaims of classes of our driver: provisioning, binding, and their protection
while something uses them. Must never: reach the driver other than over its socket. Plays
external-provisioner and kube-controller-manager's volume binder on one host, not used in a cluster;
started by `standalone.roles`.
"""

from __future__ import annotations

from shorthorn.csi.proto import csi_pb2
from shorthorn.domain import errors
from shorthorn.standalone import claim_source, storage_class
from shorthorn.standalone.back_off import RETRY_S, BackOff
from shorthorn.standalone.claim_source import Lookups, NotYet, Refused
from shorthorn.standalone.consumers import SELECTED_NODE, published_paths
from shorthorn.standalone.csi_client import CsiError, answer
from shorthorn.standalone.expansion import Expansion
from shorthorn.standalone.objects import (
    Object,
    annotations_of,
    is_deleting,
    key_of,
    reference_to,
    with_finalizers,
    without_finalizers,
)
from shorthorn.standalone.persistent_volumes import delete_data, volume_for
from shorthorn.standalone.quantity import parse_quantity
from shorthorn.standalone.role_context import RoleContext

_CLAIM_PROTECTION = "kubernetes.io/pvc-protection"
_BIND_COMPLETED = {
    "pv.kubernetes.io/bind-completed": "yes",
    "pv.kubernetes.io/bound-by-controller": "yes",
}
_CREATE_TIMEOUT_S = 10.0
"""A volume may wait for a long download. The next call joins that work; between two, the claim
tells its progress and may be deleted.
"""


class Claims:
    """Reconciles one claim at a time."""

    def __init__(self, context: RoleContext) -> None:
        self._claims = context.claims
        self._volumes = context.volumes
        self._classes = context.classes
        self._lookups = Lookups(
            context.claims, context.volumes, context.snapshots, context.contents
        )
        self._driver = context.driver
        self._events = context.events
        self._driver_name = context.driver_name
        self._back_off = BackOff()
        self._expansion = Expansion(context, self._back_off)

    async def reconcile(self, key: str) -> float | None:
        claim = await self._claims.find(key)
        if claim is None:
            self._back_off.forget(key)
            return None
        if is_deleting(claim):
            return await self._let_go(claim)
        if claim["spec"].get("volumeName"):
            return await self._reconcile_bound(claim)
        cls = await self._class_of(claim)
        if cls is None:
            return None
        if cls["provisioner"] != self._driver_name:
            self._events.normal(
                claim,
                "ExternalProvisioning",
                f"StorageClass {cls['metadata']['name']} is of provisioner {cls['provisioner']}, "
                f"which does not run here; {self._driver_name} makes volumes on this host",
            )
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
        if not self._back_off.is_failing(key):
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
            return self._back_off.failed(key)
        except CsiError as exc:
            if not exc.is_final:
                self._events.normal(claim, "Provisioning", exc.message)
                return RETRY_S
            self._events.warning(claim, "ProvisioningFailed", exc.message)
            return self._back_off.failed(key)
        self._back_off.forget(key)
        await self._create_volume(claim, cls, created.volume)
        self._events.normal(
            claim, "ProvisioningSucceeded", f"volume {created.volume.volume_id} is provisioned"
        )
        return 0

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
        volume = volume_for(claim, cls, made, self._driver_name)
        try:
            created = await self._volumes.create(volume)
        except errors.AlreadyExists:
            created = await self._volumes.find(volume["metadata"]["name"]) or volume
        await self._volumes.ensure_phase(dict(created), "Bound")
        current = await self._claims.find(key_of(claim))
        if current is None or current["metadata"]["uid"] != claim["metadata"]["uid"]:
            return  # gone by force: the volume is released and reclaimed
        claim = current
        claim["spec"]["volumeName"] = volume["metadata"]["name"]
        claim["metadata"].setdefault("annotations", {}).update(_BIND_COMPLETED)
        await self._claims.replace(claim)

    async def _reconcile_bound(self, claim: Object) -> float | None:
        volume = await self._volumes.find(claim["spec"]["volumeName"])
        if volume is None:
            was_bound = set(_BIND_COMPLETED) & set(annotations_of(claim))
            await self._claims.ensure_phase(claim, "Lost" if was_bound else "Pending")
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
        await self._volumes.ensure_phase(volume, "Bound")
        return await self._expansion.reconcile(claim, volume)

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
                await delete_data(self._driver, f"pvc-{claim['metadata']['uid']}")
            except CsiError as exc:
                self._events.warning(claim, "VolumeFailedDelete", exc.message)
                return self._back_off.failed(key_of(claim))
        await self._claims.replace(claim)
        return None
