"""One HTTP request for the rest of a file, and what its answer means.

Owns URLs, redirects, proxies, status codes and the headers of ranges. Must never touch a disk or
decide to try again: it says whether trying again makes sense. Called by `images.download`.

Only GET is used (a presigned URL is often good for nothing else), identity encoding is asked for,
and credentials come from the URL alone, never from a netrc file. The usual proxy variables of the
environment are honoured, as every other tool on the host does, but never for loopback addresses.
There is no filter on addresses: who may name a URL is decided where images are requested.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import socket
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING

import aiohttp
from yarl import URL

from shorthorn.images import http_session

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

REDIRECTS_MAX = 10
#: No byte for this long: the line is dead. Longhorn's value; total time is not limited.
IDLE_TIMEOUT_S = 30.0
CONNECT_TIMEOUT_S = 30.0
#: Worth another try: timeouts, "too early", throttling, and whatever is the server's own trouble.
_RETRIABLE = frozenset({408, 425, 429})
_CONTENT_RANGE = re.compile(r"bytes (?:(\d{1,19})-(\d{1,19})|\*)/(\d{1,19}|\*)")


class SourceRefused(Exception):
    """The source says no, and asking again will not help; `problem` is for the user."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem


class SourceTroubled(Exception):
    """The source or the way to it failed for now; `retry_after_s` where the server asked for it."""

    def __init__(self, problem: str, retry_after_s: float = 0.0) -> None:
        super().__init__(problem)
        self.problem = problem
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class Part:
    """An answer that is about to deliver bytes `offset_bytes`… of a file of `total_bytes` (0:
    unknown).

    `offset_bytes` is 0, whatever was asked for, where the server starts over.
    """

    response: aiohttp.ClientResponse
    offset_bytes: int
    total_bytes: int
    etag: str
    last_modified: str

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as it arrives. Raises: SourceTroubled: it broke off or stalled."""
        try:
            async for chunk in self.response.content.iter_any():
                yield chunk
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            raise SourceTroubled(_describe(exc)) from exc


class FileChanged(Exception):
    """What was taken so far is of no use: the file is another one now, or cannot be had in
    parts.
    """

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem


class AlreadyComplete(Exception):
    """The server says (416) that the file ends exactly where the rest was to begin."""


def parse_url(text: str) -> URL:
    """Return an absolute http or https URL, its escapes as they are (signatures cover them).

    Raises: SourceRefused.
    """
    stripped = text.strip()
    is_plain = stripped.isascii() and stripped.isprintable() and " " not in stripped
    try:
        url = URL(stripped, encoded=is_plain)
        url.port  # noqa: B018 - says ValueError for one that is none
    except ValueError as exc:
        raise SourceRefused(f"the URL cannot be read: {exc}") from exc
    if url.scheme not in ("http", "https"):
        raise SourceRefused(
            f"only http and https URLs can be downloaded, not {url.scheme or stripped!r}"
        )
    if not url.host:
        raise SourceRefused("the URL names no host")
    return url.with_fragment(None)


def shown(url: URL) -> str:
    """Return the URL for messages, without credentials: no user, no password, no query."""
    return str(url.with_user(None).with_query(None))


def open_session() -> aiohttp.ClientSession:
    """Return a session with our time limits; the caller closes it."""
    return http_session.open_session(connect_s=CONNECT_TIMEOUT_S, idle_s=IDLE_TIMEOUT_S)


@contextlib.asynccontextmanager
async def request_rest(
    session: aiohttp.ClientSession, url: URL, *, offset_bytes: int, validator: str
) -> AsyncIterator[Part]:
    """GET `url` from `offset_bytes` on, if the file is still the one that `validator` names.

    Raises: SourceRefused, SourceTroubled, FileChanged, AlreadyComplete.
    """
    headers = {"Range": f"bytes={offset_bytes}-", "If-Range": validator} if offset_bytes else {}
    try:
        response = await _get(session, url, headers)
    except UnicodeError as exc:  # a host that IDNA cannot spell, of the caller or of a redirect
        raise SourceRefused(f"the URL names no possible host: {exc}") from exc
    except (aiohttp.ClientError, TimeoutError, OSError) as exc:
        if isinstance(exc, aiohttp.InvalidURL | aiohttp.ClientConnectorCertificateError):
            raise SourceRefused(_describe(exc)) from exc
        raise SourceTroubled(_describe(exc)) from exc
    try:
        yield _interpret(response, offset_bytes)
    finally:
        response.close()


async def _get(
    session: aiohttp.ClientSession, url: URL, headers: dict[str, str]
) -> aiohttp.ClientResponse:
    """GET through redirects, which must stay on http(s) and never leave https for http."""
    for _ in range(REDIRECTS_MAX + 1):
        response = await session.get(
            url, headers=headers, allow_redirects=False, proxy=environment_proxy(url)
        )
        if response.status not in (301, 302, 303, 307, 308):
            return response
        location = response.headers.get("Location", "")
        response.close()
        if not location:
            raise SourceRefused(f"{shown(url)} redirects to nowhere")
        target = _join(url, location)
        if url.scheme == "https" and target.scheme == "http":
            raise SourceRefused(f"{shown(url)} redirects from https to http, which is refused")
        url = target
    raise SourceRefused(f"{shown(url)} redirects more than {REDIRECTS_MAX} times")


def _join(url: URL, location: str) -> URL:
    try:
        return parse_url(str(url.join(URL(location, encoded=location.isascii()))))
    except ValueError as exc:
        raise SourceRefused(f"{shown(url)} redirects to a URL that cannot be read") from exc


def environment_proxy(url: URL) -> URL | None:
    """Return the proxy for this URL by http_proxy, https_proxy and no_proxy, None for loopback."""
    host = url.host or ""
    if host == "localhost" or _is_loopback(host):
        return None
    if urllib.request.proxy_bypass_environment(host):  # type: ignore[attr-defined]
        return None
    proxy = urllib.request.getproxies_environment().get(url.scheme)
    return URL(proxy) if proxy else None


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def _interpret(response: aiohttp.ClientResponse, asked_offset: int) -> Part:
    """Turn status and headers into a Part. Raises: what `request_rest` says."""
    status = response.status
    answered = f"{response.url.host} answered {status} {response.reason or ''}".rstrip()
    if status in _RETRIABLE or status >= 500:
        raise SourceTroubled(answered, _retry_after_s(response))
    if status == 416 and asked_offset:
        _, total = _content_range(response)
        if total == asked_offset:
            raise AlreadyComplete
        raise FileChanged("the file on the server is shorter now")
    if status not in (200, 206) or (status == 206 and not asked_offset):
        raise SourceRefused(answered)
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise SourceRefused(
            f"{response.url.host} sends the file {encoding}-encoded although it was asked not to; "
            "its bytes could not be verified"
        )
    length = response.content_length or 0
    offset, total = (0, length) if status == 200 else _content_range(response)
    if offset not in (0, asked_offset) or (status == 206 and offset != asked_offset):
        raise SourceTroubled(f"{answered}, but not with the part that was asked for")
    return Part(
        response,
        offset,
        total,
        response.headers.get("ETag", ""),
        response.headers.get("Last-Modified", ""),
    )


def _content_range(response: aiohttp.ClientResponse) -> tuple[int, int]:
    """Return (first byte, total), -1 and 0 where not told."""
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
    if match is None:
        return -1, 0
    return (
        int(match[1]) if match[1] is not None else -1,
        int(match[3]) if match[3] != "*" else 0,
    )


def _retry_after_s(response: aiohttp.ClientResponse) -> float:
    text = response.headers.get("Retry-After", "")
    return float(text) if text.isdecimal() else 0.0


def _describe(exc: BaseException) -> str:
    if isinstance(exc, TimeoutError):
        return f"nothing arrived for {IDLE_TIMEOUT_S:.0f} s"
    if isinstance(exc, aiohttp.ClientConnectorError) and not isinstance(
        exc, aiohttp.ClientSSLError
    ):
        return f"cannot connect to {exc.host}:{exc.port}: {_reason(exc.os_error)}"
    return str(exc) or type(exc).__name__


def _reason(exc: OSError) -> str:
    """Asyncio puts the address where the reason belongs: "Connect call failed ('::1', 1)"."""
    if exc.errno is None or isinstance(exc, socket.gaierror):
        return exc.strerror or str(exc)
    return os.strerror(exc.errno)
