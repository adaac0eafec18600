"""The list of backing images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.routing import Route

from shorthorn.kube import user_api
from shorthorn.web.site import page, session_of, site_of
from shorthorn.web.views.images import SORT_WORDS, SOURCE_WORDS, Query, State, list_images
from shorthorn.web.watched import mark_of

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response


async def show(request: Request) -> Response:
    """One page of the list; htmx takes the part that it wants of it."""
    site = site_of(request)
    session = session_of(request)
    await site.access.require(session, "list", user_api.IMAGES)
    watched = site.watched
    images = watched.images.cached()
    mark = mark_of(images, watched.copies.cached())
    listing = list_images(
        images, watched.copies_by_image(), Query.read(request.query_params), site.rates
    )
    return page(
        request,
        "images/page.html",
        listing=listing,
        mark=mark,
        states=list(State),
        sources=SOURCE_WORDS,
        sorts=SORT_WORDS,
        may_create=await site.access.may(session, "create", user_api.IMAGES),
    )


routes = [Route("/images", show)]
