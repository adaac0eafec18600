"""The snapshotter role: VolumeSnapshots get contents, contents get handles.

Owns: VolumeSnapshots and VolumeSnapshotContents of our driver: binding, creation, checking of
handles that users wrote, deletion policies. Must never: reach the driver other than over its
socket. Plays snapshot-controller and csi-snapshotter on one host; not used in a cluster.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from shorthorn.csi.proto import csi_pb2
from shorthorn.standalone.claim_source import source_of
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
from shorthorn.standalone.quantity import format_quantity

DEFAULT_CLASS = "snapshot.storage.kubernetes.io/is-default-class"
BEING_DELETED = "snapshot.storage.kubernetes.io/volumesnapshot-being-deleted"

PARAMETERS = "shorthorn.io/snapshot-parameters"
"""What the class said when the content was made, as JSON: every later call says the same, whatever
becomes of the class, and so the same snapshot is met.
"""

_AS_SOURCE = "snapshot.storage.kubernetes.io/volumesnapshot-as-source-protection"
_BOUND = "snapshot.storage.kubernetes.io/volumesnapshot-bound-protection"
_CONTENT_BOUND = "snapshot.storage.kubernetes.io/volumesnapshotcontent-bound-protection"
_RESERVED_PREFIX = "csi.storage.k8s.io/"
_NS_PER_S = 1_000_000_000
_RETRY_S = 1.0
_RETRY_S_MAX = 30.0


class Snapshotter:
    """Reconciles one VolumeSnapshot or one VolumeSnapshotContent at a time."""

    def __init__(
        self,
        snapshots: Objects,
        contents: Objects,
        classes: Objects,
        claims: Objects,
        volumes: Objects,
        driver: CsiClient,
        events: EventRecorder,
        *,
        driver_name: str,
    ) -> None:
        self._snapshots = snapshots
        self._contents = contents
        self._classes = classes
        self._claims = claims
        self._volumes = volumes
        self._driver = driver
        self._events = events
        self._driver_name = driver_name
        self._failures: dict[str, int] = {}
        #: When the driver may be asked again about a content, in the loop's time: each failure is
        #: written down, and that change wakes us at once.
        self._ask_at: dict[str, float] = {}

    # VolumeSnapshots

    async def reconcile_snapshot(self, key: str) -> float | None:
        snapshot = await self._snapshots.find(key)
        if snapshot is None:
            self._failures.pop(key, None)
            return None
        if is_deleting(snapshot):
            return await self._let_go(snapshot)
        if with_finalizers(snapshot, _AS_SOURCE, _BOUND):
            snapshot = await self._snapshots.replace(snapshot)
        content_name = snapshot["spec"]["source"].get("volumeSnapshotContentName")
        if content_name:
            return await self._bind(snapshot, content_name)
        return await self._create(snapshot)

    async def _bind(self, snapshot: Object, content_name: str) -> float | None:
        """Bind a snapshot to the content that its user named, which must name it in turn."""
        content = await self._contents.find(content_name)
        if content is None:
            problem = f"VolumeSnapshotContent {content_name} does not exist"
            return await self._refuse(snapshot, "SnapshotContentMissing", problem)
        reference = content["spec"]["volumeSnapshotRef"]
        mine = snapshot["metadata"]
        named = (reference.get("namespace"), reference.get("name"))
        if named != (mine["namespace"], mine["name"]):
            problem = (
                f"VolumeSnapshotContent {content_name} belongs to VolumeSnapshot "
                f"{named[0]}/{named[1]} (spec.volumeSnapshotRef)"
            )
            return await self._refuse(snapshot, "SnapshotContentMisbound", problem)
        if reference.get("uid") not in (None, "", mine["uid"]):
            problem = f"VolumeSnapshotContent {content_name} is bound to another VolumeSnapshot"
            return await self._refuse(snapshot, "SnapshotContentMisbound", problem)
        if not reference.get("uid"):
            content["spec"]["volumeSnapshotRef"] = {**reference, "uid": mine["uid"]}
            content = await self._contents.replace(content)
        return await self._copy_status(snapshot, content)

    async def _create(self, snapshot: Object) -> float | None:
        """See to the content of a snapshot that is taken of a claim."""
        name = f"snapcontent-{snapshot['metadata']['uid']}"
        content = await self._contents.find(name)
        if content is not None:
            return await self._copy_status(snapshot, content)
        if (snapshot.get("status") or {}).get("boundVolumeSnapshotContentName"):
            problem = f"VolumeSnapshotContent {name} is missing"
            return await self._refuse(snapshot, "SnapshotContentMissing", problem)
        cls = await self._class_of(snapshot)
        if cls is None or cls["driver"] != self._driver_name:
            return None
        volume, problem = await self._source_volume(snapshot)
        if volume is None:
            return await self._refuse(snapshot, "SnapshotPending", problem)
        content = await self._contents.create(self._content_for(snapshot, cls, volume, name))
        self._events.normal(
            snapshot,
            "CreatingSnapshot",
            f"waiting for the driver to create snapshot {key_of(snapshot)}",
        )
        return await self._copy_status(snapshot, content)

    async def _class_of(self, snapshot: Object) -> Object | None:
        name = snapshot["spec"].get("volumeSnapshotClassName")
        if name:
            cls = await self._classes.find(name)
            if cls is None:
                problem = f"VolumeSnapshotClass {name} does not exist"
                await self._refuse(snapshot, "GetSnapshotClassFailed", problem)
            return cls
        defaults = [
            c for c in self._classes.cached() if annotations_of(c).get(DEFAULT_CLASS) == "true"
        ]
        if len(defaults) == 1:
            return defaults[0]
        problem = (
            f"spec.volumeSnapshotClassName is not set, and {len(defaults)} classes are default"
        )
        await self._refuse(snapshot, "SetDefaultSnapshotClassFailed", problem)
        return None

    async def _source_volume(self, snapshot: Object) -> tuple[Object | None, str]:
        """Return the PersistentVolume of the source claim, or why there is none."""
        name = snapshot["spec"]["source"]["persistentVolumeClaimName"]
        claim = await self._claims.find(f"{snapshot['metadata']['namespace']}/{name}")
        if claim is None:
            return None, f"PersistentVolumeClaim {name} does not exist"
        if (claim.get("status") or {}).get("phase") != "Bound":
            return None, f"PersistentVolumeClaim {name} is not bound yet"
        volume = await self._volumes.find(claim["spec"]["volumeName"])
        if (volume or {}).get("spec", {}).get("csi", {}).get("driver") != self._driver_name:
            return (
                None,
                f"PersistentVolumeClaim {name} is not a volume of driver {self._driver_name}",
            )
        return volume, ""

    def _content_for(self, snapshot: Object, cls: Object, volume: Object, name: str) -> Object:
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
                "driver": self._driver_name,
                "source": {"volumeHandle": volume["spec"]["csi"]["volumeHandle"]},
                "sourceVolumeMode": volume["spec"].get("volumeMode", "Filesystem"),
                "volumeSnapshotClassName": cls["metadata"]["name"],
                "volumeSnapshotRef": reference_to(snapshot),
            },
        }

    async def _copy_status(self, snapshot: Object, content: Object) -> float | None:
        """Tell the user what is known of the content."""
        self._failures.pop(key_of(snapshot), None)
        known = content.get("status") or {}
        status: Object = {
            "boundVolumeSnapshotContentName": content["metadata"]["name"],
            "readyToUse": bool(known.get("readyToUse")),
        }
        if known.get("creationTime"):
            status["creationTime"] = _rfc3339(known["creationTime"])
        if known.get("restoreSize"):
            status["restoreSize"] = format_quantity(known["restoreSize"])
        if known.get("error"):
            status["error"] = known["error"]
        before = snapshot.get("status") or {}
        if before != status:
            await self._snapshots.replace_status({**snapshot, "status": status})
        if status["readyToUse"] and not before.get("readyToUse"):
            self._events.normal(
                snapshot, "SnapshotReady", f"snapshot {key_of(snapshot)} is ready to use"
            )
        elif status.get("error") and status.get("error") != before.get("error"):
            message = known["error"].get("message", "")
            self._events.warning(snapshot, "SnapshotContentCheckandUpdateFailed", message)
        return None

    async def _refuse(self, snapshot: Object, reason: str, problem: str) -> float:
        """Say in status and events why nothing happens; it may be mended, so look again."""
        key = key_of(snapshot)
        before = snapshot.get("status") or {}
        if (before.get("error") or {}).get("message") != problem:
            error = {"message": problem, "time": _now()}
            status = {**before, "readyToUse": False, "error": error}
            await self._snapshots.replace_status({**snapshot, "status": status})
            self._events.warning(snapshot, reason, problem)
        return self._retry_s(key)

    def _retry_s(self, key: str) -> float:
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        delay_s: float = min(_RETRY_S_MAX, _RETRY_S * 2 ** min(failures - 1, 8))
        return delay_s

    async def _let_go(self, snapshot: Object) -> float | None:
        """Delete the content with its snapshot, or keep it: as the policy says."""
        claim = self._restored_by(snapshot)
        if claim is not None:
            self._events.warning(
                snapshot,
                "SnapshotDeletePending",
                f"deletion waits: claim {key_of(claim)} is being restored from it",
            )
            return _RETRY_S
        content = await self._bound_content(snapshot)
        if content is not None and content["spec"]["deletionPolicy"] == "Delete":
            key = key_of(content)
            await self._contents.merge(key, {"metadata": {"annotations": {BEING_DELETED: "yes"}}})
            await self._contents.delete(key)
            if await self._contents.find(key) is not None:
                return _RETRY_S
        if without_finalizers(snapshot, _AS_SOURCE, _BOUND):
            await self._snapshots.replace(snapshot)
        return None

    def _restored_by(self, snapshot: Object) -> Mapping[str, Any] | None:
        """Return a claim that is not bound yet and begins as this snapshot."""
        mine = snapshot["metadata"]
        for claim in self._claims.cached():
            source = source_of(claim)
            if (
                claim["metadata"]["namespace"] == mine["namespace"]
                and (source.get("kind"), source.get("name")) == ("VolumeSnapshot", mine["name"])
                and not claim["spec"].get("volumeName")
                and not is_deleting(claim)
                and (snapshot.get("status") or {}).get("readyToUse")
            ):
                return claim
        return None

    async def _bound_content(self, snapshot: Object) -> Object | None:
        source = snapshot["spec"]["source"]
        name = source.get("volumeSnapshotContentName")
        content = await self._contents.find(name or f"snapcontent-{snapshot['metadata']['uid']}")
        if content is None:
            return None
        bound_to = content["spec"]["volumeSnapshotRef"].get("uid")
        return content if bound_to == snapshot["metadata"]["uid"] else None

    # VolumeSnapshotContents

    async def reconcile_content(self, key: str) -> float | None:
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
        return None if snapshot.ready_to_use else self._ask_in(key, _RETRY_S)

    def _ask_in(self, key: str, delay_s: float) -> float:
        self._ask_at[key] = asyncio.get_running_loop().time() + delay_s
        return delay_s

    def _forget(self, key: str) -> None:
        self._failures.pop(key, None)
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
        created = snapshot.creation_time
        status: Object = {
            "snapshotHandle": snapshot.snapshot_id,
            "creationTime": created.seconds * _NS_PER_S + created.nanos,
            "readyToUse": snapshot.ready_to_use,
        }
        if snapshot.size_bytes:
            status["restoreSize"] = snapshot.size_bytes
        if status != content.get("status"):
            await self._contents.replace_status({**content, "status": status})

    async def _report_error(self, content: Object, message: str, *, is_final: bool) -> float:
        before = content.get("status") or {}
        if (before.get("error") or {}).get("message") != message:
            error = {"message": message, "time": _now()}
            status = {**before, "readyToUse": False, "error": error}
            await self._contents.replace_status({**content, "status": status})
        key = key_of(content)
        if not is_final:
            return self._ask_in(key, _RETRY_S)
        self._events.warning(content, "SnapshotCreationFailed", message)
        return self._ask_in(key, self._retry_s(key))

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
                return self._retry_s(key)
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


def _read_noted(text: str) -> dict[str, str]:
    try:
        return {str(key): str(value) for key, value in json.loads(text).items()}
    except (ValueError, AttributeError):
        raise _ParametersUnknown(f"annotation {PARAMETERS} is no JSON object: {text!r}") from None


def _driver_parameters(cls: Mapping[str, Any]) -> dict[str, str]:
    parameters = cls.get("parameters") or {}
    return {k: v for k, v in parameters.items() if not k.startswith(_RESERVED_PREFIX)}


def owner_key(content: Mapping[str, Any]) -> str:
    """Return the key of the VolumeSnapshot that a content belongs to."""
    reference = content["spec"]["volumeSnapshotRef"]
    return f"{reference.get('namespace', 'default')}/{reference['name']}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _rfc3339(nanoseconds: int) -> str:
    seconds = nanoseconds // _NS_PER_S
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
