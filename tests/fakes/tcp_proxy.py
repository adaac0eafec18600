"""A line between two processes that counts, stalls and breaks.

Passes on what either side sends. `received` counts bytes towards the client, of all connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Proxy:
    """`address` leads to `target`. Change the attributes at any time.

    `break_at`: reset all connections, and refuse new ones, once so many bytes were received.
    `heals`: breaks once only. `hold_at`: pass on no more than so many until it is changed.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.received = 0
        self.connections = 0
        self.break_at: int | None = None
        self.heals = False
        self.broken = asyncio.Event()
        self.hold_at: int | None = None
        self.held = asyncio.Event()
        self._go_on = asyncio.Event()
        self.address = ""

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.address = f"127.0.0.1:{port}"

    def release(self) -> None:
        """Pass on everything that was held."""
        self.hold_at = None
        self._go_on.set()

    async def stop(self) -> None:
        self.release()
        self.break_off()
        assert self._server is not None
        self._server.close()

    def break_off(self) -> None:
        """Reset all connections that there are."""
        for writer in self._writers:
            transport_socket = writer.transport.get_extra_info("socket")
            if transport_socket is not None:
                linger = b"\1\0\0\0\0\0\0\0"
                transport_socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        host, port = self._target.rsplit(":", 1)
        if self.broken.is_set():
            writer.transport.abort()
            return
        try:
            up_reader, up_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.transport.abort()
            return
        pair = {writer, up_writer}
        self._writers |= pair
        try:
            await asyncio.gather(self._pump(reader, up_writer), self._pump_down(up_reader, writer))
        except OSError:
            pass
        finally:
            self._writers -= pair
            for each in pair:
                each.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        with contextlib.suppress(OSError):
            writer.write_eof()

    async def _pump_down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            while self.hold_at is not None and self.received + len(data) > self.hold_at:
                self.held.set()
                self._go_on.clear()
                await self._go_on.wait()
            writer.write(data)
            await writer.drain()
            self.received += len(data)
            if self.break_at is not None and self.received >= self.break_at:
                if self.heals:
                    self.break_at = None
                else:
                    self.broken.set()
                self.break_off()
                raise ConnectionResetError
        with contextlib.suppress(OSError):
            writer.write_eof()


@contextlib.asynccontextmanager
async def proxy(target: str) -> AsyncIterator[Proxy]:
    """A running proxy to `target` (HOST:PORT)."""
    line = Proxy(target)
    await line.start()
    try:
        yield line
    finally:
        await line.stop()
