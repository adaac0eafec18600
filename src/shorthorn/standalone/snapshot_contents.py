"""The snapshotter role's second half: contents get handles.

Owns: VolumeSnapshotContents of our driver: what one that we make says, creation of its snapshot,
checking of handles that users wrote, deletion of data. Must never: reach the driver other than over
its socket. Plays csi-snapshotter on one host, not used in a cluster; started by `standalone.roles`,
`standalone.volume_snapshots` has contents described here.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from shorthorn.csi.proto import csi_pb2
from shorthorn.standalone.back_off import RETRY_S, BackOff
from shorthorn.standalone.csi_client import CALL_TIMEOUT_S, CsiError, answer
from shorthorn.standalone.objects import (
    Object,
    annotations_of,
    is_deleting,
    key_of,
    reference_to,
    with_finalizers,
    without_finalizers,
)
from shorthorn.standalone.role_context import RoleContext
from shorthorn.standalone.snapshot_status import content_status, status_with_error

BEING_DELETED = "snapshot.storage.kubernetes.io/volumesnapshot-being-deleted"

PARAMETERS = "shorthorn.io/snapshot-parameters"
"""What the class said when the content was made, as JSON: every later call says the same, whatever
becomes of the class, and so the same snapshot is met.
"""

_CONTENT_BOUND = "snapshot.storage.kubernetes.io/volumesnapshotcontent-bound-protection"
_RESERVED_PREFIX = "csi.storage.k8s.io/"


class SnapshotContents:
    """Reconciles one VolumeSnapshotContent at a time."""

    def __init__(self, context: RoleContext) -> None:
        self._snapshots = context.snapshots
        self._contents = context.contents
        self._classes = context.snapshot_classes
        self._driver = context.driver
        self._events = context.events
        self._driver_name = context.driver_name
        self._back_off = BackOff()
        #: When the driver may be asked again about a content, in the loop's time: each failure is
        #: written down, and that change wakes us at once.
        self._ask_at: dict[str, float] = {}

    async def reconcile(self, key: str) -> float | None:
        content = await self._contents.find(key)
        if content is None or content["spec"]["driver"] != self._driver_name:
            self._forget(key)
            return None
        if is_deleting(content):
            return await self._delete(content)
        if with_finalizers(content, _CONTENT_BOUND):
            content = await self._contents.replace(content)
        if (content.get("status") or {}).get("readyToUse"):
            return None
        wait_s = self._ask_at.get(key, 0) - asyncio.get_running_loop().time()
        if wait_s > 0:
            return wait_s
        try:
            snapshot = await self._ask(content)
        except _ParametersUnknown as exc:
            return await self._report_error(content, str(exc), is_final=True)
        except CsiError as exc:
            return await self._report_error(content, exc.message, is_final=exc.is_final)
        self._forget(key)
        await self._report(content, snapshot)
        return None if snapshot.ready_to_use else self._ask_in(key, RETRY_S)

    def _ask_in(self, key: str, delay_s: float) -> float:
        self._ask_at[key] = asyncio.get_running_loop().time() + delay_s
        return delay_s

    def _forget(self, key: str) -> None:
        self._back_off.forget(key)
        self._ask_at.pop(key, None)

    async def _ask(self, content: Object) -> csi_pb2.Snapshot:
        """Create the snapshot, or have the driver check the handle that a user wrote."""
        source = content["spec"]["source"]
        if source.get("snapshotHandle"):
            return await self._get(source["snapshotHandle"])
        request = csi_pb2.CreateSnapshotRequest(
            source_volume_id=source["volumeHandle"],
            name=f"snapshot-{content['spec']['volumeSnapshotRef']['uid']}",
            parameters=await self._parameters(content),
        )
        created = await answer(
            self._driver.controller.CreateSnapshot(request, timeout=CALL_TIMEOUT_S)
        )
        snapshot: csi_pb2.Snapshot = created.snapshot
        return snapshot

    async def _get(self, handle: str) -> csi_pb2.Snapshot:
        request = csi_pb2.GetSnapshotRequest(snapshot_id=handle)
        found = await answer(self._driver.controller.GetSnapshot(request, timeout=CALL_TIMEOUT_S))
        snapshot: csi_pb2.Snapshot = found.snapshot
        return snapshot

    async def _parameters(self, content: Object) -> dict[str, str]:
        """Return what was noted when the content was made, of a user's own what its class says."""
        noted = annotations_of(content).get(PARAMETERS)
        if noted is not None:
            return _read_noted(noted)
        name = content["spec"].get("volumeSnapshotClassName")
        if not name:
            return {}
        cls = await self._classes.find(name)
        if cls is None:
            raise _ParametersUnknown(f"VolumeSnapshotClass {name} does not exist")
        return _driver_parameters(cls)

    async def _report(self, content: Object, snapshot: csi_pb2.Snapshot) -> None:
        status = content_status(snapshot)
        if status != content.get("status"):
            await self._contents.replace_status({**content, "status": status})

    async def _report_error(self, content: Object, message: str, *, is_final: bool) -> float:
        status = status_with_error(content, message)
        if status is not None:
            await self._contents.replace_status({**content, "status": status})
        key = key_of(content)
        if not is_final:
            return self._ask_in(key, RETRY_S)
        self._events.warning(content, "SnapshotCreationFailed", message)
        return self._ask_in(key, self._back_off.failed(key))

    async def _delete(self, content: Object) -> float | None:
        """Have the driver delete the snapshot where the policy says so, then let the object go."""
        key = key_of(content)
        if await self._is_bound(content):
            self._events.warning(
                content, "InUse", f"deletion waits for that of VolumeSnapshot {owner_key(content)}"
            )
            return None
        if content["spec"]["deletionPolicy"] == "Delete":
            try:
                await self._delete_data(content)
            except CsiError as exc:
                self._events.warning(content, "SnapshotDeleteError", exc.message)
                return self._back_off.failed(key)
        if without_finalizers(content, _CONTENT_BOUND):
            await self._contents.replace(content)
        return None

    async def _is_bound(self, content: Object) -> bool:
        """Whether a VolumeSnapshot that nobody deletes still shows this content to its user."""
        uid = content["spec"]["volumeSnapshotRef"].get("uid")
        if not uid or BEING_DELETED in annotations_of(content):
            return False
        snapshot = await self._snapshots.find(owner_key(content))
        if snapshot is None or snapshot["metadata"]["uid"] != uid:
            return False
        return not is_deleting(snapshot)

    async def _delete_data(self, content: Object) -> None:
        status = content.get("status") or {}
        handle = status.get("snapshotHandle") or content["spec"]["source"].get("snapshotHandle")
        if not handle:
            handle = await self._handle_of_unfinished(content)
        if not handle:
            return
        request = csi_pb2.DeleteSnapshotRequest(snapshot_id=handle)
        await answer(self._driver.controller.DeleteSnapshot(request, timeout=CALL_TIMEOUT_S))

    async def _handle_of_unfinished(self, content: Object) -> str:
        """Return what a creation that may be under way made; empty: nothing, and nothing is left.

        Creating is idempotent, so asking again names the snapshot; a final refusal leaves none.
        """
        try:
            return str((await self._ask(content)).snapshot_id)
        except _ParametersUnknown:
            return ""  # then the driver was never asked
        except CsiError as exc:
            if exc.is_final:
                return ""
            raise


