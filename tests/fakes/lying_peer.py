"""A peer with a good certificate and bad manners.

Answers every description with `description` and every stream with `body`, an iterable of pieces
that may have no end. `sent` counts what of streams was taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Callable, Iterable

GOOD = {
    "formatVersion": 1,
    "format": "raw",
    "sizeBytes": 1 << 20,
    "virtualSizeBytes": 1 << 20,
    "dataBytes": 1 << 20,
    "checksum": "ab" * 64,
    "source": {"type": "download"},
    "createdAt": "2026-01-02T00:00:00Z",
    "pointInTime": None,
}


class LyingPeer:
    """Listens at `address`."""

    def __init__(
        self, description: Callable[[], bytes], body: Callable[[], Iterable[bytes]]
    ) -> None:
        self._description = description
        self._body = body
        self.address = ""
        self.sent = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            is_stream = b"/data" in head.split(b"\r\n", 1)[0]
            writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
            for piece in self._body() if is_stream else [self._description()]:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)  # or nobody hears that the client has gone
                self.sent += len(piece) if is_stream else 0
        writer.close()


@contextlib.asynccontextmanager
async def lying_peer(
    context: ssl.SSLContext,
    *,
    changes: dict[str, Any] | None = None,
    description: Callable[[], bytes] | None = None,
    body: Callable[[], Iterable[bytes]] = list,
) -> AsyncIterator[LyingPeer]:
    """A running one; `changes` are to GOOD."""
    said = json.dumps(GOOD | (changes or {})).encode()
    peer = LyingPeer(description or (lambda: said), body)
    server = await asyncio.start_server(peer.answer, "127.0.0.1", 0, ssl=context)
    peer.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield peer
    finally:
        server.close()
