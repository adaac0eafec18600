"""The web page with thousands of images: how long the list takes, and how soon a change is on it.

Owns: making the crowd for both, and the comparison of the list, as the browser gets it first, with
a Kubernetes LIST of the same objects; in turn, over kept connections on loopback. Nothing here is
judged by time.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from bench import crowd, page_events
from bench.figures import Section, median
from bench.page_events import rows_of
from bench.report import duration
from bench.visitors import api_client, get, signed_in

if TYPE_CHECKING:
    import httpx2

    from bench.workspace import Service

FIRST = "the list, its first page"
LIST_ALL = "LIST of all by the API server"
LIST_SOME = "LIST with limit=100"
_ROWS_MAX = 100  # of one page of the list
_PATH = f"/apis/longhorn.io/v1beta2/namespaces/{crowd.NAMESPACE}/backingimages"


async def measure(service: Service, *, images: int, rounds: int, changes: int) -> list[Section]:
    """Measure with `images` images, which are made before and removed afterwards.

    Args: rounds: answers of each kind. changes: of each kind, one after another.
    Raises: BenchFailed: something was not answered, or did not come.
    """
    names = [f"image-{number:05}" for number in range(images)]
    begun = time.perf_counter()
    async with crowd.crowd(service, names) as (client, watch), signed_in(service) as http:
        made_s = time.perf_counter() - begun
        lists = await _lists(service, http, names, rounds=rounds)
        lists.figures["until all were made and the service was at rest"] = duration(made_s)
        lists.figures["resident memory with them"] = f"{service.resident_bytes() >> 20} MiB"
        events = [
            await page_events.of_changes(http, client, watch, count=changes),
            await page_events.of_new_ones(http, client, watch, count=changes),
        ]
    return [lists, *events]


def _looks(images: int) -> dict[str, str]:
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
    asked = _looks(len(names))
    async with api_client(service) as api:
        first_s, first = await get(http, "/images")
        first_list_s, everything = await get(api, _PATH)
        for _ in range(rounds):
            for what, query in asked.items():
                section.took(what, (await get(http, f"/images{query}"))[0])
            section.took(LIST_ALL, (await get(api, _PATH))[0])
            section.took(LIST_SOME, (await get(api, f"{_PATH}?limit={_ROWS_MAX}"))[0])
    section.instead_of = {what: [LIST_ALL] for what in asked}
    figures = section.figures
    figures["the first answer since they were made, on a new connection"] = (
        f"{duration(first_s)}; LIST of all: {duration(first_list_s)}"
    )
    figures["the page"] = f"{len(first) >> 10} KiB; LIST of all: {len(everything) >> 10} KiB"
    ratio = 1 / median(section.ratios(FIRST, LIST_SOME))
    figures[f"{FIRST}: its time by that of a {LIST_SOME}"] = f"{ratio:.1f}"
    rows = rows_of(first)
    wanted = names[:_ROWS_MAX]
    section.check(
        f"the page has the first {len(wanted)} images", f"{len(rows)}", kept=rows == wanted
    )
    return section
