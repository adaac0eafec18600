"""`shorthorn controller`: the controller half of CSI, and the reconcilers of the whole cluster.

Owns: which parts that program has, when it may begin, and what runs under the lease. Must never:
touch a pool or a node. Called by the `controller` command and by tests.

The socket and /healthz are there from the start, so that nobody restarts a program that only waits:
until the API server has answered and everything has been read once, calls are UNAVAILABLE and
/readyz says what is missing. Every replica answers calls, because all state is in objects; one
leads. So does the web page: each replica serves it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
from collections.abc import Coroutine, Iterator
from typing import Any

from lightkube import AsyncClient

from shorthorn.controllers.controller import back_off_s
from shorthorn.controllers.lost_nodes import LostNodes
from shorthorn.csi.server import CsiServer, check_path
from shorthorn.daemon.parts import (
    DRAIN_S,
    Registries,
    connect_to_cluster,
    csi_controller,
    image_tasks,
)
from shorthorn.daemon.program import Program, StartFailed
from shorthorn.daemon.web import WebServer, open_everywhere, watched_of
from shorthorn.domain.errors import DomainError, NotFound, Unavailable
from shorthorn.domain.image_bytes import Direction
from shorthorn.images.peer_bytes import PeerBytes
from shorthorn.kit import heap
from shorthorn.kit.keyed import KeyedOperations
from shorthorn.kube.leader import KubeLeases, LeaderElection
from shorthorn.kube.neighbours import find_foreign_images, find_longhorn
from shorthorn.kube.nodes import KubeNodeDirectory
from shorthorn.kube.peer_authority import PeerAuthority
from shorthorn.kube.peer_identity import PeerIdentity
from shorthorn.kube.user_api import connect_users
from shorthorn.kube.web_secret import ensure_web_key
from shorthorn.services.deletions import UseSeenByNodes
from shorthorn.settings import ControllerSettings, parse_listen
from shorthorn.telemetry import Metrics, TelemetryServer
from shorthorn.web.access import Access
from shorthorn.web.rates import Rates
from shorthorn.web.sessions import Sessions, is_key, make_key
from shorthorn.web.site import Site

log = logging.getLogger(__name__)

_RETRY_S_MAX = 10.0
_NO_KINDS = "kind BackingImage is not installed; apply the CustomResourceDefinitions of the release"


class ControllerProgram(Program):
    """One replica of the controller."""

    def __init__(self, settings: ControllerSettings) -> None:
        super().__init__()
        self._settings = settings
        self._metrics = Metrics()
        self._waits_for = "the API server"
        identity = settings.identity or f"{socket.gethostname()}_{secrets.token_hex(4)}"
        client = connect_to_cluster(settings)
        self._stack.push_async_callback(client.aclose)
        self._client = client
        self._registries = Registries(client, settings.namespace)
        self._election = LeaderElection(
            KubeLeases(client, settings.namespace), name=settings.lease_name, identity=identity
        )

    async def _start(self) -> None:
        settings = self._settings
        check_path(settings.csi_socket)
        self._spawn(heap.keep_small())
        await self._start_telemetry()
        operations = KeyedOperations()
        settings.csi_socket.parent.mkdir(parents=True, exist_ok=True)
        server = CsiServer(
            settings.csi_socket,
            driver_name=settings.driver_name,
            controller=csi_controller(
                self._registries,
                self._client,
                operations,
                driver_name=settings.driver_name,
                use=UseSeenByNodes(),
            ),
            check=self._check,
        )
        for registry in self._registries.all:
            self._spawn(registry.run())
        self._spawn(self._work())
        if settings.web_listen:
            listener = open_everywhere(*parse_listen(settings.web_listen))
            self._stack.callback(listener.close)
            self._spawn(self._serve_web(listener))
        await server.start()
        self._stack.push_async_callback(lambda: operations.drain(timeout_s=DRAIN_S))
        self._stack.push_async_callback(server.stop)

    async def _start_telemetry(self) -> None:
        if not self._settings.http_listen:
            return
        host, port = parse_listen(self._settings.http_listen)
        if self._settings.leader_elect:
            self._metrics.watch_leading(lambda: self._election.is_leading)
        telemetry = TelemetryServer(
            host, port, self._metrics, obstacles=self._obstacles, notes=self._notes
        )
        await telemetry.start()
        self._stack.push_async_callback(telemetry.stop)

    async def _serve_web(self, listener: socket.socket) -> None:
        """Serve the web page from when everything has been read; until then nobody is answered."""
        await asyncio.gather(*(registry.wait_synced() for registry in self._registries.all))
        settings, registries = self._settings, self._registries
        users = connect_users(settings.kubeconfig, self._client)
        identity = PeerIdentity(self._client, namespace=settings.namespace)
        self._spawn(identity.run())
        for direction in Direction:
            self._metrics.count_image_bytes(direction, 0)
        image_bytes = PeerBytes(registries.copies, registries.pools, identity)
        site = Site(
            namespace=settings.namespace,
            driver_name=settings.driver_name,
            watched=watched_of(registries),
            rates=Rates(registries.copies),
            access=Access(users, namespace=settings.namespace),
            image_bytes=image_bytes,
            sessions=Sessions(await self._web_key()),
            cookie="shorthorn",
            count_bytes=self._metrics.count_image_bytes,
            obstacles=self._obstacles,
        )
        server = WebServer(site, listener, hosts=None)
        await server.start()
        try:
            await server.rates.run()
        finally:
            await server.stop()
            await image_bytes.close()
            await users.aclose()

    async def _web_key(self) -> str:
        failures = 0
        while True:
            try:
                return await ensure_web_key(
                    self._client,
                    namespace=self._settings.namespace,
                    make=make_key,
                    is_usable=is_key,
                )
            except DomainError as exc:
                log.warning("the web page waits for its Secret: %s", exc)
            failures += 1
            await asyncio.sleep(min(back_off_s(failures), _RETRY_S_MAX))

    # --- whether it may serve

    def _obstacles(self) -> list[str]:
        return [f"waiting for {self._waits_for}", *self._problems()] if self._waits_for else []

    def _notes(self) -> list[str]:
        leader = f"leader: {self._election.holder or 'none'}"
        return [leader] if self._waits_for else [leader, *self._problems()]

    def _problems(self) -> list[str]:
        return [registry.problem for registry in self._registries.all if registry.problem]

    def _check(self) -> None:
        if self._waits_for:
            raise Unavailable("controller", f"it waits for {self._waits_for}")

    async def _work(self) -> None:
        """Wait until this may be done, then keep images and nodes whenever this replica leads."""
        await self._until_alone()
        self._waits_for = "all objects to be read"
        await asyncio.gather(*(registry.wait_synced() for registry in self._registries.all))
        self._waits_for = ""
        log.info("ready: every object has been read")
        if self._settings.leader_elect:
            await self._election.run(self._lead)
        else:
            await self._lead()

    async def _until_alone(self) -> None:
        """Return once it is known that Longhorn is not here. Raises: StartFailed: it is."""
        failures = 0
        while True:
            try:
                await _refuse_longhorn(self._client, self._settings.namespace)
            except NotFound:
                self._wait(_NO_KINDS)
            except DomainError as exc:
                self._wait(f"the API server: {exc}")
            else:
                return
            failures += 1
            await asyncio.sleep(min(back_off_s(failures), _RETRY_S_MAX))

    def _wait(self, what: str) -> None:
        if what != self._waits_for:
            log.warning("waiting for %s", what)
        self._waits_for = what

    # --- what the leader does

    async def _lead(self) -> None:
        async with asyncio.TaskGroup() as group:
            for task in self._leader_tasks():
                group.create_task(task)

    def _leader_tasks(self) -> Iterator[Coroutine[Any, Any, None]]:
        registries = self._registries
        yield from image_tasks(registries, observe=self._metrics.reconciled)
        yield PeerAuthority(self._client, namespace=self._settings.namespace).run()
        yield LostNodes(
            registries.pools,
            registries.volumes,
            registries.snapshots,
            registries.copies,
            KubeNodeDirectory(self._client),
        ).run()


async def _refuse_longhorn(client: AsyncClient, namespace: str) -> None:
    """Raise StartFailed where Longhorn is installed, or has left its images."""
    kinds = await find_longhorn(client)
    if kinds:
        raise StartFailed(
            f"Longhorn is installed in this cluster ({', '.join(kinds)}), and both would own"
            " BackingImages: uninstall it, or use Shorthorn in another cluster"
        )
    images = await find_foreign_images(client, namespace)
    if images:
        raise StartFailed(
            f"namespace {namespace} has BackingImages that Longhorn made ({', '.join(images[:5])}):"
            " delete them, or give Shorthorn a namespace of its own"
        )
