"""uvicorn as a guest in an event loop that is somebody else's.

Owns: serving one ASGI application on an open socket, from `start` to `stop`, without signal
handlers and without a word in the log. Must never: know what is served. Used by the embedded API
server and by `telemetry`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

#: One read of a socket, instead of asyncio's 256 KiB: fewer wake-ups for a large body.
_READ_BYTES = 1 << 20


class GuestServer:
    """Serves `app` on `listener`. `start` once; `stop` may be called twice.

    Args: tls: None: plain HTTP. grace_s: how long requests in flight may take to end at stop.
    """

    def __init__(
        self, app: Any, listener: socket.socket, *, tls: ssl.SSLContext | None = None, grace_s: int
    ) -> None:
        self._listener = listener
        config = uvicorn.Config(
            app,
            http=_LargeReads,
            ws="none",
            lifespan="off",
            loop="none",
            log_config=None,
            access_log=False,
            log_level="warning",
            server_header=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=grace_s,
        )
        config.load()
        config.ssl = tls
        self._server = _Uvicorn(config)
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to accept; requests are answered when this returns. Raises: RuntimeError."""
        serving = asyncio.create_task(
            self._server.serve(sockets=[self._listener]), name="http-server"
        )
        up = asyncio.create_task(self._server.is_up.wait(), name="http-server-up")
        await asyncio.wait((serving, up), return_when=asyncio.FIRST_COMPLETED)
        up.cancel()
        self._serving = serving
        if serving.done():
            await self.stop()
            raise RuntimeError("the HTTP server did not start")

    async def stop(self) -> None:
        """Finish requests in flight and close the socket."""
        self._server.should_exit = True
        if self._serving is not None:
            await asyncio.gather(self._serving, return_exceptions=True)
            self._serving = None


class _LargeReads(H11Protocol):
    """Reads bodies in large pieces where the transport lets itself be told: not under TLS."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to read."""
        if hasattr(transport, "max_size"):
            transport.max_size = _READ_BYTES
        super().connection_made(transport)


class _Uvicorn(uvicorn.Server):
    """Leaves signals to its host; says when it is up."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_up = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept."""
        await super().startup(sockets)
        self.is_up.set()
