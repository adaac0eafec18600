"""`shorthorn up`: everything on one host, in one process.

Owns: the one place where concrete classes meet ports, and the order of start and stop. Must never:
decide anything that a service, controller or role decides. Called by the `up` command and by tests.

Start: take the data directory, open the pool (thawing what a predecessor left frozen comes before
anything else), then the API server, reconcilers, the CSI socket, and last the roles that call it.
Stopping goes backwards and touches no volume: loop devices, mounts and the pool stay as they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import re
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, Self

from lightkube import AsyncClient

from shorthorn.controllers.backing_images import BackingImageReconciler
from shorthorn.controllers.controller import Controller
from shorthorn.controllers.image_copies import ImageCopyReconciler
from shorthorn.controllers.ownerless import find_ownerless
from shorthorn.controllers.pools import PoolReporter
from shorthorn.controllers.volumes import SnapshotReconciler, VolumeReconciler
from shorthorn.csi.server import CsiServer, check_path
from shorthorn.domain.errors import DomainError
from shorthorn.domain.models import (
    BackingImage,
    ImageCopy,
    ImageKey,
    ImageRecord,
    Pool,
    PoolSpec,
    Snapshot,
    Volume,
)
from shorthorn.domain.ports import Engine, Registry, ReportProgress
from shorthorn.engines.local import LocalEngine
from shorthorn.host import sandbox
from shorthorn.host.errors import HostError
from shorthorn.host.locks import DirectoryLock
from shorthorn.host.node_storage import HostNodeStorage
from shorthorn.host.pool_file import ensure_pool
from shorthorn.images.checksum import Sha512Checksummer
from shorthorn.kit import heap
from shorthorn.kit.keyed import KeyedLocks, KeyedOperations
from shorthorn.kit.process import CommandFailed, CommandMissing
from shorthorn.kube import in_process, resources
from shorthorn.kube.claims import KubeClaimDirectory
from shorthorn.kube.client import connect
from shorthorn.kube.registry import KubeRegistry
from shorthorn.services.images import ImageService
from shorthorn.services.node import NodeService
from shorthorn.services.snapshots import SnapshotService
from shorthorn.services.volumes import VolumeService
from shorthorn.settings import Settings
from shorthorn.standalone.apiserver.credentials import Tls, ensure_tls, ensure_token
from shorthorn.standalone.apiserver.database_file import StoreRefused
from shorthorn.standalone.apiserver.kinds import KindInvalid, load_default_kinds
from shorthorn.standalone.apiserver.kubeconfig import write_kubeconfig
from shorthorn.standalone.apiserver.listening import ListenRefused, parse_listen
from shorthorn.standalone.apiserver.schema import SchemaUnsupported
from shorthorn.standalone.apiserver.server import ApiServer
from shorthorn.standalone.csi_client import CsiClient
from shorthorn.standalone.defaults import ensure_defaults
from shorthorn.standalone.roles import Roles

log = logging.getLogger(__name__)

_OUR_GROUPS = ("longhorn.io", "shorthorn.io")

_DRAIN_S = 10.0
"""How long running operations may go on at stop; what is cut off is resumed at the next start."""


class StartFailed(Exception):
    """The service cannot start; the message says why and what to do."""


_START_ERRORS = (
    DomainError,
    HostError,
    CommandFailed,
    CommandMissing,
    KindInvalid,
    ListenRefused,
    OSError,
    SchemaUnsupported,
    StoreRefused,
)


class Registries:
    """The five kinds."""

    def __init__(self, client: AsyncClient, namespace: str) -> None:
        self.images: KubeRegistry[BackingImage] = KubeRegistry(
            client, resources.BACKING_IMAGE, namespace=namespace
        )
        self.copies: KubeRegistry[ImageCopy] = KubeRegistry(
            client, resources.IMAGE_COPY, namespace=namespace
        )
        self.volumes: KubeRegistry[Volume] = KubeRegistry(
            client, resources.VOLUME, namespace=namespace
        )
        self.snapshots: KubeRegistry[Snapshot] = KubeRegistry(
            client, resources.SNAPSHOT, namespace=namespace
        )
        self.pools: KubeRegistry[Pool] = KubeRegistry(client, resources.POOL, namespace=namespace)

    @property
    def all(self) -> tuple[KubeRegistry[Any], ...]:
        return (self.images, self.copies, self.volumes, self.snapshots, self.pools)


class Daemon:
    """One host's Shorthorn: `async with` starts and stops it. `failed` ends when a part dies."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stack = contextlib.AsyncExitStack()
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.pool_dir = Path()
        self.url = ""

    async def __aenter__(self) -> Self:
        try:
            await self._start_or_fail()
        except _START_ERRORS as exc:
            await self._stop()
            raise StartFailed(str(exc)) from exc
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop()

    async def _stop(self) -> None:
        await self._stack.aclose()
        if not self.failed.cancel() and not self.failed.cancelled():
            self.failed.exception()  # retrieved: it was raised, or came while we were stopping

    async def _start_or_fail(self) -> None:
        """Start; a part that dies meanwhile ends it, for the others may wait for that part."""
        starting = asyncio.create_task(self._start(), name="start")
        try:
            await asyncio.wait({starting, self.failed}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not starting.done():
                await _cancel(starting)
        if not starting.cancelled():
            starting.result()
        if self.failed.done():
            self.failed.result()

    async def _start(self) -> None:
        settings = self._settings
        # Before a pool file takes its space for a service that will not come up.
        parse_listen(f"{settings.listen_host}:{settings.listen_port}")
        check_path(settings.csi_socket)
        settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = DirectoryLock(settings.data_dir, owner="shorthorn")
        lock.acquire()
        self._stack.callback(lock.release)
        self._spawn(heap.keep_small())
        engine = await self._open_engine()
        client = await self._start_api_server()
        self._stack.push_async_callback(client.aclose)
        registries = Registries(client, settings.namespace)
        for registry in registries.all:
            self._spawn(registry.run())
        locks: KeyedLocks[str] = KeyedLocks()
        await self._start_controllers(registries, engine, locks)
        await self._start_csi(registries, engine, locks, client)
        await ensure_defaults(client, driver_name=settings.driver_name)
        driver = CsiClient(settings.csi_socket)
        self._stack.push_async_callback(driver.close)
        self._spawn(Roles(client, driver, driver_name=settings.driver_name).run())

    async def _open_engine(self) -> Engine:
        pool = await ensure_pool(
            self._settings.data_dir, pool_size_bytes=self._settings.pool_size_bytes
        )
        self.pool_dir = pool.path
        engine = LocalEngine(pool.path)
        await engine.open()
        self._stack.push_async_callback(engine.close)
        try:
            await sandbox.check_available()
        except sandbox.SandboxUnavailable as exc:
            log.warning("qcow2 images cannot be imported: %s", exc)
        return engine

    async def _start_api_server(self) -> AsyncClient:
        settings = self._settings
        token = ensure_token(settings.token_file)
        tls = ensure_tls(settings.data_dir / "apiserver.pem")
        server = await self._listening(token, tls)
        self._stack.push_async_callback(server.stop)
        self.url = server.url
        write_kubeconfig(settings.kubeconfig, url=server.url, token=token, authority=tls.authority)
        transport = in_process.transport(server.app, authority=tls.authority)
        return connect(settings.kubeconfig, namespace=settings.namespace, transport=transport)

    async def _listening(self, token: str, tls: Tls) -> ApiServer:
        """Return the started API server; where any port will do, on the last one if it is free.

        A `kubectl get -w` and a copied kubeconfig then outlive a restart.
        """
        settings = self._settings
        kinds = load_default_kinds()

        async def serve(port: int) -> ApiServer:
            listen = f"{settings.listen_host}:{port}"
            server = ApiServer(
                database=settings.database,
                listen=listen,
                token=token,
                kinds=kinds,
                tls=tls,
                homes=dict.fromkeys(_OUR_GROUPS, settings.namespace),
            )
            await server.start()
            return server

        last = settings.listen_port or _last_port(settings.kubeconfig)
        try:
            return await serve(last)
        except ListenRefused:
            if settings.listen_port:
                raise
            return await serve(0)

    async def _start_controllers(
        self, registries: Registries, engine: Engine, locks: KeyedLocks[str]
    ) -> None:
        volumes = Controller(
            "volume", VolumeReconciler(registries.volumes, engine, locks).reconcile
        )
        snapshots = Controller(
            "snapshot", SnapshotReconciler(registries.snapshots, engine, locks).reconcile
        )
        copies = self._copies_controller(registries, engine, locks)
        image_reconciler = BackingImageReconciler(
            registries.images, registries.copies, registries.pools, registries.volumes
        )
        images = Controller("backing image", image_reconciler.reconcile)
        pool = PoolReporter(
            registries.pools,
            registries.volumes,
            engine,
            PoolSpec(self._settings.node_id, engine.pool_uuid, str(self.pool_dir)),
        )
        await asyncio.gather(*(registry.wait_synced() for registry in registries.all))
        await pool.report()
        for name in await find_ownerless(
            engine, registries.volumes, registries.snapshots, registries.copies
        ):
            log.warning("%s: data without an object, left alone", self.pool_dir / name)

        def copy_changed(name: str) -> None:
            copies.enqueue(name)
            image = image_reconciler.image_of_copy(name)
            if image is not None:
                images.enqueue(image)

        for controller in (volumes, snapshots, copies, images):
            self._spawn(controller.run())
        self._spawn(_follow(registries.volumes, volumes.enqueue))
        self._spawn(_follow(registries.snapshots, snapshots.enqueue))
        self._spawn(_follow(registries.copies, copy_changed))
        self._spawn(_follow(registries.images, images.enqueue))
        self._spawn(pool.run())

    def _copies_controller(
        self, registries: Registries, engine: Engine, locks: KeyedLocks[str]
    ) -> Controller:
        """The controller and its reconciler need each other: transfers wake the controller."""
        reconcile: list[Callable[[str], Awaitable[float | None]]] = []
        controller = Controller("image copy", lambda name: reconcile[0](name))
        reconciler = ImageCopyReconciler(
            registries.copies,
            engine,
            _WebFetcher(str(self.pool_dir)),
            Sha512Checksummer(),
            locks,
            controller.enqueue,
        )
        reconcile.append(reconciler.reconcile)
        self._stack.push_async_callback(reconciler.close)
        return controller

    async def _start_csi(
        self, registries: Registries, engine: Engine, locks: KeyedLocks[str], client: AsyncClient
    ) -> None:
        settings = self._settings
        operations = KeyedOperations()
        node = NodeService(
            engine=engine, storage=HostNodeStorage(), operations=operations, locks=locks
        )
        images = ImageService(
            images=registries.images,
            volumes=registries.volumes,
            claims=KubeClaimDirectory(client, driver_name=settings.driver_name),
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
            use=node,
        )
        server = CsiServer(
            settings.csi_socket,
            volumes=volumes,
            snapshots=snapshots,
            node=node,
            node_id=settings.node_id,
            driver_name=settings.driver_name,
        )
        await server.start()
        self._stack.push_async_callback(lambda: operations.drain(timeout_s=_DRAIN_S))
        self._stack.push_async_callback(server.stop)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` until stop; its end before that is a failure of the daemon."""
        task = asyncio.create_task(work)
        task.add_done_callback(self._ended)
        self._stack.push_async_callback(_cancel, task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or self.failed.done():
            return
        exc = task.exception() or RuntimeError(f"{task.get_name()} ended by itself")
        self.failed.set_exception(exc)


class _WebFetcher:
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


def _last_port(kubeconfig: Path) -> int:
    """Return the port that the kubeconfig of an earlier start names, 0 where there is none."""
    try:
        found = re.search(r"https://[^/\"]*:(\d+)", kubeconfig.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return 0
    return int(found[1]) if found else 0


async def _follow(registry: Registry[Any], changed: Callable[[str], None]) -> None:
    async with registry.subscribe() as names:
        async for name in names:
            changed(name)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
