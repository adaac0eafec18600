"""The provisioner and snapshotter roles, running.

Owns: which changes wake which reconciler. Must never: decide anything about an object. Started by
`daemon`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from lightkube import AsyncClient

from shorthorn.controllers.controller import Controller
from shorthorn.standalone import objects
from shorthorn.standalone.claim_source import source_of
from shorthorn.standalone.claims import Claims
from shorthorn.standalone.csi_client import CsiClient
from shorthorn.standalone.events import EventRecorder
from shorthorn.standalone.objects import Object, Objects, key_of
from shorthorn.standalone.persistent_volumes import PersistentVolumes
from shorthorn.standalone.role_context import RoleContext
from shorthorn.standalone.snapshot_contents import SnapshotContents, owner_key
from shorthorn.standalone.volume_snapshots import VolumeSnapshots

log = logging.getLogger(__name__)

_CLAIMS_AT_ONCE = 100
"""external-provisioner's --worker-threads: a claim that waits for a download must not hold up
others.
"""

COMPONENT = "shorthorn"
"""The source of our events."""


class Roles:
    """Both roles over one API server and one driver. `run` until cancelled."""

    def __init__(self, client: AsyncClient, driver: CsiClient, *, driver_name: str) -> None:
        self._claims = Objects(client, objects.PVC, is_namespaced=True)
        self._volumes = Objects(client, objects.PV, is_namespaced=False)
        self._classes = Objects(client, objects.STORAGE_CLASS, is_namespaced=False)
        self._snapshots = Objects(client, objects.SNAPSHOT, is_namespaced=True)
        self._contents = Objects(client, objects.SNAPSHOT_CONTENT, is_namespaced=False)
        self._snapshot_classes = Objects(client, objects.SNAPSHOT_CLASS, is_namespaced=False)
        self._events = Objects(client, objects.EVENT, is_namespaced=True)
        self._recorder = EventRecorder(self._events, component=COMPONENT)
        context = RoleContext(
            claims=self._claims,
            volumes=self._volumes,
            classes=self._classes,
            snapshots=self._snapshots,
            contents=self._contents,
            snapshot_classes=self._snapshot_classes,
            events=self._recorder,
            driver=driver,
            driver_name=driver_name,
        )
        self._claim_controller = Controller(
            "claims", Claims(context).reconcile, workers=_CLAIMS_AT_ONCE
        )
        self._volume_controller = Controller("volumes", PersistentVolumes(context).reconcile)
        self._snapshot_controller = Controller("snapshots", VolumeSnapshots(context).reconcile)
        self._content_controller = Controller(
            "contents", SnapshotContents(context).reconcile, workers=_CLAIMS_AT_ONCE
        )

    async def run(self) -> None:
        """Run both roles until cancelled."""
        async with asyncio.TaskGroup() as group:
            for source in self._sources():
                group.create_task(source.informer.run())
            for source in self._sources():
                await source.informer.wait_synced()
            for controller in (
                self._claim_controller,
                self._volume_controller,
                self._snapshot_controller,
                self._content_controller,
            ):
                group.create_task(controller.run())
            group.create_task(self._recorder.run())
            group.create_task(self._follow(self._claims, self._claim_changed))
            group.create_task(self._follow(self._volumes, self._volume_changed))
            group.create_task(self._follow(self._classes, self._class_changed))
            group.create_task(self._follow(self._snapshots, self._snapshot_changed))
            group.create_task(self._follow(self._contents, self._content_changed))
            group.create_task(self._follow(self._snapshot_classes, self._class_changed))

    def _sources(self) -> tuple[Objects, ...]:
        return (
            self._claims,
            self._volumes,
            self._classes,
            self._snapshots,
            self._contents,
            self._snapshot_classes,
        )

    async def _follow(self, source: Objects, changed: Callable[[str, Object | None], None]) -> None:
        """Call `changed` with every key and its last known object, also after it has gone."""
        last: dict[str, Object] = {}
        async with source.informer.subscribe() as keys:
            async for key in keys:
                shown = source.informer.objects.get(key)
                obj = dict(shown) if shown is not None else last.pop(key, None)
                if shown is not None and obj is not None:
                    last[key] = obj
                try:
                    changed(key, obj)
                except Exception:  # one odd object must not end the service for all the others
                    log.exception("the change of %s is not followed up", key)

    def _claim_changed(self, key: str, claim: Object | None) -> None:
        self._claim_controller.enqueue(key)
        if claim is None:
            return
        # One that goes while its volume is made never heard of it; the volume has to go as well.
        made_for = f"pvc-{claim['metadata']['uid']}"
        self._volume_controller.enqueue(claim["spec"].get("volumeName") or made_for)
        source = source_of(claim)
        if source.get("kind") == "VolumeSnapshot":
            self._snapshot_controller.enqueue(f"{claim['metadata']['namespace']}/{source['name']}")
        self._wake_copies_of(claim)

    def _wake_copies_of(self, claim: Object) -> None:
        """A snapshot or clone may wait for its source claim to become bound."""
        mine = claim["metadata"]
        self._wake_claims_from("PersistentVolumeClaim", mine["namespace"], mine["name"])
        for snapshot in self._snapshots.informer.objects.values():
            source = snapshot["spec"]["source"].get("persistentVolumeClaimName")
            if (snapshot["metadata"]["namespace"], source) == (mine["namespace"], mine["name"]):
                self._snapshot_controller.enqueue(key_of(snapshot))

    def _volume_changed(self, key: str, volume: Object | None) -> None:
        self._volume_controller.enqueue(key)
        owner = (volume or {}).get("spec", {}).get("claimRef")
        if owner and owner.get("namespace") and owner.get("name"):  # the schema demands neither
            self._claim_controller.enqueue(f"{owner['namespace']}/{owner['name']}")

    def _class_changed(self, _key: str, _cls: Object | None) -> None:
        for claim in self._claims.informer.objects.values():
            if not claim["spec"].get("volumeName"):
                self._claim_controller.enqueue(key_of(claim))
        for snapshot in self._snapshots.informer.objects.values():
            if not (snapshot.get("status") or {}).get("readyToUse"):
                self._snapshot_controller.enqueue(key_of(snapshot))

    def _snapshot_changed(self, key: str, snapshot: Object | None) -> None:
        self._snapshot_controller.enqueue(key)
        namespace, _, name = key.partition("/")
        self._wake_claims_from("VolumeSnapshot", namespace, name)
        if snapshot is not None:
            bound = (snapshot.get("status") or {}).get("boundVolumeSnapshotContentName")
            if bound:
                self._content_controller.enqueue(bound)

    def _wake_claims_from(self, kind: str, namespace: str, name: str) -> None:
        """Look at the claims that wait to begin as this object."""
        for claim in self._claims.informer.objects.values():
            source = source_of(claim)
            if (
                not claim["spec"].get("volumeName")
                and claim["metadata"]["namespace"] == namespace
                and (source.get("kind"), source.get("name")) == (kind, name)
            ):
                self._claim_controller.enqueue(key_of(claim))

    def _content_changed(self, key: str, content: Object | None) -> None:
        self._content_controller.enqueue(key)
        if content is not None:
            self._snapshot_controller.enqueue(owner_key(content))
