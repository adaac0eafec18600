"""The handle checker: what a handle means, and what is wrong with it.

A handle may carry credentials in a URL, so it is sent as a form, never as part of an address.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.routing import Route

from shorthorn.kube import user_api
from shorthorn.web.site import page, read_form, session_of, site_of, text_of
from shorthorn.web.views.handle import read_handle

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response


async def show(request: Request) -> Response:
    """The empty form."""
    return page(request, "handle.html", handle="", reading=None)


async def check(request: Request) -> Response:
    """The form with what its handle means."""
    site, session = site_of(request), session_of(request)
    text = text_of(await read_form(request), "handle")
    for resource in (user_api.IMAGES, user_api.SNAPSHOTS):
        await site.access.require(session, "list", resource)
    watched = site.watched
    reading = None
    if text:
        may_see_volumes = await site.access.may(session, "list", user_api.VOLUMES)
        reading = read_handle(
            text,
            watched.images.find_cached,
            watched.snapshots.find_cached,
            watched.volumes.find_cached if may_see_volumes else None,
        )
    return page(request, "handle.html", handle=text, reading=reading)


routes = [
    Route("/handle", show, methods=["GET"]),
    Route("/handle", check, methods=["POST"]),
]
