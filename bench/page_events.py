"""How soon a change is on an open page of images.

Owns: the comparison of the event that a page is sent with the event of a plain watch on the API
server for the same change, one change after another. Nothing here is judged by time.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

from lightkube.types import PatchType

from bench import crowd
from bench.figures import Section, median, percentile
from bench.report import duration
from bench.visitors import PATIENCE_S, get
from bench.workspace import BenchFailed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    import httpx2
    from lightkube import AsyncClient

    from bench.watches import Watch

ANSWER = "from the request to its answer"
WATCH = "from the request to the watch's event"
PAGE = "from the request to the page's event"
AFTER = "from the answer to the page's event"
PROMISED_S = 0.2
_ROW = re.compile(r'<tr role="row" id="image-([^"]+)"')
_COPIES_OF_ROW = re.compile(r'id="image-([^"]+)".*?data-label="Copies"[^>]*>(\d+/\d+)<')


def rows_of(text: str) -> list[str]:
    """Return the images that a page of the list shows, from its top."""
    return _ROW.findall(text)


class Heard:
    """When each thing was first heard of, by whoever asks for it."""

    def __init__(self) -> None:
        self._at: dict[str, float] = {}
        self._changed = asyncio.Event()

    def hear(self, what: str, when: float) -> None:
        self._at.setdefault(what, when)
        self._changed.set()

    async def at(self, what: str) -> float:
        """Return when it was heard of, once it is. Raises BenchFailed: it does not come."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while what not in self._at:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise BenchFailed(f"no event tells of {what} within {PATIENCE_S:.0f} s") from None
        return self._at[what]


class Page:
    """The events of one open page of images.

    A row is heard of as `<image> <ready>/<wanted copies>`, another list as `list <how many yet>`.
    """

    def __init__(self) -> None:
        self.heard = Heard()
        self.counts: Counter[str] = Counter()

    async def follow(self, stream: httpx2.Response) -> None:
        """Take note of every event, until cancelled."""
        name, data = "", ""
        async for line in stream.aiter_lines():
            if line.startswith("event: "):
                name, data = line.removeprefix("event: "), ""
            elif line.startswith("data: "):
                data += line
            elif not line and name:
                self._note(name, data, time.perf_counter())
                name = ""

    def _note(self, name: str, data: str, when: float) -> None:
        self.counts[name] += 1
        self.heard.hear(f"{name} {self.counts[name]}", when)
        for image, copies in _COPIES_OF_ROW.findall(data):
            self.heard.hear(f"{image} {copies}", when)


async def of_changes(
    http: httpx2.AsyncClient, client: AsyncClient, watch: Watch, *, count: int
) -> Section:
    """Change one image of the first page after another: the page is sent a row."""
    section = Section(f"{count} changes of an image that is on the page")
    names = rows_of((await get(http, "/images"))[1])
    async with _open_page(http) as page:
        for number in range(count):
            name, copies = names[number % len(names)], number + 2  # each another number
            patch = {"spec": {"minNumberOfCopies": copies}}
            change = partial(client.patch, crowd.IMAGE, name, patch, patch_type=PatchType.MERGE)
            await _one_event(section, change, watch, page, f"{name} 0/{copies}")
    _tell(section, page, "row", count)
    return section


async def of_new_ones(
    http: httpx2.AsyncClient, client: AsyncClient, watch: Watch, *, count: int
) -> Section:
    """Make images beyond the first page: the page is sent word that its list is another one."""
    section = Section(f"{count} new images")
    made = [f"new-{number:05}" for number in range(count)]
    async with _open_page(http) as page:
        for number, name in enumerate(made, start=1):
            change = partial(crowd.create, client, name)
            await _one_event(section, change, watch, page, f"list {number}")
    _tell(section, page, "list", count)
    await crowd.remove(client, watch, made)
    return section


async def _one_event(
    section: Section, change: Callable[[], Awaitable[Any]], watch: Watch, page: Page, expected: str
) -> None:
    """Make a change and note when its answer and both events were there."""
    versions = Heard()
    watch.on_change = lambda obj, when: versions.hear(obj["metadata"]["resourceVersion"], when)
    begun = time.perf_counter()
    stored = await change()
    answered = time.perf_counter()
    watched = await versions.at(stored["metadata"]["resourceVersion"])
    shown = await page.heard.at(expected)
    section.took(AFTER, shown - answered)
    section.took(PAGE, shown - begun)
    section.took(WATCH, watched - begun)
    section.took(ANSWER, answered - begun)


def _tell(section: Section, page: Page, event: str, count: int) -> None:
    after = section.seconds[AFTER]
    in_time = sum(seconds < PROMISED_S for seconds in after)
    ratio = 1 / median(section.ratios(PAGE, WATCH))
    section.figures[f"{AFTER}: p50, p99"] = (
        f"{duration(median(after))}, {duration(percentile(after, 99))}"
    )
    section.figures[f"within the promised {PROMISED_S * 1000:.0f} ms"] = f"{in_time} of {count}"
    section.figures["the page's time by the watch's"] = f"{ratio:.1f}"
    found = page.counts[event]
    section.check(f"one `{event}` for each change", f"{found} for {count}", kept=found == count)


@contextlib.asynccontextmanager
async def _open_page(http: httpx2.AsyncClient) -> AsyncIterator[Page]:
    """Follow the event stream that the list names, as its script does."""
    found = re.search(r'sse-connect="([^"]+)"', (await get(http, "/images"))[1])
    if found is None:
        raise BenchFailed("the list of images names no event stream")
    page = Page()
    async with http.stream("GET", found[1].replace("&amp;", "&")) as stream:
        following = asyncio.create_task(page.follow(stream))
        try:
            yield page
        finally:
            following.cancel()
            await asyncio.wait([following])
