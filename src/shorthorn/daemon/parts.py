"""What the programs have in common: registries, the pool, its reconcilers, those of images.

Owns: how these parts are made of concrete classes, once for all programs. Must never: start
anything by itself, but the engine. Called by the programs in this package.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from lightkube import AsyncClient

from shorthorn.controllers.backing_images import BackingImageReconciler
from shorthorn.controllers.clone_sources import CloneSourceReconciler
from shorthorn.controllers.contents import ContentFetcher
from shorthorn.controllers.controller import Controller, Observe
from shorthorn.controllers.image_copies import ImageCopyReconciler
from shorthorn.controllers.ownerless import find_ownerless
from shorthorn.controllers.pools import PoolReporter
from shorthorn.controllers.volumes import SnapshotReconciler, VolumeReconciler
from shorthorn.csi.controller import Controller as CsiController
from shorthorn.daemon.program import StartFailed
from shorthorn.domain.errors import InvalidArgument
from shorthorn.domain.models import (
    BackingImage,
    ImageCopy,
    ImageKey,
    ImageRecord,
    Pool,
    Snapshot,
    Volume,
)
from shorthorn.domain.node_ports import VolumeUse
from shorthorn.domain.ports import Engine, PeerSource, Registry, ReportProgress
from shorthorn.engines.local import LocalEngine
from shorthorn.host import sandbox
from shorthorn.host.pool_file import ensure_pool
from shorthorn.images.checksum import Sha512Checksummer
from shorthorn.images.clones import PoolCloner
from shorthorn.images.local_bytes import PoolBytes
from shorthorn.images.uploads import Uploads
from shorthorn.kit.keyed import KeyedLocks, KeyedOperations
from shorthorn.kube import resources
from shorthorn.kube.claims import KubeClaimDirectory
from shorthorn.kube.client import connect
from shorthorn.kube.registry import KubeRegistry
from shorthorn.services.images import ImageService
from shorthorn.services.snapshots import SnapshotService
from shorthorn.services.volumes import VolumeService
from shorthorn.settings import ClusterSettings

log = logging.getLogger(__name__)

DRAIN_S = 10.0
"""How long running operations may go on at stop; what is cut off is resumed at the next start."""


def unobserved(name: str, seconds: float, outcome: str) -> None:
    """Observe nothing."""


class Registries:
    """The five kinds. `watched`: labels of those that are watched; None: all are."""

    def __init__(
        self, client: AsyncClient, namespace: str, *, watched: Mapping[str, str] | None = None
    ) -> None:
        def registry(kind: resources.Kind[Any]) -> KubeRegistry[Any]:
            return KubeRegistry(client, kind, namespace=namespace, watched=watched)

        self.images: KubeRegistry[BackingImage] = registry(resources.BACKING_IMAGE)
        self.copies: KubeRegistry[ImageCopy] = registry(resources.IMAGE_COPY)
        self.volumes: KubeRegistry[Volume] = registry(resources.VOLUME)
        self.snapshots: KubeRegistry[Snapshot] = registry(resources.SNAPSHOT)
        self.pools: KubeRegistry[Pool] = registry(resources.POOL)

    @property
    def all(self) -> tuple[KubeRegistry[Any], ...]:
        return (self.images, *self.of_node)

    @property
    def of_node(self) -> tuple[KubeRegistry[Any], ...]:
        """Those that a node watches: BackingImages are the controller's alone."""
        return (self.copies, self.volumes, self.snapshots, self.pools)


def connect_to_cluster(settings: ClusterSettings) -> AsyncClient:
    """Return a client that has not connected yet. Raises: StartFailed: there are no credentials."""
    try:
        return connect(settings.kubeconfig, namespace=settings.namespace)
    except InvalidArgument as exc:
        raise StartFailed(str(exc)) from exc


@asynccontextmanager
async def open_engine(
    data_dir: Path, *, pool_size_bytes: int | None
) -> AsyncIterator[tuple[Engine, Path]]:
    """Make or find the pool, and open it; yields the engine and the pool's directory.

    At the end the engine is closed; the pool, its loop devices and mounts stay.
    """
    pool = await ensure_pool(data_dir, pool_size_bytes=pool_size_bytes)
    engine = LocalEngine(pool.path)
    await engine.open()
    try:
        try:
            await sandbox.check_available()
        except sandbox.SandboxUnavailable as exc:
            log.warning("qcow2 images cannot be imported: %s", exc)
        yield engine, pool.path
    finally:
        await engine.close()


