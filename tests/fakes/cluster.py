"""Several nodes and one controller: the real services and controllers over memory registries.

Every node is a memory engine with its own pool and controllers; the network between them is
`MemoryPeers`. A node or the controller can be replaced by a new process at any moment, and time can
be moved on.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from tests.fakes.csi_calls import Caller
from tests.fakes.memory_engine import MemoryEngine
from tests.fakes.memory_node import MemoryNodeStorage
from tests.fakes.memory_peers import MemoryPeers
from tests.fakes.registries import MemoryRegistry
from tests.fakes.world import MemoryChecksummer, MemoryClaims, MemoryWeb

from shorthorn.controllers.backing_images import BackingImageReconciler
from shorthorn.controllers.clone_sources import CloneSourceReconciler
from shorthorn.controllers.contents import ContentFetcher
from shorthorn.controllers.controller import Controller
from shorthorn.controllers.image_copies import ImageCopyReconciler
from shorthorn.controllers.pools import PoolReporter
from shorthorn.controllers.volumes import SnapshotReconciler, VolumeReconciler
from shorthorn.domain.errors import Conflict
from shorthorn.domain.models import (
    BackingImage,
    BackingImageSpec,
    Condition,
    CopyState,
    ImageCopy,
    Meta,
    Pool,
    PoolSpec,
    Snapshot,
    Volume,
)
from shorthorn.domain.names import copy_name
from shorthorn.kit.keyed import KeyedLocks, KeyedOperations
from shorthorn.services.images import ImageService
from shorthorn.services.node import NodeService
from shorthorn.services.snapshots import SnapshotService
from shorthorn.services.volumes import VolumeService

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine

WEB = {"url": "http://images.test/disk.qcow2"}


class Process:
    """The tasks of one process, which end together."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []
        self._closing: list[Callable[[], Awaitable[None]]] = []

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.create_task(work))

    def at_end(self, close: Callable[[], Awaitable[None]]) -> None:
        self._closing.append(close)

    async def end(self) -> None:
        ended = [task for task in self._tasks if task.done()]
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for close in self._closing:
            await close()
        self._tasks, self._closing = [], []
        assert not ended, [task.exception() for task in ended]


class Node:
    """One node; `restart` puts a new process in the place of the old one."""

    def __init__(self, cluster: Cluster, name: str, **spec: Any) -> None:
        self.name = name
        self.uuid = f"{name}{name}{name}{name}0000-0000-4000-8000-000000000000"
        self.engine = MemoryEngine(self.uuid)
        self.process = Process()
        self._cluster = cluster
        self.spec = PoolSpec(
            f"node-{name}", self.uuid, "/pool", peer_address=f"node-{name}:9501", **spec
        )

    async def start(self) -> None:
        made, engine, locks = self._cluster, self.engine, KeyedLocks[str]()
        await PoolReporter(made.pools, made.volumes, engine, self.spec).report()
        queues: dict[str, Callable[[str], None]] = {}
        peers = made.network.at(engine)
        contents = ContentFetcher(
            engine,
            volumes=made.volumes,
            snapshots=made.snapshots,
            pools=made.pools,
            peers=peers,
            enqueue=lambda name: queues["volume"](name),
        )
        copies = ImageCopyReconciler(
            made.copies,
            engine,
            made.web,
            made.checksummer,
            locks,
            lambda name: queues["copy"](name),
            pools=made.pools,
            peers=peers,
        )
        volumes = VolumeReconciler(made.volumes, engine, locks, contents=contents)
        snapshots = SnapshotReconciler(made.snapshots, engine, locks)
        self.process.at_end(contents.close)
        self.process.at_end(copies.close)
        for kind, reconcile, registry in (
            ("volume", volumes.reconcile, made.volumes),
            ("snapshot", snapshots.reconcile, made.snapshots),
            ("copy", copies.reconcile, made.copies),
        ):
            controller = Controller(f"{self.name} {kind}", reconcile)
            queues[kind] = controller.enqueue
            self.process.spawn(controller.run())
            self.process.spawn(_follow(registry, controller.enqueue))

    async def restart(self) -> None:
        await self.process.end()
        await self.start()

    async def says(self, *, is_there: bool) -> None:
        """Have the pool say whether the node reports, as `controllers.lost_nodes` does."""
        pool = await self._cluster.pools.find(self.uuid)
        assert pool is not None
        said = Condition("Ready", is_there, "Open" if is_there else "Silent")
        status = dataclasses.replace(pool.status, conditions=(said,))
        await self._cluster.pools.update_status(dataclasses.replace(pool, status=status))

    def content_of(self, volume_id: str) -> str:
        return self.engine.contents.get(self.engine.volumes[volume_id].path, "")

    def write(self, volume_id: str, content: str) -> None:
        self.engine.contents[self.engine.volumes[volume_id].path] = content


