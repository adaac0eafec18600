"""Event streams: what changes is on the page a moment later.

Owns: following the registries for one open page, and its connection; `web.feeds` knows what it is
told. Must never: send anything that the user may not see, or ask for it otherwise than with their
rights (asked anew every fifteen seconds). Route `/events`.

A page says by `mark` what it has seen. So nothing is lost between its rendering and the stream, nor
while a connection was broken: where the mark is another one now, `list` is the first event.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any, Final

from starlette.responses import Response
from starlette.routing import Route

from shorthorn.domain.errors import Unavailable
from shorthorn.kube.user_api import Refused
from shorthorn.web.feeds import Changes, Feed, feed_of
from shorthorn.web.site import session_of, site_of
from shorthorn.web.watched import mark_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from shorthorn.domain.ports import Registry

HEARTBEAT_S: Final = 15.0
#: Changes of so short a time are one event: an import changes three objects at once.
_GATHER_S: Final = 0.03
_RETRY_MS: Final = 1000


async def events(request: Request) -> Response:
    """Answer with the stream of the page that asks."""
    feed = feed_of(request)
    site = site_of(request)
    for resource in feed.resources:
        await site.access.require(session_of(request), "list", resource)
    await feed.prepare({kind: set() for kind in feed.kinds})
    current = mark_of(*(registry.cached() for registry in feed.kinds.values()))
    is_behind = request.query_params.get("mark", "") != current
    return EventStream(request, feed, is_behind=is_behind)


routes = [Route("/events", events)]


class EventStream(Response):
    """A response without end: it ends with the session, with the program, or with the page."""

    def __init__(self, request: Request, feed: Feed, *, is_behind: bool) -> None:
        super().__init__(media_type="text/event-stream")
        self._site = site_of(request)
        self._session = session_of(request)
        self._feed = feed
        self._is_behind = is_behind
        self._wake = asyncio.Event()
        self._stop = asyncio.Event()
        self._pending: dict[str, set[str]] = {kind: set() for kind in feed.kinds}
        self._seen: dict[str, dict[str, Any]] = {
            kind: {obj.meta.name: obj for obj in registry.cached()}
            for kind, registry in feed.kinds.items()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        headers = [h for h in self.raw_headers if h[0] != b"content-length"]
        headers += [(b"cache-control", b"no-store"), (b"x-accel-buffering", b"no")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        self._site.streams.add(self._stop)
        tasks = [asyncio.create_task(self._gone(receive)), asyncio.create_task(self._stopped())]
        tasks += [
            asyncio.create_task(self._follow(kind, registry))
            for kind, registry in self._feed.kinds.items()
        ]
        try:
            # OSError: the page went away in mid-sentence.
            with contextlib.suppress(OSError), self._site.rates.hearing(self._stalled):
                async for chunk in self._chunks():
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._site.streams.discard(self._stop)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _chunks(self) -> AsyncIterator[bytes]:
        yield f"retry: {_RETRY_MS}\n\n".encode()
        if self._is_behind:
            yield _event("list", "")
        checked_at = time.monotonic()
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_S):
                    await self._wake.wait()
            if not self._wake.is_set():
                yield b": still here\n\n"
                for name, changed in (await self._feed.recall()).items():
                    self._pending[name] |= changed
                    if changed:
                        self._wake.set()
            if time.monotonic() - checked_at >= HEARTBEAT_S:
                checked_at = time.monotonic()
                if not await self._may_stay():
                    yield _event("end", "")
                    return
            elif not self._site.sessions.is_current(self._session):
                yield _event("end", "")
                return
            if self._wake.is_set() and not self._stop.is_set():
                await asyncio.sleep(_GATHER_S)
                changes = self._take()
                await self._feed.prepare(changes)
                for name, data in self._feed.react(changes):
                    yield _event(name, data)

    def _take(self) -> Changes:
        self._wake.clear()
        taken, self._pending = self._pending, {kind: set() for kind in self._feed.kinds}
        return taken

    async def _may_stay(self) -> bool:
        if not self._site.sessions.is_current(self._session):
            return False
        try:
            for resource in self._feed.resources:
                await self._site.access.require(self._session, "list", resource)
        except Refused:
            return False
        except Unavailable:
            return True  # nobody knows; what is shown is what was shown before
        return True

    async def _follow(self, kind: str, registry: Registry[Any]) -> None:
        seen = self._seen[kind]
        async with registry.subscribe() as names:
            async for name in names:
                current = registry.find_cached(name)
                if seen.get(name) is current:
                    continue  # known since the page was made
                if current is None:
                    seen.pop(name, None)
                else:
                    seen[name] = current
                self._pending[kind].add(name)
                self._wake.set()

    def _stalled(self, copy_name: str) -> None:
        """Have the page told of a copy that did not change, whose speed is no longer true."""
        if "copies" in self._pending:
            self._pending["copies"].add(copy_name)
            self._wake.set()

    async def _gone(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._stop.set()
        self._wake.set()

    async def _stopped(self) -> None:
        await self._stop.wait()
        self._wake.set()


def _event(name: str, data: str) -> bytes:
    lines = "".join(f"data: {line}\n" for line in data.splitlines() or [""])
    return f"event: {name}\n{lines}\n".encode()
