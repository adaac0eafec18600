"""The web page as a part of a program: its site, its socket, its start and stop.

Owns: how the page's parts are made of concrete classes, for one host and for a cluster. Must never:
know a page. Called by `daemon.standalone` and `daemon.controller`.
"""

from __future__ import annotations

import socket
from collections.abc import Collection
from pathlib import Path

from shorthorn.daemon.parts import Registries
from shorthorn.domain.errors import Unavailable
from shorthorn.kit.guest_server import GuestServer
from shorthorn.standalone.apiserver.credentials import write_private
from shorthorn.web.app import make_app
from shorthorn.web.rates import Rates
from shorthorn.web.sessions import is_key, make_key
from shorthorn.web.site import Site
from shorthorn.web.watched import Watched

_GRACE_S = 2


def watched_of(registries: Registries) -> Watched:
    """Return what pages look at."""
    return Watched(
        images=registries.images,
        copies=registries.copies,
        volumes=registries.volumes,
        snapshots=registries.snapshots,
        pools=registries.pools,
    )


class WebServer:
    """Serves a site on an open socket. `start` once, `stop` once."""

    def __init__(
        self, site: Site, listener: socket.socket, *, hosts: Collection[str] | None
    ) -> None:
        """`hosts`: what the Host header may be; None: anything (a proxy in front decides)."""
        self._site = site
        self._server = GuestServer(make_app(site, hosts=hosts), listener, grace_s=_GRACE_S)

    @property
    def rates(self) -> Rates:
        return self._site.rates

    async def start(self) -> None:
        await self._server.start()

    async def stop(self) -> None:
        """End event streams, which would not end by themselves, then the rest."""
        for stream in list(self._site.streams):
            stream.set()
        await self._server.stop()


def ensure_key(path: Path) -> str:
    """Return the key of cookies and links in `path`, made at first."""
    try:
        key = path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        key = ""
    if not is_key(key):
        key = make_key()
        write_private(path, key + "\n")
    return key


def open_everywhere(host: str, port: int) -> socket.socket:
    """Listen at HOST:PORT, an empty host being all addresses. Raises: Unavailable."""
    try:
        if not host and socket.has_dualstack_ipv6():
            family, dual = socket.AF_INET6, True
        else:
            family, dual = (socket.AF_INET6 if ":" in host else socket.AF_INET), False
        listener = socket.create_server(
            (host, port), family=family, dualstack_ipv6=dual, backlog=256
        )
    except OSError as exc:
        raise Unavailable(f"address {host}:{port}", f"it cannot be listened at: {exc}") from exc
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.setblocking(False)
    return listener


def loopback_hosts(host: str, port: int) -> frozenset[str]:
    """Return the names under which a browser on this host may come."""
    shown = f"[{host}]" if ":" in host else host
    names = {shown, "localhost", "127.0.0.1", "[::1]"}
    ports = {f":{port}", ""} if port == 80 else {f":{port}"}
    return frozenset(name + suffix for name in names for suffix in ports)
