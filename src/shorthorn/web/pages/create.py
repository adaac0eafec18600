"""Making an image: download, upload, export of a volume, clone of an image.

Owns: the forms, and what the script of uploads asks about an image meanwhile. Must never: judge
what the API server judges; what it refuses is said at the form, with everything that was typed.

The path is one that no image's page can have: below /images everything is an image's name.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
from typing import TYPE_CHECKING, Any, Final

from starlette.responses import HTMLResponse, JSONResponse
from starlette.routing import Route

from shorthorn.domain.errors import DomainError, NotFound, Unavailable
from shorthorn.domain.models import ImageFormat, VolumeState
from shorthorn.domain.names import is_object_name
from shorthorn.kube import user_api
from shorthorn.kube.user_api import Refused
from shorthorn.web.image_form import FIELDS, SOURCES, backing_image, said_of
from shorthorn.web.pages.listing import names_of_volumes
from shorthorn.web.site import (
    page,
    problem_or_raise,
    read_form,
    render,
    see_other,
    session_of,
    site_of,
    text_of,
)
from shorthorn.web.views.images import State, state_of
from shorthorn.web.views.volumes import Names

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.requests import Request
    from starlette.responses import Response

    from shorthorn.domain.models import BackingImage
    from shorthorn.web.site import Site

#: One request waits no longer: the script asks again, and says why it waits.
_AWAITED_S: Final = 2.0


async def show(request: Request) -> Response:
    """The form of one source."""
    site = site_of(request)
    await site.access.require(session_of(request), "create", user_api.IMAGES)
    values = {key: text_of(request.query_params, key) for key in FIELDS}
    values["copies"] = values["copies"] or "1"
    values["export_type"] = values["export_type"] or ImageFormat.QCOW2
    return await _form(request, _source(request.query_params), values)


async def create(request: Request) -> Response:
    """Make the object; the upload's script asks for JSON and then sends the bytes."""
    form = await read_form(request)
    source = _source(form)
    values = {key: text_of(form, key) for key in FIELDS}
    site, session = site_of(request), session_of(request)
    try:
        body = backing_image(source, values, site.namespace)
        await site.access.api.request(
            session.token, "POST", user_api.IMAGES.path(site.namespace), body=body
        )
    except (DomainError, Refused) as exc:
        problem = problem_or_raise(exc)
        told = said_of(exc, values["name"])
        if _wants_json(request):
            return JSONResponse({"reason": problem.reason, "message": told}, problem.status)
        return await _form(request, source, values, told, problem.status)
    location = f"/images/{values['name']}"
    if _wants_json(request):
        upload = f"/api/v1/images/{values['name']}/upload"
        return JSONResponse({"location": location, "upload": upload}, 201)
    return see_other(location)


async def state(request: Request) -> Response:
    """What the script of uploads has to know of an image (`name`), and of this session.

    `awaits`: whether its bytes are awaited, or all here; it is waited for a moment. Without a name
    there is the form token alone, which is another one in a session that began meanwhile.
    """
    site, session = site_of(request), session_of(request)
    told: dict[str, Any] = {"formToken": request.state.form_token}
    name = text_of(request.query_params, "name")
    if name:
        await site.access.require(session, "list", user_api.IMAGES)
        if not await _is_failed(site, name):
            told["awaits"] = await _until_awaited(site, name)
        image = await _image(site, name)
        told["state"], told["message"] = state_of(image)
    return JSONResponse(told)


async def check(request: Request) -> Response:
    """Say what is at a URL, while it is typed."""
    site = site_of(request)
    await site.access.require(session_of(request), "create", user_api.IMAGES)
    url = text_of(await read_form(request), "url")
    if not url:
        return HTMLResponse("")
    module = await asyncio.to_thread(importlib.import_module, "shorthorn.web.url_check")
    checked = await module.check_url(url)
    return HTMLResponse(render(request, "create/checked.html", checked=checked))


async def _until_awaited(site: Site, name: str) -> bool:
    """Wait until a pool awaits the bytes of an image, but not for long: who sends asks again."""
    if site.image_bytes is None:
        return False
    with contextlib.suppress(TimeoutError, Unavailable):
        async with asyncio.timeout(_AWAITED_S), site.watched.copies.subscribe() as names:
            while True:
                with contextlib.suppress(NotFound):
                    await site.image_bytes.upload_state(name)
                    return True
                await anext(names)
    return False


async def _is_failed(site: Site, name: str) -> bool:
    return state_of(await _image(site, name))[0] is State.FAILED


async def _image(site: Site, name: str) -> BackingImage:
    """Return an image, also one that no watch has told of yet. Raises: NotFound."""
    if not is_object_name(name):
        raise NotFound("backing image", name)
    images = site.watched.images
    image = images.find_cached(name) or await images.find(name)
    if image is None:
        raise NotFound("backing image", name)
    return image


routes = [
    Route("/new-image", show, methods=["GET"]),
    Route("/new-image", create, methods=["POST"]),
    Route("/new-image/state", state, methods=["GET"]),
    Route("/new-image/check-url", check, methods=["POST"]),
]


async def _form(
    request: Request, source: str, values: Mapping[str, str], problem: str = "", status: int = 200
) -> Response:
    site = site_of(request)
    names = await names_of_volumes(request) if source == "export" else Names()
    return page(
        request,
        f"create/{source}.html",
        status=status,
        source=source,
        values=values,
        problem=problem,
        volumes=_volumes(site) if source == "export" else [],
        claims=names.claims,
        images=_images(site) if source == "clone" else [],
        pools=len(site.watched.pools.cached()),
    )


def _volumes(site: Site) -> list[str]:
    volumes = site.watched.volumes.cached()
    return sorted(v.meta.name for v in volumes if v.status.state is VolumeState.READY)


def _images(site: Site) -> list[str]:
    """Return what can be cloned: also what is not ready yet, which the clone waits for."""
    images = site.watched.images.cached()
    return sorted(image.meta.name for image in images if not image.meta.deleting)


def _source(values: Mapping[str, Any]) -> str:
    source = text_of(values, "from", "download")
    return source if source in SOURCES else "download"


def _wants_json(request: Request) -> bool:
    return request.headers.get("accept", "").startswith("application/json")
