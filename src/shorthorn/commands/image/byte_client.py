"""The byte endpoints of the web edge, `/api/v1/images/…`, as a client sees them.

Owns: requests, what an answer means, and which errors may pass by themselves. Must never: know a
file, or try again by itself (`steadily` does that for its callers). Called by `uploading` and
`downloading`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

import aiohttp

from shorthorn.commands.image.endpoint import Endpoint
from shorthorn.domain.image_bytes import UPLOAD_SAMPLE, ArtifactForm

BLOCK_BYTES: Final = 1 << 20
_CONNECT_S: Final = 10.0
_SILENT_S: Final = 60.0
"""A connection on which nothing moves for so long is given up (arbitrary). The last byte of a piece
may wait for an fsync of all that was sent."""
_MAKING_S: Final = 3600.0
"""A qcow2 is made before its first byte is sent."""
_SAID_CHARS: Final = 400
_ERROR_BYTES: Final = 65_536
_RETRY_S, _RETRY_S_MAX = 0.2, 5.0
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})


class Refused(Exception):
    """The server says no, and will say so again."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Lost(Exception):
    """The connection broke, or the server is away for the moment. `after_s`: when to ask again."""

    def __init__(self, message: str, after_s: float = 0.0) -> None:
        super().__init__(message)
        self.after_s = after_s


@dataclass(frozen=True, slots=True)
class Offset:
    """How much of an upload is durable there, and of how much; `length` is None where unknown.

    `sample`: of what is there (`domain.upload_sample`); empty where nobody said.
    """

    offset: int
    length: int | None
    sample: str = ""


