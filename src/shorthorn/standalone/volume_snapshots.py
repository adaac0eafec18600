"""The snapshotter role's first half: VolumeSnapshots get contents.

Owns: VolumeSnapshots of our driver: choice of their class, making of their contents, binding to
those that users wrote, deletion policies, and what users read of all that. Must never: call the
driver; contents do. Plays snapshot-controller on one host, not used in a cluster; started by
`standalone.roles`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shorthorn.standalone.back_off import RETRY_S, BackOff
from shorthorn.standalone.claim_source import source_of
from shorthorn.standalone.objects import (
    Object,
    annotations_of,
    is_deleting,
    key_of,
    with_finalizers,
    without_finalizers,
)
from shorthorn.standalone.role_context import RoleContext
from shorthorn.standalone.snapshot_contents import BEING_DELETED, content_for
from shorthorn.standalone.snapshot_status import snapshot_status, status_with_error

DEFAULT_CLASS = "snapshot.storage.kubernetes.io/is-default-class"

_AS_SOURCE = "snapshot.storage.kubernetes.io/volumesnapshot-as-source-protection"
_BOUND = "snapshot.storage.kubernetes.io/volumesnapshot-bound-protection"


class VolumeSnapshots:
    """Reconciles one VolumeSnapshot at a time."""

    def __init__(self, context: RoleContext) -> None:
        self._snapshots = context.snapshots
        self._contents = context.contents
        self._classes = context.snapshot_classes
        self._claims = context.claims
        self._volumes = context.volumes
        self._events = context.events
        self._driver_name = context.driver_name
        self._back_off = BackOff()

    async def reconcile(self, key: str) -> float | None:
        snapshot = await self._snapshots.find(key)
        if snapshot is None:
            self._back_off.forget(key)
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
        content = await self._contents.create(
            content_for(snapshot, cls, volume, name, self._driver_name)
        )
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
            f"spec.volumeSnapshotClassName is not set, and {len(defaults)} classes are default;"
            f' set it, or annotate one class with {DEFAULT_CLASS}: "true"'
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

    async def _copy_status(self, snapshot: Object, content: Object) -> float | None:
        """Tell the user what is known of the content."""
        self._back_off.forget(key_of(snapshot))
        status = snapshot_status(content)
        before = snapshot.get("status") or {}
        if before != status:
            await self._snapshots.replace_status({**snapshot, "status": status})
        if status["readyToUse"] and not before.get("readyToUse"):
            self._events.normal(
                snapshot, "SnapshotReady", f"snapshot {key_of(snapshot)} is ready to use"
            )
        elif status.get("error") and status.get("error") != before.get("error"):
            message = status["error"].get("message", "")
            self._events.warning(snapshot, "SnapshotContentCheckandUpdateFailed", message)
        return None

    async def _refuse(self, snapshot: Object, reason: str, problem: str) -> float:
        """Say in status and events why nothing happens; it may be mended, so look again."""
        status = status_with_error(snapshot, problem)
        if status is not None:
            await self._snapshots.replace_status({**snapshot, "status": status})
            self._events.warning(snapshot, reason, problem)
        return self._back_off.failed(key_of(snapshot))

    async def _let_go(self, snapshot: Object) -> float | None:
        """Delete the content with its snapshot, or keep it: as the policy says."""
        claim = self._restored_by(snapshot)
        if claim is not None:
            self._events.warning(
                snapshot,
                "SnapshotDeletePending",
                f"deletion waits: claim {key_of(claim)} is being restored from it",
            )
            return self._back_off.failed(key_of(snapshot))
        content = await self._bound_content(snapshot)
        if content is not None and content["spec"]["deletionPolicy"] == "Delete":
            key = key_of(content)
            await self._contents.merge(key, {"metadata": {"annotations": {BEING_DELETED: "yes"}}})
            await self._contents.delete(key)
            if await self._contents.find(key) is not None:
                return RETRY_S
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
