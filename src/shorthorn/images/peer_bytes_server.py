"""Gives and takes image bytes of this node's pool for the web's edge of a cluster.

Owns the routes for that, and how many are served at once. Must never judge who may do it: the edge
has asked, and the peer server has let nobody in but holders of the authority's certificate. What
they may change is a copy that awaits bytes, and nothing else. Made by `images.peer_server`.

A handler is cancelled when its connection goes: what an upload brought until then is durable, and
what was being made for a reader is given up.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

from aiohttp import web

from shorthorn.domain import errors
from shorthorn.domain.image_bytes import ArtifactForm
from shorthorn.domain.models import ImageKey
from shorthorn.images import peer_bytes_wire as wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from shorthorn.domain.image_bytes import OpenArtifact
    from shorthorn.images.local_bytes import PoolBytes

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_logger = logging.getLogger(__name__)

READERS_MAX = 8
SENDERS_MAX = 8
"""More than people do at once; each costs a thread's time and some MiB. Beside the streams of
peers, which must not wait for somebody's slow line."""

_STALL_S = 600.0
"""A line on which nothing moves for so long has nobody at its other end. Who pauses a download for
longer resumes it."""

_STATUS: dict[type[errors.DomainError], int] = {
    errors.InvalidArgument: 400,
    errors.NotFound: 404,
    errors.OffsetMismatch: 409,
    errors.SizeOutOfRange: 416,
    errors.ImageFailed: 422,
    errors.InUse: 423,
    errors.Unavailable: 503,
    errors.NoSpace: 507,
}


class PeerBytesRoutes:
    """The routes of one pool's bytes."""

    def __init__(self, pool: PoolBytes) -> None:
        self._pool = pool
        self._readers = _Places(READERS_MAX)
        self._senders = _Places(SENDERS_MAX)

    def routes(self) -> list[web.RouteDef]:
        image = "/v1/images/{name}/{uuid}"
        upload, form = f"{image}/upload", f"{image}/bytes/{{form}}"
        return [
            web.head(upload, _telling(self._upload_state)),
            web.patch(upload, _telling(self._append)),
            web.delete(upload, _telling(self._abandon)),
            web.head(form, _telling(self._describe)),
            web.get(form, _telling(self._read), allow_head=False),
        ]

    async def _upload_state(self, request: web.Request) -> web.StreamResponse:
        state = await self._pool.upload_state(_key(request))
        return web.Response(headers={wire.UPLOAD_HEADER: wire.encode_state(state)})

    async def _append(self, request: web.Request) -> web.StreamResponse:
        offset = _number(request, "offset")
        if offset is None:
            raise errors.InvalidArgument("offset", "is missing")
        with self._senders.taken():
            state = await self._pool.append(_key(request), offset, _body(request))
        return web.Response(status=204, headers={wire.UPLOAD_HEADER: wire.encode_state(state)})

    async def _abandon(self, request: web.Request) -> web.StreamResponse:
        await self._pool.abandon(_key(request))
        return web.Response(status=204)

    async def _describe(self, request: web.Request) -> web.StreamResponse:
        artifact = await self._pool.describe(_key(request), _form(request))
        return web.Response(headers={wire.ARTIFACT_HEADER: wire.encode_artifact(artifact)})

    async def _read(self, request: web.Request) -> web.StreamResponse:
        start, stop = _number(request, "start") or 0, _number(request, "stop")
        with self._readers.taken():
            async with contextlib.AsyncExitStack() as stack:
                reading = self._pool.read(_key(request), _form(request), start=start, stop=stop)
                async with _signs_of_life(request):
                    opened = await stack.enter_async_context(reading)
                return await _send(request, opened, start, stop)


class _Places:
    """So many at once; the next one hears Unavailable."""

    def __init__(self, count: int) -> None:
        self._left = count

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        if self._left <= 0:
            raise errors.Unavailable("image bytes", "all streams of the node are taken")
        self._left -= 1
        try:
            yield
        finally:
            self._left += 1


def _telling(handler: Handler) -> Handler:
    """Wrap a handler: errors of the domain are told in a header."""

    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except errors.DomainError as exc:
            told = exc
        except OSError as exc:
            told = errors.Unavailable("pool", str(exc))
        status = next((_STATUS[kind] for kind in type(told).__mro__ if kind in _STATUS), 500)
        return web.Response(status=status, headers={wire.ERROR_HEADER: wire.encode_error(told)})

    return answer


@contextlib.asynccontextmanager
async def _signs_of_life(request: web.Request) -> AsyncIterator[None]:
    """Say 102 Processing every few seconds: a qcow2 image takes minutes to be made, and who asked
    cannot tell that from a node that died.
    """

    async def say() -> None:
        while request.transport is not None:
            await asyncio.sleep(wire.KEEPALIVE_S)
            if request.transport is not None:
                request.transport.write(b"HTTP/1.1 102 Processing\r\n\r\n")

    saying = asyncio.create_task(say())
    try:
        yield
    finally:
        saying.cancel()


async def _send(
    request: web.Request, opened: OpenArtifact, start: int, stop: int | None
) -> web.StreamResponse:
    """Send all chunks; on any trouble the connection ends before its time, which says enough."""
    artifact = opened.artifact
    response = web.StreamResponse(
        headers={
            "Content-Type": "application/octet-stream",
            wire.ARTIFACT_HEADER: wire.encode_artifact(artifact),
        }
    )
    if artifact.size_bytes is not None:
        response.content_length = (artifact.size_bytes if stop is None else stop) - start
    await response.prepare(request)
    try:
        async for chunk in opened.chunks:
            async with asyncio.timeout(_STALL_S):
                await response.write(chunk)
        await response.write_eof()
    except (OSError, errors.DomainError) as exc:  # of the disk or the line; TimeoutError is one
        _logger.warning("%s to %s was broken off: %r", request.path, request.remote, exc)
        if request.transport is not None:
            request.transport.abort()
    return response


async def _body(request: web.Request) -> AsyncIterator[bytes]:
    """Yield what comes; reading on is what lets more come."""
    pieces = request.content.iter_any()
    while True:
        async with asyncio.timeout(_STALL_S):
            try:
                piece = await anext(pieces)
            except StopAsyncIteration:
                return
        yield piece


def _key(request: web.Request) -> ImageKey:
    return ImageKey(request.match_info["name"], request.match_info["uuid"])


def _form(request: web.Request) -> ArtifactForm:
    try:
        return ArtifactForm(request.match_info["form"])
    except ValueError:
        raise web.HTTPNotFound from None


def _number(request: web.Request, name: str) -> int | None:
    text = request.query.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise errors.InvalidArgument(name, "is not a number of bytes")
    return int(text)
