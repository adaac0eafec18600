"""Feeds: what of each page changes while it is open.

Owns: which objects a page follows, and what it is told when they change: rendered rows, or `list`,
on which it fetches its table anew. Must never: keep a connection, or send anything (`web.live`
does). One feed belongs to one open page, and remembers what that page shows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from shorthorn.domain.errors import InvalidArgument
from shorthorn.domain.image_bytes import RETRY_AT, VERIFY_AT
from shorthorn.domain.ports import Registry
from shorthorn.kube import user_api
from shorthorn.web.pages.listing import names_of_volumes
from shorthorn.web.site import Site, render, site_of
from shorthorn.web.views.image import Detail, detail_of
from shorthorn.web.views.images import Query, is_match, list_images, row_of
from shorthorn.web.views.overview import overview_of
from shorthorn.web.views.volumes import Names, list_volumes, snapshot_row, volume_row

if TYPE_CHECKING:
    from starlette.requests import Request

    from shorthorn.domain.models import BackingImage
    from shorthorn.web.watched import Watched

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


class _VolumesPage:
    """The page of volumes and snapshots, whose rows have names that only users' objects know."""

    def __init__(self, site: Site, request: Request) -> None:
        self._watched = site.watched
        self._request = request
        self._text = request.query_params.get("q", "").strip()
        page = request.query_params.get("page", "1")
        self._page = int(page) if page.isdecimal() and len(page) < 7 else 1
        self._volumes, self._snapshots = _Shown(), _Shown()
        self._known: Names | None = None
        self._tries: Counter[str] = Counter()

    @property
    def _names(self) -> Names:
        return self._known or Names()

    async def prepare(self, changes: Changes) -> None:
        """Ask anew for claims where a row has none yet: they are made after their volumes."""
        is_first = self._known is None
        names = self._names
        if (
            is_first
            or changes["volumes"] & self._volumes.rows - names.claims.keys()
            or changes["snapshots"] & self._snapshots.rows - names.snapshots.keys()
        ):
            self._known = await names_of_volumes(self._request)
        if is_first:
            self._look()

    async def recall(self) -> Changes:
        """Return the rows that have a name since the page was made."""
        volumes, snapshots = self._volumes.rows, self._snapshots.rows
        before = self._names
        nameless = (volumes - before.claims.keys()) | (snapshots - before.snapshots.keys())
        if all(self._tries[name] >= _RECALLS for name in nameless):
            return {}
        self._tries.update(nameless)
        self._known = now = await names_of_volumes(self._request)
        named = nameless & (now.claims.keys() | now.snapshots.keys())
        return {"volumes": named & volumes, "snapshots": named & snapshots}

    def react(self, changes: Changes) -> list[tuple[str, str]]:
        """See Feed."""
        rows = [*self._changed_rows(changes)]
        told = [("row", "".join(rows))] if rows else []
        watched, volumes, snapshots = self._watched, changes["volumes"], changes["snapshots"]
        is_other = _is_other_list(watched.volumes, self._volumes, volumes)
        if is_other or _is_other_list(watched.snapshots, self._snapshots, snapshots):
            self._look()
            told.append(("list", ""))
        return told

    def _changed_rows(self, changes: Changes) -> Iterator[str]:
        request, watched, names = self._request, self._watched, self._names
        for name in sorted(changes["volumes"] & self._volumes.rows):
            volume = watched.volumes.find_cached(name)
            if volume is not None:
                row = volume_row(volume, names)
                yield render(request, "volumes/volume_row.html", row=row, is_update=True)
        for name in sorted(changes["snapshots"] & self._snapshots.rows):
            snapshot = watched.snapshots.find_cached(name)
            if snapshot is not None:
                kept = snapshot_row(snapshot, names)
                yield render(request, "volumes/snapshot_row.html", row=kept, is_update=True)

    def _look(self) -> None:
        volumes, snapshots = self._watched.volumes.cached(), self._watched.snapshots.cached()
        listing = list_volumes(volumes, snapshots, self._text, self._page, self._names)
        self._volumes.rows = {row.id for row in listing.volumes}
        self._volumes.all = {volume.meta.name for volume in volumes}
        self._snapshots.rows = {row.id for row in listing.snapshots}
        self._snapshots.all = {snapshot.meta.name for snapshot in snapshots}


def _is_other_list(registry: Registry[Any], shown: _Shown, changed: set[str]) -> bool:
    """Whether one of the changed came or went."""
    return any((registry.find_cached(name) is None) == (name in shown.all) for name in changed)


def _volumes_feed(site: Site, request: Request) -> Feed:
    watched, page = site.watched, _VolumesPage(site, request)
    kinds: dict[str, Registry[Any]] = {"volumes": watched.volumes, "snapshots": watched.snapshots}
    resources = (user_api.VOLUMES, user_api.SNAPSHOTS)
    return Feed(kinds, resources, page.react, page.prepare, page.recall)


_FEEDS: Final[Mapping[str, Callable[[Site, Request], Feed]]] = {
    "images": _images_feed,
    "image": _image_feed,
    "overview": _overview_feed,
    "volumes": _volumes_feed,
}


def feed_of(request: Request) -> Feed:
    """Return the feed of the page that asks. Raises: InvalidArgument: there is none called so."""
    site = site_of(request)
    make = _FEEDS.get(request.query_params.get("feed", ""))
    if make is None:
        raise InvalidArgument("feed", f"write one of {', '.join(_FEEDS)}")
    return make(site, request)
