"""One question to one peer, and what its answer means.

Owns the client's side of TLS and HTTP. Must never talk to anybody whose certificate is not of our
authority, follow a redirect, use a proxy, or decide to try again. Called by `images.peer_transfer`.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Protocol

import aiohttp
from yarl import URL

from shorthorn.images.http_session import open_session
from shorthorn.images.peer_wire import (
    DESCRIPTION_BYTES_MAX,
    Description,
    Violation,
    decode_description,
)

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Iterator
    from types import TracebackType

    from shorthorn.domain.models import Peer

#: In one network; a node that is gone shall not cost minutes.
CONNECT_TIMEOUT_S = 10.0
#: No byte for this long: the line is dead. Total time is not limited.
IDLE_TIMEOUT_S = 30.0
_PROBLEM_BYTES_MAX = 500


class ClientTls(Protocol):
    """Whence the client's side of TLS comes (`kube.peer_identity`)."""

    @property
    def server_name(self) -> str:
        """The name in every peer's certificate."""

    def client_context(self) -> ssl.SSLContext:
        """Return what the next connection is to use. Raises Unavailable: there is none yet."""


class PeerTroubled(Exception):
    """The peer, or the way to it, failed for now; `problem` is for the user."""

    def __init__(self, problem: str, retry_after_s: float = 0.0) -> None:
        super().__init__(problem)
        self.problem = problem
        self.retry_after_s = retry_after_s


class PeerLacks(Exception):
    """The peer does not have it."""


class PeerClient:
    """Asks peers. `async with` it; connections are kept for its time, in which certificates may
    change.
    """

    def __init__(self, tls: ClientTls) -> None:
        self._tls = tls
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> PeerClient:
        self._session = open_session(connect_s=CONNECT_TIMEOUT_S, idle_s=IDLE_TIMEOUT_S)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._session is not None
        await self._session.close()

    async def describe(self, peer: Peer, path: str) -> Description:
        """Return what `peer` says of `path`.

        Raises: PeerLacks. PeerTroubled. Violation. Unavailable: we have no certificate.
        """
        async with self._answer(peer, path) as response:
            text = bytearray()
            with _troubled():
                async for piece in response.content.iter_any():
                    text += piece
                    if len(text) > DESCRIPTION_BYTES_MAX:
                        raise Violation("describes it without an end")
        return decode_description(bytes(text))

    @contextlib.asynccontextmanager
    async def stream(
        self, peer: Peer, path: str, *, offset_bytes: int
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Yield the pieces of the frames of `path`'s bytes from `offset_bytes` on.

        Raises: as `describe`, also while they arrive.
        """
        async with self._answer(peer, f"{path}/data", offset_bytes=offset_bytes) as response:
            yield _pieces(response)

    @contextlib.asynccontextmanager
    async def _answer(
        self, peer: Peer, path: str, *, offset_bytes: int = 0
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        assert self._session is not None
        response = await self._get(self._session, peer, path, offset_bytes)
        try:
            await _judge(response)
            yield response
        finally:
            response.close()

    async def _get(
        self, session: aiohttp.ClientSession, peer: Peer, path: str, offset_bytes: int
    ) -> aiohttp.ClientResponse:
        query = f"?from={offset_bytes}" if offset_bytes else ""
        try:
            url = URL(f"https://{peer.address}{path}{query}", encoded=True)
            url.port  # noqa: B018 - says ValueError for one that is none
        except ValueError as exc:
            raise PeerTroubled(f"its address {peer.address!r} cannot be read") from exc
        context = self._tls.client_context()
        with _troubled():
            return await session.get(
                url, ssl=context, server_hostname=self._tls.server_name, allow_redirects=False
            )


@contextlib.contextmanager
def _troubled() -> Iterator[None]:
    try:
        yield
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as exc:
        raise PeerTroubled(_describe(exc)) from exc


async def _judge(response: aiohttp.ClientResponse) -> None:
    if response.status == 200:
        return
    if response.status == 404:
        raise PeerLacks
    with _troubled():
        said = await response.content.read(_PROBLEM_BYTES_MAX)
    text = said.decode(errors="replace").strip()
    shown = "".join(letter for letter in text if letter.isprintable())
    retry_after = response.headers.get("Retry-After", "")
    raise PeerTroubled(
        f"answered {response.status}" + (f": {shown}" if shown else ""),
        float(retry_after) if retry_after.isascii() and retry_after.isdecimal() else 0.0,
    )


async def _pieces(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    with _troubled():
        async for piece in response.content.iter_any():
            yield piece


def _describe(exc: BaseException) -> str:
    if isinstance(exc, TimeoutError):
        return f"did not answer within {IDLE_TIMEOUT_S:.0f} s"
    return str(exc) or type(exc).__name__
