"""Volumes and snapshots, and what can be made of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.routing import Route

from shorthorn.kube import user_api
from shorthorn.web.pages.listing import names_of_volumes
from shorthorn.web.site import page, session_of, site_of, text_of
from shorthorn.web.views.volumes import list_volumes
from shorthorn.web.watched import mark_of

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response


async def show(request: Request) -> Response:
    """One page of the list."""
    site = site_of(request)
    session = session_of(request)
    for resource in (user_api.VOLUMES, user_api.SNAPSHOTS):
        await site.access.require(session, "list", resource)
    names = await names_of_volumes(request)
    volumes, snapshots = site.watched.volumes.cached(), site.watched.snapshots.cached()
    number = request.query_params.get("page", "1")
    number = number if number.isascii() and number.isdecimal() and len(number) < 7 else "1"
    text = text_of(request.query_params, "q")
    listing = list_volumes(volumes, snapshots, text, int(number), names)
    return page(
        request,
        "volumes/page.html",
        listing=listing,
        hidden=names.hidden,
        mark=mark_of(volumes, snapshots),
        may_create=await site.access.may(session, "create", user_api.IMAGES),
    )


routes = [Route("/volumes", show)]
