"""`shorthorn up`: everything on one host, in one process.

Owns: which parts one host has, and the order of start and stop. Must never: decide anything that a
service, controller or role decides. Called by the `up` command and by tests.

Start: take the data directory, open the pool (thawing what a predecessor left frozen comes before
anything else), then the API server, reconcilers, the CSI socket, the roles that call it, and last
the web page.
Stopping goes backwards and touches no volume: loop devices, mounts and the pool stay as they are.
"""

from __future__ import annotations

import asyncio
import re
import socket
from pathlib import Path
from typing import ClassVar

from lightkube import AsyncClient

from shorthorn.controllers.pools import PoolReporter
from shorthorn.csi.node import Node
from shorthorn.csi.server import CsiServer, check_path
from shorthorn.daemon.late_metrics import LateMetrics
from shorthorn.daemon.parts import (
    DRAIN_S,
    NodeWork,
    Registries,
    csi_controller,
    image_tasks,
    open_engine,
)
from shorthorn.daemon.program import Program
from shorthorn.daemon.web import WebServer, loopback_hosts, watched_of
from shorthorn.domain.image_bytes import ImageBytes
from shorthorn.domain.models import PoolSpec
from shorthorn.domain.ports import Engine
from shorthorn.host.files import ensure_file, replace_file
from shorthorn.host.locks import DirectoryLock
from shorthorn.host.node_storage import HostNodeStorage
from shorthorn.images.local_bytes import LocalBytes
from shorthorn.kit import heap
from shorthorn.kit.keyed import KeyedLocks, KeyedOperations
from shorthorn.kube import in_process
from shorthorn.kube.client import connect
from shorthorn.kube.user_api import UserApi
from shorthorn.services.node import NodeService
from shorthorn.settings import Settings
from shorthorn.standalone.apiserver.credentials import (
    Tls,
    ensure_tls,
    ensure_token,
)
from shorthorn.standalone.apiserver.database_file import StoreRefused
from shorthorn.standalone.apiserver.kinds import KindInvalid, load_default_kinds
from shorthorn.standalone.apiserver.kubeconfig import write_kubeconfig
from shorthorn.standalone.apiserver.listening import (
    ListenRefused,
    TcpAddress,
    open_socket,
    parse_listen,
)
from shorthorn.standalone.apiserver.schema import SchemaUnsupported
from shorthorn.standalone.apiserver.server import ApiServer
from shorthorn.standalone.apiserver.spare_room import SpareRoom
from shorthorn.standalone.apiserver.store import StoreUnavailable
from shorthorn.standalone.csi_client import CsiClient
from shorthorn.standalone.defaults import ensure_defaults
from shorthorn.standalone.roles import Roles
from shorthorn.web.access import Access
from shorthorn.web.rates import Rates
from shorthorn.web.sessions import LoginLinks, Sessions, is_key, make_key
from shorthorn.web.site import Site

_OUR_GROUPS = ("longhorn.io", "shorthorn.io")


