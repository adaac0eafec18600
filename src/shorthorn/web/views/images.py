"""The list of backing images: from objects to rows, filtered, sorted, a page at a time.

Owns: what a row says, the words for an image's state and source, and the order of rows. Pure.
Called by `pages.images` and `web.feeds`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

from shorthorn.domain.image_status import COMPUTED
from shorthorn.domain.models import BackingImage, CopyState, ImageCopy, SourceType
from shorthorn.web.rates import MOVING, Rates

PAGE_ROWS: Final = 100
SOURCE_WORDS: Final[Mapping[str, str]] = {
    SourceType.DOWNLOAD: "download",
    SourceType.UPLOAD: "upload",
    SourceType.EXPORT_FROM_VOLUME: "export of a volume",
    SourceType.RESTORE: "backup",
    SourceType.CLONE: "clone of an image",
}
#: Reasons of a condition that is only not there yet. Every other one is of an error, after which
#: whoever makes the copy tries again by themselves.
_GOING_WELL: Final = ("InProgress", "Pending")
_STALLED: Final = "nothing has arrived for some seconds"


SORT_WORDS: Final[Mapping[str, str]] = {
    "name": "Name",
    "state": "State",
    "size": "Size",
    "virtual": "Virtual size",
    "allocated": "Allocated",
    "shared": "Shared",
    "source": "Source",
    "copies": "Copies",
    "age": "Age",
}
"""By the keys of `SORT_KEYS`."""


class State(StrEnum):
    """One word for an image, of its conditions and copies."""

    READY = "ready"
    WORKING = "in progress"
    WAITING = "waiting"
    RETRYING = "retrying"
    FAILED = "failed"
    DELETING = "deleting"


@dataclass(frozen=True, slots=True)
class Row:
    """What the list says of one image. `progress_percent`: None where nothing moves."""

    name: str
    state: State
    message: str
    progress_percent: int | None
    format: str
    size_bytes: int | None
    virtual_size_bytes: int | None
    allocated_bytes: int | None
    shared_bytes: int | None
    source: str
    source_detail: str
    copies_ready: int
    copies_wanted: int
    is_verified: bool
    created_at: datetime | None


@dataclass(frozen=True, slots=True)
class Query:
    """What of the list is asked for. `sort` with a `-` before it: backwards."""

    text: str = ""
    state: str = ""
    source: str = ""
    sort: str = "name"
    page: int = 1

    @classmethod
    def read(cls, parameters: Mapping[str, str]) -> Query:
        """Read a query string; what makes no sense is as if it were not there."""
        sort = parameters.get("sort", "name")
        page = parameters.get("page", "1")
        return cls(
            text=parameters.get("q", "").strip()[:253],
            state=parameters.get("state", "") if parameters.get("state") in list(State) else "",
            source=parameters.get("source", "") if parameters.get("source") in SOURCE_WORDS else "",
            sort=sort if sort.lstrip("-") in SORT_KEYS else "name",
            page=max(1, int(page)) if page.isascii() and page.isdecimal() and len(page) < 7 else 1,
        )

    def fields(self, **changes: Any) -> dict[str, str]:
        """Return the fields of this query with changes; defaults are left out."""
        values = {"q": self.text, "state": self.state, "source": self.source}
        values |= {"sort": self.sort, "page": str(self.page)}
        values |= {key: str(value) for key, value in changes.items()}
        plain = {"q": "", "state": "", "source": "", "sort": "name", "page": "1"}
        return {key: value for key, value in values.items() if value != plain[key]}

    def url(self, **changes: Any) -> str:
        """Return the query string of this query with changes; defaults are left out."""
        kept = self.fields(**changes)
        return f"?{urlencode(kept)}" if kept else "?"

    def sort_url(self, key: str) -> str:
        """Return the query that sorts by `key`, or backwards where it does already."""
        return self.url(sort=f"-{key}" if self.sort == key else key, page=1)

    def direction(self, key: str) -> str:
        """Return the value of aria-sort for a column."""
        if self.sort.lstrip("-") != key:
            return "none"
        return "descending" if self.sort.startswith("-") else "ascending"


@dataclass(frozen=True, slots=True)
class Listing:
    """One page of the list. `total`: of all images, `matching` of those that are asked for."""

    query: Query
    rows: Sequence[Row]
    matching: int
    total: int

    @property
    def pages(self) -> int:
        return max(1, -(-self.matching // PAGE_ROWS))

    @property
    def page(self) -> int:
        return self.query.page

    @property
    def fields(self) -> Mapping[str, str]:
        """What a link to another page of the list says besides its number."""
        return self.query.fields(page=1)


def list_images(
    images: Sequence[BackingImage],
    copies: Mapping[str, Sequence[ImageCopy]],
    query: Query,
    rates: Rates | None = None,
) -> Listing:
    """Return the page of the list that `query` asks for; only its rows are made."""
    found = [image for image in images if is_match(image, query)]
    key = SORT_KEYS[query.sort.lstrip("-")]
    found.sort(key=lambda image: image.meta.name)
    found.sort(key=lambda image: key(image, copies), reverse=query.sort.startswith("-"))
    pages = max(1, -(-len(found) // PAGE_ROWS))
    page = min(query.page, pages)
    query = Query(query.text, query.state, query.source, query.sort, page)
    shown = found[(page - 1) * PAGE_ROWS : page * PAGE_ROWS]
    rows = [row_of(image, copies.get(image.meta.name, ()), rates) for image in shown]
    return Listing(query, rows, len(found), len(images))


def row_of(image: BackingImage, copies: Sequence[ImageCopy], rates: Rates | None = None) -> Row:
    """Return what the list says of one image; without `rates` nothing is known to have stalled."""
    status = image.status
    files = status.disk_file_status.values()
    state, message = state_of(image)
    percent = max((f.progress_percent for f in files if f.state in MOVING), default=None)
    if state is State.READY or (state is State.RETRYING and not percent):
        percent = None
    is_stalled = rates is not None and any(rates.speed_of(copy).is_stalled for copy in copies)
    ready = sum(file.state is CopyState.READY for file in files)
    return Row(
        name=image.meta.name,
        state=state,
        message=true_message(message, is_stalled=is_stalled),
        progress_percent=percent,
        format=status.format,
        size_bytes=status.size_bytes or None,
        virtual_size_bytes=status.virtual_size_bytes or None,
        allocated_bytes=_sum(copies, "real_size_bytes"),
        shared_bytes=_sum(copies, "shared_bytes") if _sum(copies, "real_size_bytes") else None,
        source=SOURCE_WORDS.get(image.spec.source_type, image.spec.source_type),
        source_detail=source_detail(image),
        copies_ready=ready,
        copies_wanted=max(image.spec.min_number_of_copies, len(image.spec.disk_file_spec)),
        is_verified=any(
            c.type == "ChecksumVerified" and c.is_true and c.reason != COMPUTED
            for c in status.conditions
        ),
        created_at=image.meta.created_at,
    )


def state_of(image: BackingImage) -> tuple[State, str]:
    """Return an image's state and, unless it is ready, why."""
    failure = image.failure
    if image.meta.deleting:
        return State.DELETING, _ready_message(image)
    if image.is_ready:
        return State.READY, _lacking(image)
    if failure is not None:
        return State.FAILED, failure.message
    if any(file.state in MOVING for file in image.status.disk_file_status.values()):
        ready = next((c for c in image.status.conditions if c.type == "Ready"), None)
        is_well = ready is None or ready.reason in _GOING_WELL
        return State.WORKING if is_well else State.RETRYING, _ready_message(image)
    return State.WAITING, _ready_message(image)


