"""Growing: a claim that asks for more than its volume has.

Owns: ControllerExpandVolume and NodeExpandVolume, and the capacity in the status of bound claims.
Must never: shrink, nor grow a claim whose class does not allow it. Plays external-resizer and the
kubelet's part of it on one host; called by `standalone.claims` for bound claims.
"""

from __future__ import annotations

from shorthorn.csi.proto import csi_pb2
from shorthorn.domain import errors
from shorthorn.standalone import storage_class
from shorthorn.standalone.back_off import BackOff
from shorthorn.standalone.consumers import published_paths
from shorthorn.standalone.csi_client import CALL_TIMEOUT_S, CsiError, answer
from shorthorn.standalone.objects import Object, key_of
from shorthorn.standalone.quantity import format_quantity, parse_quantity
from shorthorn.standalone.role_context import RoleContext


class Expansion:
    """Brings one bound claim and its volume to the size asked for."""

    def __init__(self, context: RoleContext, back_off: BackOff) -> None:
        """`back_off`: the claims' own, so that a claim's failures count together."""
        self._claims = context.claims
        self._volumes = context.volumes
        self._classes = context.classes
        self._driver = context.driver
        self._events = context.events
        self._back_off = back_off

    async def reconcile(self, claim: Object, volume: Object) -> float | None:
        capacity = volume["spec"]["capacity"]["storage"]
        try:
            wanted = parse_quantity(claim["spec"]["resources"]["requests"]["storage"])
        except errors.InvalidArgument as exc:
            self._events.warning(claim, "VolumeResizeFailed", str(exc))
            return None
        if wanted > parse_quantity(capacity) and volume["spec"].get("csi"):
            grown = await self._grow(claim, volume, wanted)
            if grown is None:
                return self._back_off.failed(key_of(claim))
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
        self._back_off.forget(key_of(claim))
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