class Daemon(Program):
    """One host's Shorthorn."""

    start_errors: ClassVar[tuple[type[Exception], ...]] = (
        *Program.start_errors,
        KindInvalid,
        ListenRefused,
        SchemaUnsupported,
        StoreRefused,
        StoreUnavailable,
    )

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._settings = settings
        self._metrics = LateMetrics()
        self.pool_dir = Path()
        self.url = ""
        self.login_url = ""
        self._image_bytes: ImageBytes | None = None

    async def _start(self) -> None:
        settings = self._settings
        # Before a pool file takes its space for a service that will not come up.
        parse_listen(f"{settings.listen_host}:{settings.listen_port}")
        parse_listen(f"{settings.web_host}:{settings.web_port or 0}")
        check_path(settings.csi_socket)
        settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        SpareRoom(settings.database).make_way()
        self._stack.enter_context(DirectoryLock(settings.data_dir, owner="shorthorn"))
        self._spawn(heap.keep_small())
        engine, self.pool_dir = await self._stack.enter_async_context(
            open_engine(settings.data_dir, pool_size_bytes=settings.pool_size_bytes)
        )
        server, tls, token = await self._start_api_server()
        transport = in_process.transport(server.app, authority=tls.authority)
        client = connect(settings.kubeconfig, namespace=settings.namespace, transport=transport)
        self._stack.push_async_callback(client.aclose)
        registries = Registries(client, settings.namespace)
        for registry in registries.all:
            self._spawn(registry.run())
        await self._start_driver(registries, engine, client)
        await ensure_defaults(client, driver_name=settings.driver_name)
        driver = CsiClient(settings.csi_socket)
        self._stack.push_async_callback(driver.close)
        self._spawn(Roles(client, driver, driver_name=settings.driver_name).run())
        if settings.web_port is not None:
            # A transport of its own: the client closes the other one.
            transport = in_process.transport(server.app, authority=tls.authority)
            users = UserApi(server.url, transport, client)
            self._stack.push_async_callback(users.aclose)
            await self._start_web(registries, users, token)

    async def _start_api_server(self) -> tuple[ApiServer, Tls, str]:
        settings = self._settings
        token = ensure_token(settings.token_file)
        tls = ensure_tls(settings.data_dir / "apiserver.pem")
        server = await self._listening(token, tls)
        self._stack.push_async_callback(server.stop)
        self.url = server.url
        write_kubeconfig(settings.kubeconfig, url=server.url, token=token, authority=tls.authority)
        return server, tls, token

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

    async def _start_driver(
        self, registries: Registries, engine: Engine, client: AsyncClient
    ) -> None:
        """Start all reconcilers, then the CSI socket that gives them work."""
        settings = self._settings
        locks: KeyedLocks[str] = KeyedLocks()
        operations = KeyedOperations()
        node = NodeService(
            engine=engine, storage=HostNodeStorage(), operations=operations, locks=locks
        )
        pool = PoolReporter(
            registries.pools,
            registries.volumes,
            engine,
            PoolSpec(settings.node_id, engine.pool_uuid, str(self.pool_dir)),
        )
        observe = self._metrics.reconciled
        self._metrics.watch(registries)
        work = NodeWork(
            registries, engine, locks, pool, pool_dir=self.pool_dir, use=node, observe=observe
        )
        self._stack.push_async_callback(work.close)
        self._image_bytes = LocalBytes(work.bytes, registries.copies, engine.pool_uuid)
        await asyncio.gather(*(registry.wait_synced() for registry in registries.all))
        await work.report()
        for task in (*work.tasks(), *image_tasks(registries, observe=observe)):
            self._spawn(task)
        server = CsiServer(
            settings.csi_socket,
            driver_name=settings.driver_name,
            controller=csi_controller(
                registries, client, operations, driver_name=settings.driver_name, use=node
            ),
            node=Node(node_id=settings.node_id, service=node),
        )
        await server.start()
        self._stack.push_async_callback(lambda: operations.drain(timeout_s=DRAIN_S))
        self._stack.push_async_callback(server.stop)

    async def _start_web(self, registries: Registries, users: UserApi, token: str) -> None:
        settings = self._settings
        listener = self._web_listener()
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{port}"
        key = _ensure_key(settings.web_key)
        links = LoginLinks(key)
        site = Site(
            namespace=settings.namespace,
            driver_name=settings.driver_name,
            watched=watched_of(registries),
            rates=Rates(registries.copies),
            access=Access(users, namespace=settings.namespace),
            image_bytes=self._image_bytes,
            sessions=Sessions(key),
            # Browsers keep cookies by host, not by port: two data directories need two names.
            cookie=f"shorthorn_{port}",
            links=links,
            links_token=token,
            metrics=self._metrics.text,
            count_bytes=self._metrics.count_image_bytes,
            obstacles=lambda: [r.problem for r in registries.all if r.problem],
        )
        server = WebServer(site, listener, hosts=loopback_hosts(host, port))
        await server.start()
        self._stack.push_async_callback(server.stop)
        self._spawn(server.rates.run())
        ensure_file(settings.web_url, f"{url}\n".encode())
        self.login_url = f"{url}/login?once={links.make()}"

    def _web_listener(self) -> socket.socket:
        """Return the web page's socket; where any port will do, on the last one if it is free."""
        settings = self._settings
        last = settings.web_port or _last_port(settings.web_url)
        try:
            return open_socket(TcpAddress(settings.web_host, last), option="--web-listen")
        except ListenRefused:
            if settings.web_port:
                raise
            return open_socket(TcpAddress(settings.web_host, 0), option="--web-listen")


def _last_port(file: Path) -> int:
    """Return the port of the URL that an earlier start left in `file`, 0 where there is none."""
    try:
        found = re.search(r"https?://[^/\"\n]*:(\d+)", file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return 0
    return int(found[1]) if found else 0


def _ensure_key(path: Path) -> str:
    """Return the key of cookies and links in `path`, made at first."""
    try:
        key = path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        key = ""
    if not is_key(key):
        key = make_key()
        replace_file(path, f"{key}\n".encode())
    return key
