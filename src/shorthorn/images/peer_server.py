"""Gives the committed images and snapshots of this node's pool to other nodes.

Owns the listening socket, who may come in (TLS 1.3, with a certificate of our authority) and how
many are served at once. Must never send anything to anybody else, anything that is not committed,
or a path that somebody named: what there is, the engine says. Beside it, `peer_bytes_server` serves
the web's edge on the same socket. Made by the node's daemon.

Every connection is taken over with the certificates of that moment, so they are replaced without a
restart, and those that run go on with theirs. The bytes go through user space, because the kernel
cannot encrypt for Python's TLS (no kTLS, so no sendfile).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from aiohttp import web

from shorthorn.domain.errors import DomainError, Unavailable
from shorthorn.domain.models import ImageFormat, ImageKey
from shorthorn.images.checksum import Sha512Checksummer
from shorthorn.images.inspection import SECTOR_BYTES
from shorthorn.images.peer_bytes_server import PeerBytesRoutes
from shorthorn.images.peer_frames import FrameReader, count_data_bytes
from shorthorn.images.peer_wire import Description, encode_description
from shorthorn.images.snapshot_checksums import SnapshotChecksums
from shorthorn.kit.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from typing import Any

    from shorthorn.domain.models import ImageRecord, SnapshotRecord
    from shorthorn.domain.ports import Engine
    from shorthorn.images.local_bytes import PoolBytes

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_logger = logging.getLogger(__name__)

#: Two fill a line of 10 Gbit/s; more only take the disk and processor from the node's volumes.
STREAMS_MAX = 4
_RETRY_AFTER_S = 2
#: Nobody takes a piece of a stream for this long: it is given up, and its place goes to others.
_STALL_TIMEOUT_S = 60.0
_HANDSHAKE_TIMEOUT_S = 10.0
_HANDSHAKES_MAX = 32
_CONNECTIONS_MAX = 256
_KEEPALIVE_S = 30.0
_STOP_TIMEOUT_S = 2.0


class ServerTls(Protocol):
    """Whence the server's side of TLS comes (`kube.peer_identity`)."""

    def server_context(self) -> ssl.SSLContext:
        """Return what the next connection is to use. Raises Unavailable: there is none yet."""


