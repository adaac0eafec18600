"""A watch as a response: initial state, then changes, one JSON line each.

Owns the life of one watch connection: where it begins, bookmarks, its end at a timeout, at the
client's departure or when the client is too slow. Called by `handlers`; the changes come from
`watch.WatchHub`.
Source: kubernetes.io "Efficient detection of changes"; apiserver `pkg/endpoints/handlers/watch.go`.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.responses import Response

from shorthorn.standalone.apiserver import status
from shorthorn.standalone.apiserver.lists import Scope, matching
from shorthorn.standalone.apiserver.requests import parse_version
from shorthorn.standalone.apiserver.watch import (
    HistoryExpired,
    Watcher,
    encode_line,
    event_type_for,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import Receive, Send
    from starlette.types import Scope as AsgiScope

    from shorthorn.standalone.apiserver.rendering import Renderer
    from shorthorn.standalone.apiserver.requests import ListOptions
    from shorthorn.standalone.apiserver.store import Store
    from shorthorn.standalone.apiserver.transactions import Snapshot
    from shorthorn.standalone.apiserver.watch import WatchEvent, WatchHub

#: How long a watch lives when the client does not say: as long as in a real API server, and
#: spread likewise.
_DEFAULT_TIMEOUT_S = 1800.0
#: How often a client that asks for bookmarks is told how far it is. A real API server: about a
#: minute.
BOOKMARK_INTERVAL_S = 60.0
_INITIAL_CHUNK = 200


@dataclass(frozen=True, slots=True)
class WatchRequest:
    """Everything one watch needs to begin."""

    scope: Scope
    options: ListOptions
    renderer: Renderer
    version: str
    bookmark_interval_s: float = BOOKMARK_INTERVAL_S


class WatchResponse(Response):
    """Streams a watch; ends its watcher however the connection ends."""

    def __init__(
        self, store: Store, hub: WatchHub, request: WatchRequest, headers: dict[str, str]
    ) -> None:
        super().__init__(media_type="application/json", headers=headers)
        del self.headers["content-length"]
        self._store = store
        self._hub = hub
        self._request = request
        timeout_s = request.options.timeout_s
        if timeout_s is None:
            timeout_s = _DEFAULT_TIMEOUT_S * (1 + random.random())
        self._timeout_s = timeout_s

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Stream until the timeout, the client's departure or the watcher's end."""
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        stream = asyncio.create_task(self._stream(send), name="watch")
        departure = asyncio.create_task(_departure(receive), name="watch-departure")
        try:
            await asyncio.wait((stream, departure), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (stream, departure):
                task.cancel()
            ended = await asyncio.gather(stream, departure, return_exceptions=True)
        if isinstance(ended[0], Exception):
            raise ended[0]

    async def _stream(self, send: Send) -> None:
        async for chunk in self._chunks():
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _chunks(self) -> AsyncIterator[bytes]:
        resource = self._request.scope.kind.resource
        try:
            watcher, initial = await self._begin()
        except status.StatusError as exc:
            yield encode_line("ERROR", msgspec.json.encode(exc.as_dict()))
            return
        try:
            for chunk in initial:
                yield chunk
            async for chunk in self._follow(watcher):
                yield chunk
        finally:
            self._hub.unsubscribe(resource, watcher)

    async def _begin(self) -> tuple[Watcher, list[bytes]]:
        """Subscribe first, then read the state: no change can fall between the two."""
        request, options = self._request, self._request.options
        scope = request.scope
        after = parse_version(options.resource_version)
        needs_state = after == 0 or options.wants_initial_events
        current = self._store.resource_version_now()
        if after > current:
            raise status.version_too_large(after, current)
        try:
            watcher = self._hub.subscribe(
                scope.kind.resource,
                scope.namespace,
                self._hub.published if needs_state else after,
            )
        except HistoryExpired as exc:
            raise status.expired(str(exc)) from exc
        if not needs_state:
            return watcher, []
        try:
            version, chunks = await self._store.read(self._initial_state)
        except BaseException:
            self._hub.unsubscribe(scope.kind.resource, watcher)
            raise
        watcher.skip_to(version)
        if options.wants_initial_events:
            note = {"k8s.io/initial-events-end": "true"}
            chunks.append(self._bookmark(version, note))
        return watcher, chunks

    def _initial_state(self, snapshot: Snapshot) -> tuple[int, list[bytes]]:
        renderer = self._request.renderer
        lines = [
            encode_line("ADDED", renderer.object(row.data))
            for row in matching(snapshot, self._request.scope)
        ]
        chunks = [
            b"".join(lines[at : at + _INITIAL_CHUNK]) for at in range(0, len(lines), _INITIAL_CHUNK)
        ]
        return snapshot.resource_version, chunks

    async def _follow(self, watcher: Watcher) -> AsyncIterator[bytes]:
        clock = asyncio.get_running_loop().time
        has_bookmarks = self._request.options.has_bookmarks
        interval_s = self._request.bookmark_interval_s
        deadline = clock() + self._timeout_s
        bookmark_at = clock() + interval_s if has_bookmarks else deadline
        while not watcher.is_closed:
            events = await watcher.take(max(0.0, min(deadline, bookmark_at) - clock()))
            lines = b"".join(self._line(event) for event in events)
            if lines:
                yield lines
            is_over = clock() >= deadline
            if has_bookmarks and not events and (is_over or clock() >= bookmark_at):
                bookmark_at = clock() + interval_s
                yield self._bookmark(max(watcher.version, self._hub.published))
            if is_over:
                return

    def _line(self, event: WatchEvent) -> bytes:
        event_type = event_type_for(event.change, self._request.scope.selection)
        if event_type is None:
            return b""
        renderer = self._request.renderer
        return event.line(renderer.key, event_type, renderer.object)

    def _bookmark(self, version: int, annotations: dict[str, str] | None = None) -> bytes:
        kind = self._request.scope.kind
        metadata: dict[str, Any] = {"resourceVersion": str(version), "creationTimestamp": None}
        if annotations:
            metadata["annotations"] = annotations
        obj = {
            "kind": kind.kind,
            "apiVersion": kind.api_version(self._request.version),
            "metadata": metadata,
        }
        return encode_line("BOOKMARK", self._request.renderer.bookmark(obj))


async def _departure(receive: Receive) -> None:
    """Return when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
