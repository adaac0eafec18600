"""Image bytes of one node's pool, asked for and sent through its peer server.

Owns the requests, and what answers and broken lines mean. Must never choose the node
(`images.peer_bytes` does), nor talk to anybody whose certificate is not of our authority. Memory is
a few MiB for each stream: neither side reads on before the other has taken.

Every request has a connection of its own: one that was kept could have been closed meanwhile, and a
body that comes from elsewhere cannot be sent twice.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

import aiohttp
from yarl import URL

from shorthorn.domain import errors
from shorthorn.domain.image_bytes import Artifact, ArtifactForm, OpenArtifact, UploadState
from shorthorn.images import peer_bytes_wire as wire
from shorthorn.images.http_session import open_session
from shorthorn.images.peer_client import CONNECT_TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from shorthorn.domain.models import ImageKey, Peer
    from shorthorn.images.peer_client import ClientTls

IDLE_TIMEOUT_S: Final = 60.0
"""No byte and no sign of life for so long: the node is away. What was sent last may have to become
durable meanwhile, on a slow disk."""

_CHUNK_BYTES: Final = 1 << 20
_NOTHING: Final = b""


class PeerBytesClient:
    """Asks nodes. `close` it at the end."""

    def __init__(self, tls: ClientTls) -> None:
        self._tls = tls
        self._session = open_session(
            connect_s=CONNECT_TIMEOUT_S,
            idle_s=IDLE_TIMEOUT_S,
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
        )

    async def close(self) -> None:
        """End all requests."""
        await self._session.close()

    async def upload_state(self, peer: Peer, key: ImageKey) -> UploadState:
        """See domain.image_bytes.ImageBytes."""
        async with self._ask("HEAD", peer, wire.upload_path(key)) as response:
            return wire.decode_state(response.headers.get(wire.UPLOAD_HEADER, ""), peer.node_id)

    async def append(
        self, peer: Peer, key: ImageKey, offset_bytes: int, chunks: AsyncIterator[bytes]
    ) -> UploadState:
        """See domain.image_bytes.ImageBytes.

        What `chunks` raises ends the request as if all had been sent, so that the node has made
        durable what came before by the time that it is raised here.
        """
        source = _Source(chunks)
        path = f"{wire.upload_path(key)}?offset={offset_bytes}"
        try:
            async with self._ask("PATCH", peer, path, source) as response:
                told = response.headers.get(wire.UPLOAD_HEADER, "")
        except errors.Unavailable:
            if source.failure is not None:
                raise source.failure from None
            raise
        finally:
            await source.stop()
        if source.failure is not None:
            raise source.failure
        return wire.decode_state(told, peer.node_id)

    async def abandon(self, peer: Peer, key: ImageKey) -> None:
        """See domain.image_bytes.ImageBytes."""
        async with self._ask("DELETE", peer, wire.upload_path(key)):
            pass

    async def describe(self, peer: Peer, key: ImageKey, form: ArtifactForm) -> Artifact:
        """See domain.image_bytes.ImageBytes."""
        async with self._ask("HEAD", peer, wire.bytes_path(key, form)) as response:
            return _artifact(response, peer)

    @contextlib.asynccontextmanager
    async def read(
        self, peer: Peer, key: ImageKey, form: ArtifactForm, *, start: int, stop: int | None
    ) -> AsyncIterator[OpenArtifact]:
        """See domain.image_bytes.ImageBytes. The chunks raise Unavailable where the line breaks."""
        span = f"?start={start}" + ("" if stop is None else f"&stop={stop}")
        async with self._ask("GET", peer, f"{wire.bytes_path(key, form)}{span}") as response:
            yield OpenArtifact(_artifact(response, peer), _chunks(response, peer))

    @contextlib.asynccontextmanager
    async def _ask(
        self, method: str, peer: Peer, path: str, body: AsyncIterator[bytes] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Yield a good answer, and end the connection afterwards, whatever of it is still to come.

        Raises: what the node tells of. Unavailable: it is away, or we have no certificate.
        """
        context = self._tls.client_context()
        with _reaching(peer):
            response = await self._session.request(
                method,
                URL(f"https://{peer.address}{path}", encoded=True),
                data=body,
                ssl=context,
                server_hostname=self._tls.server_name,
                allow_redirects=False,
            )
        try:
            if not 200 <= response.status < 300:
                told = response.headers.get(wire.ERROR_HEADER)
                if told is None:
                    raise errors.Unavailable(f"node {peer.node_id}", f"answered {response.status}")
                raise wire.decode_error(told, peer.node_id)
            yield response
        finally:
            response.close()


class _Source:
    """A body whose end by an error is no error of the request; `failure` keeps it.

    At most one chunk is asked for at a time, and none after `stop`, which waits for that one:
    whoever owns the chunks may close them then.
    """

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self.failure: Exception | None = None
        self._chunks = chunks
        self._turn = asyncio.Lock()
        self._is_over = False

    def __aiter__(self) -> _Source:
        return self

    async def __anext__(self) -> bytes:
        chunk = _NOTHING
        async with self._turn:
            while not chunk:  # an empty chunk would be the end of the body
                if self._is_over:
                    raise StopAsyncIteration
                try:
                    chunk = await anext(self._chunks)
                except StopAsyncIteration:
                    self._is_over = True
                except Exception as exc:  # whatever it is, the caller gets it
                    self.failure, self._is_over = exc, True
        return chunk

    async def stop(self) -> None:
        async with self._turn:
            self._is_over = True


@contextlib.contextmanager
def _reaching(peer: Peer) -> Iterator[None]:
    """Translate what the line says: the node is away for now."""
    try:
        yield
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as exc:
        problem = str(exc) or type(exc).__name__
        raise errors.Unavailable(f"node {peer.node_id}", problem) from exc


async def _chunks(response: aiohttp.ClientResponse, peer: Peer) -> AsyncIterator[bytes]:
    with _reaching(peer):
        async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
            yield chunk


def _artifact(response: aiohttp.ClientResponse, peer: Peer) -> Artifact:
    return wire.decode_artifact(response.headers.get(wire.ARTIFACT_HEADER, ""), peer.node_id)
