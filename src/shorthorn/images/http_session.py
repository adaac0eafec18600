"""The HTTP client of everything that fetches or sends an image's bytes.

Owns what all of them want of a session: bytes as they are, no cookies, a limit of silence and none
of time. Must never send a request. Called by `images.http_source` and by the clients of peers.
"""

from __future__ import annotations

import aiohttp

_READ_BUFFER_BYTES = 1 << 20


def open_session(
    *, connect_s: float, idle_s: float, connector: aiohttp.BaseConnector | None = None
) -> aiohttp.ClientSession:
    """Return a session; the caller closes it. `idle_s`: so long without a byte, the line is dead.

    `connector`: where connections are not simply kept for the next request.
    """
    return aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_s, sock_read=idle_s),
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": "shorthorn", "Accept": "*/*", "Accept-Encoding": "identity"},
        read_bufsize=_READ_BUFFER_BYTES,
    )
