"""Event streams: what changes is on the page a moment later.

Owns: following the registries for one open page, and what it is sent: rendered rows, or `list`, on
which it fetches its table anew. Must never: send anything that the user may not see, or ask for
it otherwise than with their rights (asked anew every fifteen seconds). Route `/events`.

A page says by `mark` what it has seen. So nothing is lost between its rendering and the stream, nor
while a connection was broken: where the mark is another one now, `list` is the first event.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from starlette.responses import Response
from starlette.routing import Route

from shorthorn.domain.errors import InvalidArgument, Unavailable
from shorthorn.domain.image_bytes import RETRY_AT, VERIFY_AT
from shorthorn.domain.ports import Registry
from shorthorn.kube import user_api
from shorthorn.kube.user_api import Refused
from shorthorn.web.pages.listing import names_of_volumes
from shorthorn.web.site import Site, render, session_of, site_of
from shorthorn.web.views.image import Detail, detail_of
from shorthorn.web.views.images import Query, is_match, list_images, row_of
from shorthorn.web.views.overview import overview_of
from shorthorn.web.views.volumes import Names, list_volumes, snapshot_row, volume_row
from shorthorn.web.watched import mark_of

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from shorthorn.domain.models import BackingImage
    from shorthorn.web.watched import Watched

HEARTBEAT_S: Final = 15.0
#: Changes of so short a time are one event: an import changes three objects at once.
_GATHER_S: Final = 0.03
_RETRY_MS: Final = 1000
#: So many heartbeats long a row's name is looked for: who has none after a minute has none.
_RECALLS: Final = 4

Changes = Mapping[str, set[str]]
"""Names that changed, by kind."""


async def _nothing(changes: Changes) -> None:
    """Ask nobody."""


async def _no_changes() -> Changes:
    return {}


@dataclass(frozen=True)
class Feed:
    """What one page follows. `resources`: what the user must be allowed to list.

    `react` returns events for changes: (event, data). `prepare` comes before it, and once before
    anything is told, for what has to be asked. `recall` returns, at a heartbeat, changes that no
    registry tells of.
    """

    kinds: Mapping[str, Registry[Any]]
    resources: Sequence[user_api.Resource]
    react: Callable[[Changes], list[tuple[str, str]]]
    prepare: Callable[[Changes], Awaitable[None]] = _nothing
    recall: Callable[[], Awaitable[Changes]] = _no_changes


async def events(request: Request) -> Response:
    """Answer with the stream of the page that asks."""
    feed = await _feed_of(request)
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


async def _feed_of(request: Request) -> Feed:
    site = site_of(request)
    make = _FEEDS.get(request.query_params.get("feed", ""))
    if make is None:
        raise InvalidArgument("feed", f"write one of {', '.join(_FEEDS)}")
    return make(site, request)


@dataclass
class _Shown:
    """The names on the page, those that it is about, and all there are."""

    rows: set[str] = field(default_factory=set)
    matching: set[str] = field(default_factory=set)
    all: set[str] = field(default_factory=set)


def _images_feed(site: Site, request: Request) -> Feed:
    watched = site.watched
    query = Query.read(request.query_params)
    shown = _Shown()

    def look() -> None:
        images = watched.images.cached()
        listing = list_images(images, watched.copies_by_image(), query, site.rates)
        shown.rows = {row.name for row in listing.rows}
        shown.matching = {image.meta.name for image in images if is_match(image, query)}
        shown.all = {image.meta.name for image in images}

    def is_other_list(name: str) -> bool:
        """Whether an image came, went, or is another one to the filter than before."""
        image = watched.images.find_cached(name)
        if (image is None) == (name in shown.all):
            return True
        return image is not None and is_match(image, query) != (name in shown.matching)

    def react(changes: Changes) -> list[tuple[str, str]]:
        names = set(changes["images"])
        for copy_name in changes["copies"]:
            copy = watched.copies.find_cached(copy_name)
            if copy is not None:
                names.add(copy.spec.image)
        told: list[tuple[str, str]] = []
        is_other = any(is_other_list(name) for name in changes["images"])
        rows = []
        for name in sorted(names & shown.rows):
            image = watched.images.find_cached(name)
            if image is not None:
                row = row_of(image, watched.copies_of(name), site.rates)
                rows.append(render(request, "images/row.html", row=row, is_update=True))
        if rows:
            told.append(("row", "".join(rows)))
        if is_other:
            look()
            told.append(("list", ""))
        return told

    look()
    kinds: dict[str, Registry[Any]] = {"images": watched.images, "copies": watched.copies}
    return Feed(kinds, (user_api.IMAGES,), react)


def _image_feed(site: Site, request: Request) -> Feed:
    watched = site.watched
    name = request.query_params.get("name", "")

    def look() -> tuple[BackingImage | None, Detail | None]:
        image = watched.images.find_cached(name)
        if image is None:
            return None, None
        pools = {pool.spec.pool_uuid: pool for pool in watched.pools.cached()}
        return image, detail_of(image, watched.copies_of(name), pools, site.rates)

    frame = _frame(*look())
    copies, volumes = _ours(watched, name)

    def react(changes: Changes) -> list[tuple[str, str]]:
        nonlocal frame, copies, volumes
        # What went is no longer of any image, so what was ours before counts as well.
        copies_before, volumes_before = copies, volumes
        copies, volumes = _ours(watched, name)
        told: list[tuple[str, str]] = []
        if name in changes["images"] or changes["copies"] & (copies | copies_before):
            image, detail = look()
            frame_before, frame = frame, _frame(image, detail)
            if frame != frame_before:
                return [("list", "")]
            if detail is not None:
                text = render(request, "image/status.html", image=detail, is_update=True)
                told.append(("row", text))
        if changes["volumes"] & (volumes | volumes_before):
            told.append(("list", ""))
        return told

    kinds: dict[str, Registry[Any]] = {"images": watched.images, "copies": watched.copies}
    kinds |= {"volumes": watched.volumes}
    return Feed(kinds, (user_api.IMAGES,), react)


def _ours(watched: Watched, image: str) -> tuple[set[str], set[str]]:
    """Return the names of an image's copies, and of the volumes that were cloned from it."""
    copies = {copy.meta.name for copy in watched.copies_of(image)}
    return copies, {volume.meta.name for volume in watched.volumes_of(image)}


