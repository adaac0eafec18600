"""The embedded API server as one object: start it, talk to its URL, stop it.

Owns the order of start and stop, the namespaces that always exist, and the ageing of Events. Runs
in the caller's event loop; takes no signals. Wired by `daemon`, and by tests.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from shorthorn.kit.guest_server import GuestServer
from shorthorn.standalone.apiserver import watch, watch_stream
from shorthorn.standalone.apiserver.app import App
from shorthorn.standalone.apiserver.deletion import (
    FOREGROUND_FINALIZER,
    IMMORTAL_NAMESPACES,
    DeleteOptions,
)
from shorthorn.standalone.apiserver.handlers import Handlers
from shorthorn.standalone.apiserver.listening import open_socket, parse_listen
from shorthorn.standalone.apiserver.registry import NO_HOMES, Registry, Write
from shorthorn.standalone.apiserver.store import Store
from shorthorn.standalone.apiserver.watch import WatchHub

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping

    from shorthorn.standalone.apiserver.credentials import Tls
    from shorthorn.standalone.apiserver.kinds import KindSet
    from shorthorn.standalone.apiserver.transactions import Transaction

_log = logging.getLogger(__name__)

#: How long an Event is kept: a real API server's --event-ttl.
_EVENT_TTL = dt.timedelta(hours=1)
_EVENT_SWEEP_INTERVAL_S = 300.0
#: How long requests in flight may take to end at stop.
_GRACE_S = 3


class ApiServer:
    """A Kubernetes API over one SQLite file.

    `homes`: by group, the one namespace whose objects somebody looks at; creating one elsewhere is
    refused. `listen` is `HOST:PORT` on loopback (port 0: any free one) or `unix:PATH`. TCP needs
    `tls`, because kubectl sends its token over TLS only.
    """

    def __init__(
        self,
        *,
        database: Path,
        listen: str,
        token: str,
        kinds: KindSet,
        tls: Tls | None = None,
        homes: Mapping[str, str] = NO_HOMES,
        history_max: int = watch.HISTORY_MAX,
        backlog_max: int = watch.WATCHER_BACKLOG_MAX,
        bookmark_interval_s: float = watch_stream.BOOKMARK_INTERVAL_S,
    ) -> None:
        self._address = parse_listen(listen)
        if not isinstance(self._address, Path) and tls is None:
            raise ValueError("listening on TCP needs a certificate")
        self._tls = None if isinstance(self._address, Path) else tls
        self._kinds = kinds
        self._store = Store(database)
        self._hub = WatchHub(history_max=history_max, backlog_max=backlog_max)
        self._registry = Registry(kinds, homes)
        handlers = Handlers(
            kinds,
            self._store,
            self._hub,
            self._registry,
            bookmark_interval_s=bookmark_interval_s,
        )
        self._app = App(kinds, handlers, token)
        self._sweeping: asyncio.Task[None] | None = None
        self._server: GuestServer | None = None
        self._url = ""

    @property
    def url(self) -> str:
        """Where clients connect, known after `start`; for a unix socket the host part is moot."""
        return self._url

    @property
    def app(self) -> App:
        """What answers requests, for clients in this process; usable between start and stop."""
        return self._app

    async def start(self) -> None:
        """Open the database and begin to serve; returns when requests are answered.

        Raises: StoreRefused: the database; ListenRefused: the address; nothing is left behind.
        """
        loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._store.open, loop)
        try:
            self._hub.start_at(self._store.resource_version_now())
            self._store.on_commit = self._hub.publish
            await self._store.write(self._ensure_namespaces)
            await self._store.write(self._finish_deletions)
            listener = open_socket(self._address)
        except BaseException:
            await self._store.close()
            raise
        self._url, self._app.address = self._describe(listener)
        tls = self._tls.context() if self._tls is not None else None
        self._server = GuestServer(self._app, listener, tls=tls, grace_s=_GRACE_S)
        try:
            await self._server.start()
        except RuntimeError:
            await self.stop()
            raise
        self._sweeping = loop.create_task(self._sweep_events(), name="api-event-sweep")
        _log.info("API server at %s", self._url)

    async def stop(self) -> None:
        """End watches, finish requests in flight, close the database. May be called twice."""
        self._hub.close()
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.wait([self._sweeping])
            self._sweeping = None
        if self._server is not None:
            await self._server.stop()
        await self._store.close()
        if isinstance(self._address, Path):
            self._address.unlink(missing_ok=True)

    def _describe(self, listener: socket.socket) -> tuple[str, str]:
        if isinstance(self._address, Path):
            return "http://localhost", str(self._address)
        host, port = listener.getsockname()[:2]
        authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        return f"https://{authority}", authority

    def _ensure_namespaces(self, tx: Transaction) -> None:
        kind = self._kinds.find_by_resource("namespaces")
        assert kind is not None, "namespaces are a built-in kind"
        for name in IMMORTAL_NAMESPACES:
            if tx.find(kind.resource, "", name) is None:
                write = Write(kind, kind.storage_version, "")
                self._registry.create(tx, write, {"metadata": {"name": name}})

    def _finish_deletions(self, tx: Transaction) -> None:
        """Do the follow-ups that a crash may have cut off."""
        for uid in tx.list_orphans():
            self._registry.deletion.collect_if_orphaned(tx, uid)
        for uid in tx.list_mentioning(FOREGROUND_FINALIZER):
            self._registry.deletion.release_waiting(tx, uid)

    async def _sweep_events(self) -> None:
        """Delete old Events, as a cluster does; they would otherwise grow for ever."""
        while True:
            try:
                await self._store.write(self._delete_old_events)
            except Exception:
                _log.exception("old Events could not be deleted")
            await asyncio.sleep(_EVENT_SWEEP_INTERVAL_S)

    def _delete_old_events(self, tx: Transaction) -> None:
        limit = (dt.datetime.now(dt.UTC) - _EVENT_TTL).strftime("%Y-%m-%dT%H:%M:%SZ")
        for row in tx.list_resource("events"):
            event = row.decode()
            seen = event.get("lastTimestamp") or event["metadata"]["creationTimestamp"]
            if seen < limit:
                self._registry.deletion.delete(tx, row, DeleteOptions())