class PeerServer:
    """Serves `engine`'s pool on `host`:`port` from `start` to `stop`.

    Args: host: empty for all addresses, of both families. port: 0 for any free one.
        streams_max: more get 503 and go to another peer. pool_bytes: for people and machines, by
        way of the controller; None: it offers none.
    """

    def __init__(
        self,
        engine: Engine,
        tls: ServerTls,
        *,
        host: str = "",
        port: int = 0,
        streams_max: int = STREAMS_MAX,
        pool_bytes: PoolBytes | None = None,
    ) -> None:
        self._engine = engine
        self._pool_bytes = pool_bytes
        self._tls = tls
        self._address = (host, port)
        self._streams_left = streams_max
        self._checksums = SnapshotChecksums(Sha512Checksummer())
        self._handshakes = asyncio.Semaphore(_HANDSHAKES_MAX)
        self._tasks: set[asyncio.Task[None]] = set()
        self._socket: socket.socket | None = None
        self._runner = web.AppRunner(
            self._application(),
            access_log=None,
            keepalive_timeout=_KEEPALIVE_S,
            handler_cancellation=True,
            shutdown_timeout=_STOP_TIMEOUT_S,
        )

    @property
    def port(self) -> int:
        """Where it listens. Only between `start` and `stop`."""
        assert self._socket is not None
        return int(self._socket.getsockname()[1])

    async def start(self) -> None:
        """Listen. Certificates may still be missing: until then connections are closed at once.

        Raises: OSError: the port is taken.
        """
        await self._runner.setup()
        try:
            self._socket = _listen(*self._address)
        except BaseException:
            await self._runner.cleanup()
            raise
        self._spawn(self._accept(self._socket))

    async def stop(self) -> None:
        """Close all connections. Receivers go on elsewhere, or here later."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._socket is not None:
            self._socket.close()
        await self._runner.cleanup()
        await self._checksums.close()

    # ---- who comes in

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._handshakes.acquire()
            try:
                connection, address = await loop.sock_accept(listener)
            except OSError as exc:  # no descriptors left, or the other side has gone already
                self._handshakes.release()
                _logger.warning("a peer's connection could not be accepted: %s", exc)
                await asyncio.sleep(1)
            except BaseException:
                self._handshakes.release()
                raise
            else:
                self._spawn(self._shake_hands(connection, str(address[0])))

    async def _shake_hands(self, connection: socket.socket, address: str) -> None:
        """Turn the connection over to HTTP, if its other end shows a certificate of ours."""
        server = self._runner.server
        assert server is not None
        try:
            context = self._tls.server_context()
            if len(server.connections) >= _CONNECTIONS_MAX:
                connection.close()
                return
            await asyncio.get_running_loop().connect_accepted_socket(
                server, connection, ssl=context, ssl_handshake_timeout=_HANDSHAKE_TIMEOUT_S
            )
        except (OSError, Unavailable) as exc:
            connection.close()
            _logger.info("peer %s was not let in: %s", address, exc)
        except BaseException:
            connection.close()
            raise
        finally:
            self._handshakes.release()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ---- what they get

    def _application(self) -> web.Application:
        application = web.Application()
        image, snapshot = "/v1/images/{name}/{uuid}", "/v1/snapshots/{id}"
        application.add_routes(
            [
                web.get(image, _answering(self._describe_image)),
                web.get(f"{image}/data", _answering(self._send_image)),
                web.get(snapshot, _answering(self._describe_snapshot)),
                web.get(f"{snapshot}/data", _answering(self._send_snapshot)),
            ]
        )
        if self._pool_bytes is not None:
            application.add_routes(PeerBytesRoutes(self._pool_bytes).routes())
        return application

    async def _find_image(self, request: web.Request) -> ImageRecord:
        key = ImageKey(request.match_info["name"], request.match_info["uuid"])
        found = await self._engine.find_image(key)
        if found is None:
            raise web.HTTPNotFound
        return found

    async def _find_snapshot(self, request: web.Request) -> SnapshotRecord:
        found = await self._engine.find_snapshot(request.match_info["id"])
        if found is None:
            raise web.HTTPNotFound
        return found

    async def _describe_image(self, request: web.Request) -> web.Response:
        record = await self._find_image(request)
        return _described(
            Description(
                format=record.format,
                size_bytes=record.size_bytes,
                virtual_size_bytes=record.virtual_size_bytes,
                data_bytes=await in_thread(count_data_bytes, Path(record.artifact_path)),
                checksum=record.checksum,
                source=dict(record.source),
                created_at=record.created_at,
                point_in_time=record.point_in_time,
            )
        )

    async def _describe_snapshot(self, request: web.Request) -> web.Response:
        record = await self._find_snapshot(request)
        path = Path(record.path)
        return _described(
            Description(
                format=ImageFormat.RAW,
                size_bytes=record.size_bytes,
                virtual_size_bytes=-(-record.size_bytes // SECTOR_BYTES) * SECTOR_BYTES,
                data_bytes=await in_thread(count_data_bytes, path),
                checksum=self._checksums.find_or_begin(path),
                source={"type": "sync", "snapshot": record.snapshot_id},
                created_at=datetime.now(UTC),
                point_in_time=record.point_in_time,
            )
        )

    async def _send_image(self, request: web.Request) -> web.StreamResponse:
        record = await self._find_image(request)
        return await self._send(request, Path(record.artifact_path))

    async def _send_snapshot(self, request: web.Request) -> web.StreamResponse:
        record = await self._find_snapshot(request)
        return await self._send(request, Path(record.path))

    async def _send(self, request: web.Request, path: Path) -> web.StreamResponse:
        offset = request.query.get("from", "0")
        if not (offset.isascii() and offset.isdecimal() and len(offset) < 20):
            raise web.HTTPBadRequest(text="from: not a number of bytes")
        if self._streams_left <= 0:
            raise _busy("all streams are taken")
        self._streams_left -= 1
        try:
            reader = await in_thread(FrameReader, path, int(offset))
        except ValueError as exc:
            raise web.HTTPRequestRangeNotSatisfiable(text=str(exc)) from exc
        else:
            with contextlib.closing(reader):
                return await _stream(request, reader)
        finally:
            self._streams_left += 1


def _answering(handler: Handler) -> Handler:
    """Wrap a handler: the domain's errors become answers, of one line each."""

    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except FileNotFoundError:  # deleted between two looks
            raise web.HTTPNotFound from None
        except Unavailable as exc:
            raise _busy(str(exc)) from exc
        except (DomainError, OSError) as exc:
            raise web.HTTPInternalServerError(text=str(exc)) from exc

    return answer


async def _stream(request: web.Request, reader: FrameReader) -> web.StreamResponse:
    """Send all frames; on any trouble the connection ends without END, which says enough."""
    response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
    await response.prepare(request)
    try:
        while piece := await in_thread(reader.read_piece):
            async with asyncio.timeout(_STALL_TIMEOUT_S):
                await response.write(piece)
    except OSError as exc:  # of the disk or the line; TimeoutError is one
        _logger.warning("%s to %s was broken off: %r", request.path, request.remote, exc)
        if request.transport is not None:
            request.transport.abort()
    return response


def _listen(host: str, port: int) -> socket.socket:
    if host:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=128)
    elif socket.has_dualstack_ipv6():
        listener = socket.create_server(
            ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=128
        )
    else:
        listener = socket.create_server(("", port), backlog=128)
    listener.setblocking(False)
    return listener


def _described(description: Description) -> web.Response:
    return web.Response(body=encode_description(description), content_type="application/json")


def _busy(problem: str) -> web.HTTPServiceUnavailable:
    return web.HTTPServiceUnavailable(text=problem, headers={"Retry-After": str(_RETRY_AFTER_S)})