def _frame(image: BackingImage | None, detail: Detail | None) -> object:
    """Return what of the page, besides its status, depends on an image: forms, links, handle."""
    if image is None or detail is None:
        return None
    asked = [image.meta.annotations.get(key, "") for key in (RETRY_AT, VERIFY_AT)]
    may = (detail.has_bytes, detail.may_retry, detail.awaits_upload)
    return (*may, image.meta.uid, detail.uuid, asked)


def _overview_feed(site: Site, request: Request) -> Feed:
    watched = site.watched

    def react(changes: Changes) -> list[tuple[str, str]]:
        overview = overview_of(watched, site.rates)
        return [("row", render(request, "overview/live.html", overview=overview, is_update=True))]

    kinds: dict[str, Registry[Any]] = {"images": watched.images, "copies": watched.copies}
    kinds |= {"volumes": watched.volumes, "snapshots": watched.snapshots, "pools": watched.pools}
    return Feed(kinds, (user_api.IMAGES, user_api.POOLS), react)


def _volumes_feed(site: Site, request: Request) -> Feed:
    watched = site.watched
    text = request.query_params.get("q", "").strip()
    page_text = request.query_params.get("page", "1")
    page = int(page_text) if page_text.isdecimal() and len(page_text) < 7 else 1
    shown, kept = _Shown(), _Shown()
    known: Names | None = None
    tries: Counter[str] = Counter()

    async def prepare(changes: Changes) -> None:
        """Ask anew for claims where a row has none yet: they are made after their volumes."""
        nonlocal known
        is_first = known is None
        if (
            known is None
            or changes["volumes"] & shown.rows - known.claims.keys()
            or changes["snapshots"] & kept.rows - known.snapshots.keys()
        ):
            known = await names_of_volumes(request)
        if is_first:
            look()

    async def recall() -> Changes:
        """Return the rows that have a name since the page was made."""
        nonlocal known
        known = known or Names()
        nameless = (shown.rows - known.claims.keys()) | (kept.rows - known.snapshots.keys())
        if all(tries[name] >= _RECALLS for name in nameless):
            return {}
        tries.update(nameless)
        known = await names_of_volumes(request)
        named = nameless & (known.claims.keys() | known.snapshots.keys())
        return {"volumes": named & shown.rows, "snapshots": named & kept.rows}

    def look() -> None:
        volumes, snapshots = watched.volumes.cached(), watched.snapshots.cached()
        listing = list_volumes(volumes, snapshots, text, page, known or Names())
        shown.rows = {row.id for row in listing.volumes}
        shown.all = {volume.meta.name for volume in volumes}
        kept.rows = {row.id for row in listing.snapshots}
        kept.all = {snapshot.meta.name for snapshot in snapshots}

    def react(changes: Changes) -> list[tuple[str, str]]:
        rows = []
        for name in sorted(changes["volumes"] & shown.rows):
            volume = watched.volumes.find_cached(name)
            if volume is not None:
                row = volume_row(volume, known or Names())
                rows.append(render(request, "volumes/volume_row.html", row=row, is_update=True))
        for name in sorted(changes["snapshots"] & kept.rows):
            snapshot = watched.snapshots.find_cached(name)
            if snapshot is not None:
                kept_row = snapshot_row(snapshot, known or Names())
                rows.append(
                    render(request, "volumes/snapshot_row.html", row=kept_row, is_update=True)
                )
        told = [("row", "".join(rows))] if rows else []
        pairs = ((watched.volumes, shown, "volumes"), (watched.snapshots, kept, "snapshots"))
        registry: Registry[Any]
        for registry, names, kind in pairs:
            if any((registry.find_cached(n) is None) == (n in names.all) for n in changes[kind]):
                look()
                told.append(("list", ""))
                break
        return told

    kinds: dict[str, Registry[Any]] = {"volumes": watched.volumes, "snapshots": watched.snapshots}
    return Feed(kinds, (user_api.VOLUMES, user_api.SNAPSHOTS), react, prepare, recall)


_FEEDS: Final[Mapping[str, Callable[[Site, Request], Feed]]] = {
    "images": _images_feed,
    "image": _image_feed,
    "overview": _overview_feed,
    "volumes": _volumes_feed,
}
