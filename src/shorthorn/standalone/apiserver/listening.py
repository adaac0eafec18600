"""Where one host listens: loopback or a unix socket, nothing else.

Owns the refusal of every other address, and the socket's permissions. Called by `server`, and by
`daemon` for the web page.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from dataclasses import dataclass
from pathlib import Path

_BACKLOG = 256


class ListenRefused(Exception):
    """The address is not one this server may or can listen on."""


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A loopback address; port 0 takes a free one."""

    host: str
    port: int


def parse_listen(text: str) -> TcpAddress | Path:
    """Read `HOST:PORT`, `[HOST]:PORT` or `unix:PATH`. Raises: ListenRefused."""
    if text.startswith("unix:"):
        return Path(text.removeprefix("unix:"))
    host, separator, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not separator or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ListenRefused(f"{text!r} is not HOST:PORT or unix:PATH")
    if host == "localhost":
        host = "127.0.0.1"
    try:
        is_loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        raise ListenRefused(f"{host!r} is not an IP address or localhost") from None
    if not is_loopback:
        raise ListenRefused(
            f"{host} is not a loopback address; what one host serves is for that host only"
        )
    return TcpAddress(host, int(port))


def open_socket(address: TcpAddress | Path, *, option: str = "--listen") -> socket.socket:
    """Bind and listen. Raises: ListenRefused: taken, or no permission; `option` changes it."""
    try:
        if isinstance(address, Path):
            return _open_unix(address)
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # Inherited by every connection. asyncio sets it only where the socket names its
            # protocol; without it each answer waits 40 ms for a delayed ACK (measured).
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            listener.bind((address.host, address.port))
            listener.listen(_BACKLOG)
        except BaseException:
            listener.close()
            raise
    except OSError as exc:
        where = address if isinstance(address, Path) else f"{address.host}:{address.port}"
        raise ListenRefused(
            f"cannot listen on {where}: {exc.strerror}; choose another address with {option}"
        ) from exc
    listener.setblocking(False)
    return listener


def _open_unix(path: Path) -> socket.socket:
    """Bind under a temporary name with mode 0600, then rename over what a killed server left."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    temporary.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        previous = os.umask(0o177)
        try:
            listener.bind(str(temporary))
        finally:
            os.umask(previous)
        listener.listen(_BACKLOG)
        temporary.replace(path)
    except BaseException:
        listener.close()
        temporary.unlink(missing_ok=True)
        raise
    listener.setblocking(False)
    return listener