class NodeWork:
    """What the owner of a pool does: three reconcilers and the pool's report."""

    def __init__(
        self,
        registries: Registries,
        engine: Engine,
        locks: KeyedLocks[str],
        pool: PoolReporter,
        *,
        pool_dir: Path,
        use: VolumeUse,
        peers: PeerSource | None = None,
        observe: Observe = unobserved,
    ) -> None:
        """`peers`: whence what other nodes have is brought; None: there are no other nodes."""
        self._registries = registries
        self._engine = engine
        self._pool = pool
        self._pool_dir = pool_dir
        uploads = Uploads(str(pool_dir))
        self.bytes = PoolBytes(engine, uploads, str(pool_dir))
        """What moves image bytes of this pool for people, machines and other nodes."""
        snapshots = SnapshotReconciler(registries.snapshots, engine, locks)
        self._snapshots = Controller("snapshot", snapshots.reconcile, observe=observe)
        # A controller and its reconciler need each other: transfers wake the controller.
        reconcile: list[Callable[[str], Awaitable[float | None]]] = []
        self._volumes = Controller("volume", lambda name: reconcile[0](name), observe=observe)
        self._copies = Controller("image copy", lambda name: reconcile[1](name), observe=observe)
        self._contents = None
        if peers is not None:
            self._contents = ContentFetcher(
                engine,
                volumes=registries.volumes,
                snapshots=registries.snapshots,
                pools=registries.pools,
                peers=peers,
                enqueue=self._volumes.enqueue,
            )
        volumes = VolumeReconciler(
            registries.volumes, engine, locks, contents=self._contents, use=use
        )
        copies = ImageCopyReconciler(
            registries.copies,
            engine,
            WebFetcher(str(pool_dir)),
            Sha512Checksummer(),
            locks,
            self._copies.enqueue,
            pools=registries.pools,
            peers=peers,
            uploads=uploads,
            cloner=PoolCloner(str(pool_dir)),
        )
        reconcile += [volumes.reconcile, copies.reconcile]
        self._close_copies = copies.close

    async def close(self) -> None:
        """Stop all transfers; what arrived so far is resumed by the next process."""
        await self._close_copies()
        if self._contents is not None:
            await self._contents.close()

    async def report(self, *, labels: Mapping[str, str] | None = None) -> None:
        """Tell of the pool for the first time, and log what in it belongs to nobody.

        Args: labels: what all objects of this node carry; None: it is the only one.
        """
        registries = self._registries
        await self._pool.report()
        for name in await find_ownerless(
            self._engine, registries.volumes, registries.snapshots, registries.copies, labels=labels
        ):
            log.warning("%s: data without an object, left alone", self._pool_dir / name)

    def tasks(self) -> Iterator[Coroutine[Any, Any, None]]:
        """Yield what is to run until stop."""
        registries = self._registries
        for controller in (self._volumes, self._snapshots, self._copies):
            yield controller.run()
        yield follow(registries.volumes, self._volumes.enqueue)
        yield follow(registries.snapshots, self._snapshots.enqueue)
        yield follow(registries.copies, self._copies.enqueue)
        yield self._pool.run()

    def released(self, volume_id: str) -> None:
        """Look at a volume that was unstaged: its deletion may wait for that."""
        if any(volume.meta.name == volume_id for volume in self._registries.volumes.cached()):
            self._volumes.enqueue(volume_id)


def image_tasks(
    registries: Registries, *, observe: Observe = unobserved
) -> Iterator[Coroutine[Any, Any, None]]:
    """Yield what keeps BackingImages: one program of a cluster at a time may run it."""
    reconciler = BackingImageReconciler(
        registries.images, registries.copies, registries.pools, registries.volumes
    )
    images = Controller("backing image", reconciler.reconcile, observe=observe)
    sources = CloneSourceReconciler(registries.snapshots, registries.volumes)
    clones = Controller("clone source", sources.reconcile, observe=observe)

    def with_image(which: Callable[[str], str | None]) -> Callable[[str], None]:
        def changed(name: str) -> None:
            image = which(name)
            if image is not None:
                images.enqueue(image)

        return changed

    def pool_changed(name: str) -> None:
        for image in reconciler.images_of_pool(name):
            images.enqueue(image)

    def image_changed(name: str) -> None:
        images.enqueue(name)
        for clone in reconciler.clones_of_image(name):
            images.enqueue(clone)

    yield images.run()
    yield clones.run()
    yield follow(registries.images, image_changed)
    yield follow(registries.copies, with_image(reconciler.image_of_copy))
    yield follow(registries.volumes, with_image(reconciler.image_of_volume))
    yield follow(registries.pools, pool_changed)
    yield follow(registries.snapshots, clones.enqueue)


def csi_controller(
    registries: Registries,
    client: AsyncClient,
    operations: KeyedOperations,
    *,
    driver_name: str,
    use: VolumeUse,
) -> CsiController:
    """Return the Controller half of CSI, with the services behind it."""
    images = ImageService(
        images=registries.images,
        volumes=registries.volumes,
        claims=KubeClaimDirectory(client, driver_name=driver_name),
        operations=operations,
    )
    snapshots = SnapshotService(
        snapshots=registries.snapshots,
        volumes=registries.volumes,
        images=images,
        operations=operations,
    )
    volumes = VolumeService(
        volumes=registries.volumes,
        pools=registries.pools,
        images=images,
        snapshots=snapshots,
        operations=operations,
        use=use,
    )
    return CsiController(volumes=volumes, snapshots=snapshots)


async def follow(registry: Registry[Any], changed: Callable[[str], None]) -> None:
    """Call `changed` with the name of every object that is there, changes or goes."""
    async with registry.subscribe() as names:
        async for name in names:
            changed(name)


class WebFetcher:
    """Loads the web client at the first download: it would take a quarter of every start, and
    memory (`ports.ImageFetcher`).
    """

    def __init__(self, pool_name: str) -> None:
        self._pool_name = pool_name

    async def fetch(
        self,
        key: ImageKey,
        parameters: Mapping[str, str],
        expected_checksum: str,
        staging: Path,
        report: ReportProgress,
    ) -> ImageRecord:
        await asyncio.to_thread(importlib.import_module, "shorthorn.images.fetcher")
        from shorthorn.images.fetcher import WebImageFetcher

        fetcher = WebImageFetcher(self._pool_name)
        return await fetcher.fetch(key, parameters, expected_checksum, staging, report)
