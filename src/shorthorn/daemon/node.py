"""`shorthorn node`: one pool, and the node half of CSI.

Owns: which parts that program has, and what of it needs no API server. Must never: look at another
node's objects, but for the addresses of peers. Called by the `node` command and by tests.

Start: take the data directory, open the pool (thawing what a predecessor left frozen comes before
anything else), serve CSI. Staging, publishing and back work from here on, whether or not there is
an API server. Reconcilers begin when it has answered. Stopping goes backwards and touches no
volume: a pod of the DaemonSet is replaced while volumes are mounted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from shorthorn.controllers.controller import back_off_s
from shorthorn.controllers.pools import PoolReporter
from shorthorn.csi.node import Node
from shorthorn.csi.server import CsiServer, check_path
from shorthorn.daemon.parts import (
    DRAIN_S,
    NodeWork,
    Registries,
    connect_to_cluster,
    open_engine,
)
from shorthorn.daemon.program import Program
from shorthorn.domain.errors import DomainError
from shorthorn.domain.labels import node_labels
from shorthorn.domain.models import PoolSpec
from shorthorn.domain.ports import Engine, PeerSource
from shorthorn.host.locks import DirectoryLock
from shorthorn.host.node_storage import HostNodeStorage
from shorthorn.images.peer_fetcher import PeerFetcher
from shorthorn.images.peer_server import PeerServer
from shorthorn.kit import heap
from shorthorn.kit.keyed import KeyedLocks, KeyedOperations
from shorthorn.kube.peer_identity import PeerIdentity
from shorthorn.services.node import NodeService
from shorthorn.settings import NodeSettings, parse_listen
from shorthorn.telemetry import Metrics, TelemetryServer

log = logging.getLogger(__name__)

HEARTBEAT_S = 15.0
"""How often a node says that it lives; it is silent after a minute (`domain.node_loss`)."""

_RETRY_S_MAX = 10.0


class NodeProgram(Program):
    """One node's Shorthorn."""

    def __init__(self, settings: NodeSettings) -> None:
        super().__init__()
        self._settings = settings
        self._metrics = Metrics()
        self._waits_for = "its pool"
        self._api_waits_for = "the API server"
        client = connect_to_cluster(settings)
        self._stack.push_async_callback(client.aclose)
        self._client = client
        self._registries = Registries(
            client, settings.namespace, watched=node_labels(settings.node_id)
        )
        self._peers: PeerSource | None = None
        self._peer_address = ""

    async def _start(self) -> None:
        settings = self._settings
        check_path(settings.csi_socket)
        settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._stack.enter_context(DirectoryLock(settings.data_dir, owner="shorthorn node"))
        self._spawn(heap.keep_small())
        await self._start_telemetry()
        engine, pool_dir = await self._stack.enter_async_context(
            open_engine(settings.data_dir, pool_size_bytes=settings.pool_size_bytes)
        )
        identity = self._join_peers(pool_dir)
        locks: KeyedLocks[str] = KeyedLocks()
        operations = KeyedOperations()
        node = NodeService(
            engine=engine,
            storage=HostNodeStorage(),
            operations=operations,
            locks=locks,
            released=lambda volume_id: work.released(volume_id),
        )
        work = self._work_of(engine, locks, node, pool_dir)
        self._stack.push_async_callback(work.close)
        if identity is not None:
            await self._serve_peers(engine, work, identity)
        for registry in self._registries.of_node:
            self._spawn(registry.run())
        self._spawn(self._keep_pool(work))
        settings.csi_socket.parent.mkdir(parents=True, exist_ok=True)
        server = CsiServer(
            settings.csi_socket,
            driver_name=settings.driver_name,
            node=Node(node_id=settings.node_id, service=node),
        )
        await server.start()
        self._stack.push_async_callback(lambda: operations.drain(timeout_s=DRAIN_S))
        self._stack.push_async_callback(server.stop)
        self._waits_for = ""
        log.info("ready: pool %s at %s", engine.pool_uuid, pool_dir)

    def _work_of(
        self, engine: Engine, locks: KeyedLocks[str], node: NodeService, pool_dir: Path
    ) -> NodeWork:
        settings, registries = self._settings, self._registries
        spec = PoolSpec(
            settings.node_id,
            engine.pool_uuid,
            str(pool_dir),
            tags=settings.disk_tags,
            node_tags=settings.node_tags,
            peer_address=self._peer_address,
        )
        pool = PoolReporter(
            registries.pools, registries.volumes, engine, spec, heartbeat_s=HEARTBEAT_S
        )
        return NodeWork(
            registries,
            engine,
            locks,
            pool,
            pool_dir=pool_dir,
            use=node,
            peers=self._peers,
            observe=self._metrics.reconciled,
        )

    # --- image bytes between nodes

    def _join_peers(self, pool_dir: Path) -> PeerIdentity | None:
        """Become one of the peers. Without an address this node neither gives nor takes image
        bytes: copies of type `sync` wait, and its Pool object names no address.
        """
        settings = self._settings
        if not settings.peer_listen:
            log.info("image bytes are not exchanged with other nodes")
            return None
        identity = PeerIdentity(self._client, namespace=settings.namespace)
        self._spawn(identity.run())
        self._peers = PeerFetcher(str(pool_dir), identity)
        self._peer_address = settings.peer_address
        return identity

    async def _serve_peers(self, engine: Engine, work: NodeWork, identity: PeerIdentity) -> None:
        """Give image bytes to other nodes and, through the controller, to people and machines."""
        host, port = parse_listen(self._settings.peer_listen)
        server = PeerServer(engine, identity, host=host, port=port, pool_bytes=work.bytes)
        await server.start()
        self._stack.push_async_callback(server.stop)

    # --- what needs the API server

    async def _keep_pool(self, work: NodeWork) -> None:
        """Reconcile this node's objects for ever, as soon as there is an API server."""
        registries = self._registries.of_node
        await asyncio.gather(*(registry.wait_synced() for registry in registries))
        labels = node_labels(self._settings.node_id)
        await self._persist(lambda: work.report(labels=labels))
        self._api_waits_for = ""
        log.info("this node's objects are kept")
        async with asyncio.TaskGroup() as group:
            for task in work.tasks():
                group.create_task(task)

    async def _persist(self, attempt: Callable[[], Awaitable[None]]) -> None:
        """Try until it succeeds; say what is in the way whenever that changes."""
        failures = 0
        while True:
            try:
                await attempt()
            except DomainError as exc:
                if str(exc) != self._api_waits_for:
                    log.warning("this node's objects are not kept yet: %s", exc)
                self._api_waits_for = str(exc)
            else:
                return
            failures += 1
            await asyncio.sleep(min(back_off_s(failures), _RETRY_S_MAX))

    # --- /readyz and /metrics

    async def _start_telemetry(self) -> None:
        if not self._settings.http_listen:
            return
        host, port = parse_listen(self._settings.http_listen)
        self._metrics.watch_node(self._registries.pools.cached, self._registries.copies.cached)
        telemetry = TelemetryServer(
            host, port, self._metrics, obstacles=self._obstacles, notes=self._notes
        )
        await telemetry.start()
        self._stack.push_async_callback(telemetry.stop)

    def _obstacles(self) -> list[str]:
        return [f"waiting for {self._waits_for}"] if self._waits_for else []

    def _notes(self) -> list[str]:
        """Whether there is an API server is no matter of readiness: volumes are served."""
        waits = [f"reconcilers wait for {self._api_waits_for}"] if self._api_waits_for else []
        problems = (registry.problem for registry in self._registries.of_node)
        return [*waits, *filter(None, problems)]