def is_retrying(copy: ImageCopy) -> bool:
    """Whether the last try to make a copy failed, and another one is to come or has begun."""
    return copy.status.state in MOVING and bool(copy.status.reason)


def true_message(message: str, *, is_stalled: bool) -> str:
    """Return what an object says of itself, but of no speed that it had when it last moved."""
    return _STALLED if is_stalled and (not message or message.endswith("/s")) else message


def source_detail(image: BackingImage) -> str:
    """Return where an image is from, short; of a URL without what may be secret in it."""
    parameters = image.spec.source_parameters
    if image.spec.source_type == SourceType.DOWNLOAD:
        return shown_url(parameters.get("url", ""))
    for key in ("volume-name", "backing-image", "backup-url"):
        if parameters.get(key):
            return parameters[key]
    return ""


def shown_url(url: str) -> str:
    """Return a URL without user, password, query: those may be credentials."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return ""
    return f"{parts.scheme}://{host}{port}{parts.path}" if host else ""


def is_match(image: BackingImage, query: Query) -> bool:
    """Whether the list that `query` asks for, on whichever page, has the image."""
    if query.source and image.spec.source_type != query.source:
        return False
    if query.state and state_of(image)[0] != query.state:
        return False
    text = query.text.lower()
    return not text or text in image.meta.name or text in source_detail(image).lower()


def _ready_message(image: BackingImage) -> str:
    for condition in image.status.conditions:
        if condition.type == "Ready":
            return condition.message
    return "" if image.status.conditions else "nobody has looked at it yet"


def _lacking(image: BackingImage) -> str:
    for condition in image.status.conditions:
        if condition.type == "EnoughCopies" and not condition.is_true:
            return condition.message
    return ""


def _sum(copies: Sequence[ImageCopy], field: str) -> int | None:
    values = [getattr(copy.status, field) for copy in copies]
    return sum(values) if any(values) else (0 if field == "shared_bytes" and values else None)


_Copies = Mapping[str, Sequence[ImageCopy]]
_EPOCH = datetime.fromtimestamp(0, UTC)
_STATE_ORDER = {state: number for number, state in enumerate(reversed(State))}

SORT_KEYS: Final[Mapping[str, Callable[[BackingImage, _Copies], Any]]] = {
    "name": lambda image, _: image.meta.name,
    "state": lambda image, _: _STATE_ORDER[state_of(image)[0]],
    "size": lambda image, _: image.status.size_bytes,
    "virtual": lambda image, _: image.status.virtual_size_bytes,
    "allocated": lambda image, copies: (
        _sum(copies.get(image.meta.name, ()), "real_size_bytes") or 0
    ),
    "shared": lambda image, copies: _sum(copies.get(image.meta.name, ()), "shared_bytes") or 0,
    "source": lambda image, _: (image.spec.source_type, source_detail(image)),
    "copies": lambda image, _: len(image.status.disk_file_status),
    "age": lambda image, _: -(image.meta.created_at or _EPOCH).timestamp(),
}
