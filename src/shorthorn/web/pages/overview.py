"""The first page: room, sharing, transfers, health, last errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.routing import Route

from shorthorn.kube import user_api
from shorthorn.web.site import page, session_of, site_of
from shorthorn.web.views.overview import overview_of
from shorthorn.web.watched import mark_of

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response


async def show(request: Request) -> Response:
    """The overview."""
    site = site_of(request)
    for resource in (user_api.IMAGES, user_api.POOLS):
        await site.access.require(session_of(request), "list", resource)
    watched = site.watched
    kinds = (watched.images, watched.copies, watched.volumes, watched.snapshots, watched.pools)
    mark = mark_of(*(kind.cached() for kind in kinds))
    overview = overview_of(watched, site.rates)
    return page(request, "overview/page.html", overview=overview, mark=mark)


routes = [Route("/", show)]