class Cluster:
    """See the module."""

    def __init__(self) -> None:
        self.late = timedelta()
        self.images: MemoryRegistry[BackingImage] = MemoryRegistry(BackingImage, clock=self.now)
        self.copies: MemoryRegistry[ImageCopy] = MemoryRegistry(ImageCopy, clock=self.now)
        self.volumes: MemoryRegistry[Volume] = MemoryRegistry(Volume, clock=self.now)
        self.snapshots: MemoryRegistry[Snapshot] = MemoryRegistry(Snapshot, clock=self.now)
        self.pools: MemoryRegistry[Pool] = MemoryRegistry(Pool, clock=self.now)
        self.web, self.checksummer, self.network = MemoryWeb(), MemoryChecksummer(), MemoryPeers()
        self.nodes: dict[str, Node] = {}
        self.process = Process()
        self.call = Caller(self)

    def now(self) -> datetime:
        return datetime.now(UTC) + self.late

    async def add(self, name: str, **spec: Any) -> Node:
        node = self.nodes[name] = Node(self, name, **spec)
        self.network.engines[node.uuid] = node.engine
        await node.start()
        return node

    async def start_controller(self) -> None:
        operations = self.operations = KeyedOperations()
        self.process.at_end(self._drain)
        self.node: Any = NodeService(  # nothing is staged in these tests
            engine=(engine := MemoryEngine()),
            storage=MemoryNodeStorage(engine),
            operations=operations,
            locks=KeyedLocks(),
        )
        self.image_service = ImageService(
            images=self.images, volumes=self.volumes, claims=MemoryClaims(), operations=operations
        )
        self.snapshot_service = SnapshotService(
            snapshots=self.snapshots,
            volumes=self.volumes,
            images=self.image_service,
            operations=operations,
        )
        self.volume_service = VolumeService(
            volumes=self.volumes,
            pools=self.pools,
            images=self.image_service,
            snapshots=self.snapshot_service,
            operations=operations,
            use=self.node,
        )
        self._start_reconcilers()

    def _start_reconcilers(self) -> None:
        reconciler = BackingImageReconciler(
            self.images, self.copies, self.pools, self.volumes, clock=self.now
        )
        images = self._images = Controller("image", reconciler.reconcile)
        sources = CloneSourceReconciler(self.snapshots, self.volumes, clock=self.now)
        clones = self._clones = Controller("clone source", sources.reconcile)

        def follow(which: Callable[[str], str | None]) -> Callable[[str], None]:
            def changed(name: str) -> None:
                image = which(name)
                if image is not None:
                    images.enqueue(image)

            return changed

        def pool_changed(name: str) -> None:
            for image in reconciler.images_of_pool(name):
                images.enqueue(image)

        def image_changed(name: str) -> None:
            for image in (name, *reconciler.clones_of_image(name)):
                images.enqueue(image)

        for controller in (images, clones):
            self.process.spawn(controller.run())
        self.process.spawn(_follow(self.images, image_changed))
        self.process.spawn(_follow(self.copies, follow(reconciler.image_of_copy)))
        self.process.spawn(_follow(self.volumes, follow(reconciler.image_of_volume)))
        self.process.spawn(_follow(self.pools, pool_changed))
        self.process.spawn(_follow(self.snapshots, clones.enqueue))

    async def _drain(self) -> None:
        await self.operations.drain(timeout_s=0)

    async def restart_controller(self) -> None:
        await self.process.end()
        await self.start_controller()

    def advance(self, time: timedelta) -> None:
        """Move time on, and have everything looked at that waits for it."""
        self.late += time
        for image in self.images.cached():
            self._images.enqueue(image.meta.name)
        for snapshot in self.snapshots.cached():
            self._clones.enqueue(snapshot.meta.name)

    # --- images

    async def create_image(self, name: str = "golden", **spec: Any) -> None:
        await self.images.create(
            BackingImage(Meta(name), BackingImageSpec("download", WEB, **spec))
        )

    async def change_image(self, name: str = "golden", **spec: Any) -> None:
        while True:
            image = await self.images.find(name)
            assert image is not None
            changed = dataclasses.replace(image.spec, **spec)
            with contextlib.suppress(Conflict):
                await self.images.update(dataclasses.replace(image, spec=changed))
                return

    async def image_is(
        self, until: Callable[[BackingImage], bool], name: str = "golden"
    ) -> BackingImage:
        """Return the image as soon as that holds."""
        found = await self.images.wait(name, lambda i: i is not None and until(i), timeout_s=10)
        assert found is not None
        return found

    async def has_copies(self, *nodes: str, name: str = "golden") -> BackingImage:
        """Return the image when it has ready copies on exactly these nodes, and no others."""
        wanted = {self.nodes[node].uuid: CopyState.READY for node in nodes}

        def holds(image: BackingImage) -> bool:
            return {u: f.state for u, f in image.status.disk_file_status.items()} == wanted

        image = await self.image_is(holds, name)
        there = {uuid: self.network.engines[uuid].images for uuid in wanted}
        assert all(any(key.name == name for key in images) for images in there.values())
        return image

    async def copy_is(
        self, node: str, until: Callable[[ImageCopy | None], bool], name: str = "golden"
    ) -> ImageCopy | None:
        """Return the copy on a node as soon as that holds."""
        found = copy_name(name, self.nodes[node].uuid)
        return await self.copies.wait(found, until, timeout_s=10)

    # --- what must never be left

    def leftovers(self) -> list[str]:
        """Return what no volume, image or snapshot of a user accounts for."""
        left = [
            f"snapshot {s.meta.name}"
            for s in self.snapshots.cached()
            if s.meta.labels.get("shorthorn.io/clone")
        ]
        for node in self.nodes.values():
            left += [
                f"{key.name} on {node.name}"
                for key in (*node.engine.images, *node.engine.staged)
                if key.name.startswith("content-")
            ]
            left += [
                f"snapshot {name} on {node.name}"
                for name in node.engine.snapshots
                if name.startswith("clone-")
            ]
            owned = {v.meta.name for v in self.volumes.cached() if v.spec.pool_uuid == node.uuid}
            left += [f"volume {v} on {node.name}" for v in node.engine.volumes if v not in owned]
        return left

    async def is_clean(self) -> None:
        """Return when nothing is left of what was needed for a while only."""
        async with asyncio.timeout(60):
            while True:
                if not self.leftovers():
                    return
                await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def cluster(*nodes: str) -> AsyncIterator[Cluster]:
    """Run a cluster with nodes of these one-letter names."""
    made = Cluster()
    try:
        for name in nodes:
            await made.add(name)
        await made.start_controller()
        yield made
    finally:
        await made.process.end()
        for node in made.nodes.values():
            await node.process.end()


async def _follow(registry: MemoryRegistry[Any], changed: Callable[[str], None]) -> None:
    async with registry.subscribe() as names:
        async for name in names:
            changed(name)
