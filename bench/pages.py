"""The web page with thousands of images: how long the list takes, and how soon a change is on it.

Owns: two comparisons with the API server that the page lives on, in turn, over kept connections on
loopback. The list of images as the browser gets it first, against a Kubernetes LIST of the same
objects; and the event that a page is sent, against the event of a plain watch for the same change.
Bodies are read whole and not looked into while time runs. Nothing here is judged by time.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import httpx2
from lightkube.types import PatchType

from bench import crowd
from bench.figures import Section, median, percentile
from bench.report import duration
from bench.workspace import SHORTHORN, BenchFailed, run
from shorthorn.kube.client import Network, read_config

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from lightkube import AsyncClient

    from bench.watches import Watch
    from bench.workspace import Service

FIRST = "the list, its first page"
LIST_ALL = "LIST of all by the API server"
LIST_SOME = "LIST with limit=100"
PROMISED_S = 0.2
_ROWS_MAX = 100  # of one page of the list
_PATH = f"/apis/longhorn.io/v1beta2/namespaces/{crowd.NAMESPACE}/backingimages"
_PATIENCE_S = 60.0
_ROW = re.compile(r'<tr role="row" id="image-([^"]+)"')
_COPIES_OF_ROW = re.compile(r'id="image-([^"]+)".*?data-label="Copies"[^>]*>(\d+/\d+)<')


async def measure(service: Service, *, images: int, rounds: int, changes: int) -> list[Section]:
    """Measure with `images` images, which are made before and removed afterwards.

    Args: rounds: answers of each kind. changes: of each kind, one after another.
    Raises: BenchFailed: something was not answered, or did not come.
    """
    names = [f"image-{number:05}" for number in range(images)]
    begun = time.perf_counter()
    async with crowd.crowd(service, names) as (client, watch), _signed_in(service) as http:
        made_s = time.perf_counter() - begun
        lists = await _lists(service, http, names, rounds=rounds)
        lists.figures["until all were made and the service was at rest"] = duration(made_s)
        lists.figures["resident memory with them"] = f"{service.resident_bytes() >> 20} MiB"
        events = [
            await _events_of_changes(http, client, watch, count=changes),
            await _events_of_new_ones(http, client, watch, count=changes),
        ]
    return [lists, *events]


# --- the list


def looks(images: int) -> dict[str, str]:
    """Return what is asked for of the list: words → query string."""
    return {
        FIRST: "",
        "the last page": f"?page={-(-images // _ROWS_MAX)}",
        "sorted by source, backwards": "?sort=-source",
        "sorted by age": "?sort=age",
        "filtered by a text that few have": "?q=77",
        "filtered by state": "?state=failed",
    }


async def _lists(
    service: Service, http: httpx2.AsyncClient, names: list[str], *, rounds: int
) -> Section:
    section = Section(f"the list of {len(names):,} images, over HTTP")
    asked = looks(len(names))
    async with _api(service) as api:
        first_s, first = await _get(http, "/images")
        first_list_s, everything = await _get(api, _PATH)
        for _ in range(rounds):
            for what, query in asked.items():
                section.took(what, (await _get(http, f"/images{query}"))[0])
            section.took(LIST_ALL, (await _get(api, _PATH))[0])
            section.took(LIST_SOME, (await _get(api, f"{_PATH}?limit={_ROWS_MAX}"))[0])
    section.instead_of = {what: [LIST_ALL] for what in asked}
    figures = section.figures
    figures["the first answer since they were made, on a new connection"] = (
        f"{duration(first_s)}; LIST of all: {duration(first_list_s)}"
    )
    figures["the page"] = f"{len(first) >> 10} KiB; LIST of all: {len(everything) >> 10} KiB"
    ratio = 1 / median(section.ratios(FIRST, LIST_SOME))
    figures[f"{FIRST}: its time by that of a {LIST_SOME}"] = f"{ratio:.1f}"
    rows = _ROW.findall(first)
    wanted = names[:_ROWS_MAX]
    section.check(
        f"the page has the first {len(wanted)} images", f"{len(rows)}", kept=rows == wanted
    )
    return section


async def _get(http: httpx2.AsyncClient, path: str) -> tuple[float, str]:
    """Return seconds until the last byte was there, and the text."""
    begun = time.perf_counter()
    answer = await http.get(path)
    took_s = time.perf_counter() - begun
    if answer.status_code != 200:
        raise BenchFailed(f"{path} was answered with {answer.status_code}: {answer.text[:200]}")
    return took_s, answer.text


# --- events


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
            async with asyncio.timeout(_PATIENCE_S):
                while what not in self._at:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise BenchFailed(f"no event tells of {what} within {_PATIENCE_S:.0f} s") from None
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


async def _events_of_changes(
    http: httpx2.AsyncClient, client: AsyncClient, watch: Watch, *, count: int
) -> Section:
    """Change one image of the first page after another: the page is sent a row."""
    section = Section(f"{count} changes of an image that is on the page")
    names = _ROW.findall((await _get(http, "/images"))[1])

    async with _open_page(http) as page:
        for number in range(count):
            name, copies = names[number % len(names)], number + 2  # each another number
            patch = {"spec": {"minNumberOfCopies": copies}}

            async def change(name: str = name, patch: Any = patch) -> Any:
                return await client.patch(crowd.IMAGE, name, patch, patch_type=PatchType.MERGE)

            await _one_event(section, change, watch, page, f"{name} 0/{copies}")
    _tell(section, page, "row", count)
    return section


async def _events_of_new_ones(
    http: httpx2.AsyncClient, client: AsyncClient, watch: Watch, *, count: int
) -> Section:
    """Make images beyond the first page: the page is sent word that its list is another one."""
    section = Section(f"{count} new images")
    made = [f"new-{number:05}" for number in range(count)]
    async with _open_page(http) as page:
        for number, name in enumerate(made, start=1):

            async def change(name: str = name) -> Any:
                return await crowd.create(client, name)

            await _one_event(section, change, watch, page, f"list {number}")
    _tell(section, page, "list", count)
    await crowd.remove(client, watch, made)
    return section


PAGE = "from the request to the page's event"
WATCH = "from the request to the watch's event"
ANSWER = "from the request to its answer"
AFTER = "from the answer to the page's event"


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


# --- who asks


@contextlib.asynccontextmanager
async def _signed_in(service: Service) -> AsyncIterator[httpx2.AsyncClient]:
    """Yield a client of the web page that used a login link, and has no connection open."""
    link = run(SHORTHORN, "login", "--data-dir", service.data_dir).strip()
    base = link.partition("/login")[0]
    async with httpx2.AsyncClient(trust_env=False) as first:
        await _get(first, link)
        cookies = first.cookies
    timeout = httpx2.Timeout(_PATIENCE_S)
    async with httpx2.AsyncClient(
        base_url=base, cookies=cookies, trust_env=False, timeout=timeout
    ) as http:
        yield http


@contextlib.asynccontextmanager
async def _api(service: Service) -> AsyncIterator[httpx2.AsyncClient]:
    """Yield a client of the API server, with the credentials of the kubeconfig."""
    config = read_config(service.kubeconfig)
    assert config.user is not None, "checked when it was read"
    async with httpx2.AsyncClient(
        base_url=config.cluster.server,
        headers={"Authorization": f"Bearer {config.user.token}"},
        transport=Network(config),
        timeout=httpx2.Timeout(_PATIENCE_S),
    ) as api:
        yield api


@contextlib.asynccontextmanager
async def _open_page(http: httpx2.AsyncClient) -> AsyncIterator[Page]:
    """Follow the event stream that the list names, as its script does."""
    found = re.search(r'sse-connect="([^"]+)"', (await _get(http, "/images"))[1])
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