class _ParametersUnknown(Exception):
    """Nobody says what to make; without that the wrong thing would be made."""


def content_for(
    snapshot: Object, cls: Object, volume: Object, name: str, driver_name: str
) -> Object:
    """Return the content `name` for a snapshot that is to be taken of `volume`."""
    return {
        "apiVersion": "snapshot.storage.k8s.io/v1",
        "kind": "VolumeSnapshotContent",
        "metadata": {
            "name": name,
            "finalizers": [_CONTENT_BOUND],
            "annotations": {PARAMETERS: json.dumps(_driver_parameters(cls))},
        },
        "spec": {
            "deletionPolicy": cls["deletionPolicy"],
            "driver": driver_name,
            "source": {"volumeHandle": volume["spec"]["csi"]["volumeHandle"]},
            "sourceVolumeMode": volume["spec"].get("volumeMode", "Filesystem"),
            "volumeSnapshotClassName": cls["metadata"]["name"],
            "volumeSnapshotRef": reference_to(snapshot),
        },
    }


def owner_key(content: Mapping[str, Any]) -> str:
    """Return the key of the VolumeSnapshot that a content belongs to."""
    reference = content["spec"]["volumeSnapshotRef"]
    return f"{reference.get('namespace', 'default')}/{reference['name']}"


def _read_noted(text: str) -> dict[str, str]:
    try:
        return {str(key): str(value) for key, value in json.loads(text).items()}
    except (ValueError, AttributeError):
        raise _ParametersUnknown(f"annotation {PARAMETERS} is no JSON object: {text!r}") from None


def _driver_parameters(cls: Mapping[str, Any]) -> dict[str, str]:
    parameters = cls.get("parameters") or {}
    return {k: v for k, v in parameters.items() if not k.startswith(_RESERVED_PREFIX)}
