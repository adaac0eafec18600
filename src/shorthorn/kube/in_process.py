"""The short way to an API server that lives in the same process.

Owns: handing a client's requests to the server's ASGI application without sockets, TLS and HTTP
parsing, which were most of what a request costs (measured: 2.5 ms of processor time through the
socket). Must never: skip what the application does, authentication included, or know what a
resource is. Watches still go through the socket: their answers have no end. Wired by `daemon`.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import httpx2

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Message, Receive, Send], Awaitable[None]]


def transport(app: AsgiApp, *, authority: str) -> InProcessTransport:
    """Return a transport to `app`; watches trust a server with a certificate of `authority`."""
    context = ssl.create_default_context(cadata=authority)
    return InProcessTransport(app, httpx2.AsyncHTTPTransport(verify=context))


class InProcessTransport(httpx2.AsyncBaseTransport):
    """Answers from `app`; what is a watch is left to `elsewhere`."""

    def __init__(self, app: AsgiApp, elsewhere: httpx2.AsyncBaseTransport) -> None:
        self._app = app
        self._elsewhere = elsewhere
        self._running: set[asyncio.Task[httpx2.Response]] = set()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """See httpx2. Raises ReadTimeout. A caller who gives up does not stop the server's work."""
        if request.url.params.get("watch") in ("true", "1"):
            return await self._elsewhere.handle_async_request(request)
        task = asyncio.create_task(self._answer(request, await request.aread()))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        try:
            async with asyncio.timeout(request.extensions.get("timeout", {}).get("read")):
                return await asyncio.shield(task)
        except TimeoutError:
            raise httpx2.ReadTimeout("no answer in time", request=request) from None

    async def _answer(self, request: httpx2.Request, body: bytes) -> httpx2.Response:
        incoming: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        started: Message = {}
        parts: list[bytes] = []

        async def receive() -> Message:
            return incoming.pop() if incoming else {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                started.update(message)
            else:
                parts.append(message.get("body", b""))

        await self._app(_scope(request), receive, send)
        return httpx2.Response(
            started["status"], headers=started["headers"], content=b"".join(parts)
        )

    async def aclose(self) -> None:
        await self._elsewhere.aclose()


def _scope(request: httpx2.Request) -> Message:
    path, _, query = request.url.raw_path.partition(b"?")
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": request.method,
        "headers": [(name.lower(), value) for name, value in request.headers.raw],
        "scheme": request.url.scheme,
        "path": request.url.path,
        "raw_path": path,
        "query_string": query,
        "server": (request.url.host, request.url.port),
        "client": ("in-process", 0),
        "root_path": "",
    }