class ByteClient:
    """One user's way to the bytes. Use as an async context manager."""

    def __init__(self, locate: Callable[[], Endpoint]) -> None:
        self._locate = locate
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> ByteClient:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=_SILENT_S)
        self._session = aiohttp.ClientSession(
            timeout=timeout, read_bufsize=2 * BLOCK_BYTES, auto_decompress=False
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._session is not None
        await self._session.close()

    async def find_offset(self, image: str) -> Offset | None:
        """Return where the upload goes on; None where nothing awaits bytes (yet, or any more).

        Raises: Refused, Lost.
        """
        async with self._request("HEAD", image, "upload") as answer:
            if answer.status == 404:
                return None
            await _check(answer)
            return _offset(answer)

    async def append(self, image: str, offset: int, length: int, body: AsyncIterator[bytes]) -> int:
        """Send `length` bytes that belong at `offset`; return the offset after them.

        Where the server is elsewhere it says where: that is returned, and nothing was appended.
        Raises: Refused, Lost: some of it may have become durable; `find_offset` says how much.
        """
        headers = {
            "Upload-Offset": str(offset),
            "Content-Type": "application/offset+octet-stream",
            "Content-Length": str(length),
        }
        async with self._request("PATCH", image, "upload", headers, body) as answer:
            if answer.status != 409 or "Upload-Offset" not in answer.headers:
                await _check(answer)
            return _offset(answer).offset

    @contextlib.asynccontextmanager
    async def open(
        self, image: str, form: ArtifactForm, headers: dict[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Yield the answer to a GET: 200, 206 or 416. Raises: Refused, Lost, also while its body is
        read.
        """
        async with self._request("GET", image, form, headers) as answer:
            if answer.status != 416:
                await _check(answer)
            yield answer

    @contextlib.asynccontextmanager
    async def _request(
        self,
        method: str,
        image: str,
        what: str,
        headers: dict[str, str] | None = None,
        body: AsyncIterator[bytes] | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        assert self._session is not None
        endpoint = self._locate()
        own = {"Authorization": f"Bearer {endpoint.token}", "Tus-Resumable": "1.0.0"}
        own["Accept-Encoding"] = "identity"
        url = f"{endpoint.url}/api/v1/images/{quote(image, safe='')}/{what}"
        read_s = _MAKING_S if what == ArtifactForm.QCOW2 else _SILENT_S
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=read_s)
        try:
            async with self._session.request(
                method,
                url,
                headers={**own, **(headers or {})},
                data=body,
                timeout=timeout,
                allow_redirects=False,  # the token is for nobody else
            ) as answer:
                yield answer
        except (aiohttp.ClientError, TimeoutError) as exc:
            raise Lost(_in_words(exc, endpoint.url)) from exc
        except (ConnectionError, BrokenPipeError) as exc:
            raise Lost(f"{exc.strerror or type(exc).__name__}") from exc


class Patience:
    """How long trying again makes sense: until nothing has moved for some time."""

    def __init__(self, retry_for_s: float) -> None:
        self._retry_for_s = retry_for_s
        self._delay_s = _RETRY_S
        self._moved_at = asyncio.get_running_loop().time()

    def moved(self) -> None:
        """Say that bytes have moved."""
        self._moved_at = asyncio.get_running_loop().time()
        self._delay_s = _RETRY_S

    async def wait(self, after: Exception | None = None) -> None:
        """Wait before the next attempt. Raises: `after`, or TimeoutError, where it is enough."""
        if asyncio.get_running_loop().time() - self._moved_at >= self._retry_for_s:
            raise after or TimeoutError
        asked_s = after.after_s if isinstance(after, Lost) else 0.0
        await asyncio.sleep(max(self._delay_s, min(asked_s, self._retry_for_s)))
        self._delay_s = min(self._delay_s * 2, _RETRY_S_MAX)


def _in_words(exc: Exception, url: str) -> str:
    """Return what a lost connection means to a user, and what can be done about it."""
    match exc:
        case aiohttp.ClientSSLError():
            return f"the certificate of {url} is not trusted; name another --server"
        case aiohttp.ClientConnectorError():
            cause = exc.os_error
            why = cause.strerror or "no connection"
            if cause.errno is not None and cause.errno > 0:  # asyncio puts its own words there
                why = os.strerror(cause.errno)
            return f"{url}: {why}; is the service running there, or its port forwarded?"
        case TimeoutError():
            return f"{url} does not answer in time"
        case aiohttp.ServerDisconnectedError() | aiohttp.ClientPayloadError():
            return f"{url} ended the connection"
        case OSError() if exc.strerror:
            return exc.strerror
    return f"{type(exc).__name__} {exc}".strip()


def _offset(answer: aiohttp.ClientResponse) -> Offset:
    try:
        length = answer.headers.get("Upload-Length")
        offset = int(answer.headers["Upload-Offset"])
        sample = answer.headers.get(UPLOAD_SAMPLE, "")
        return Offset(offset, int(length) if length else None, sample)
    except (KeyError, ValueError):
        raise Refused(
            answer.status, f"{answer.url} answered without an Upload-Offset; is it the web edge?"
        ) from None


async def _check(answer: aiohttp.ClientResponse) -> None:
    """Raise Refused or Lost where an answer is no success."""
    if answer.status < 300:
        return
    body = b"" if answer.method == "HEAD" else await answer.content.read(_ERROR_BYTES)
    said = _said(body.decode("utf-8", "replace"))
    message = said.get("message") or answer.reason or f"status {answer.status}"
    # A connection of ours that broke may count as open there for a while (InUse).
    is_busy = answer.status == 409 and answer.method == "PATCH"
    if answer.status in _PASSING or is_busy:
        after = answer.headers.get("Retry-After", "")
        raise Lost(message, float(after) if after.isdecimal() else 0.0)
    if answer.status == 401:
        message = f"the web edge does not know your token ({message})"
    raise Refused(answer.status, message)


def _said(text: str) -> dict[str, str]:
    """Return what an error's body says, on one line; what is no JSON is a message as a whole."""
    try:
        said = json.loads(text)
    except ValueError:
        said = {"message": text}
    members = said.items() if isinstance(said, dict) else ()
    lines = {key: " ".join(value.split()) for key, value in members if isinstance(value, str)}
    return {key: line[:_SAID_CHARS] for key, line in lines.items()}
