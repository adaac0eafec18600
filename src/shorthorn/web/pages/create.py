"""Making an image: download, upload, export of a volume, clone of an image.

Owns: the forms' fields, and the BackingImage that becomes of them. Must never: judge what the API
server judges; what it refuses is said at the form, with everything that was typed.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
from typing import TYPE_CHECKING, Any, Final

from starlette.responses import HTMLResponse, JSONResponse
from starlette.routing import Route

from shorthorn.domain.errors import DomainError, InvalidArgument, NotFound, Unavailable
from shorthorn.domain.handle_traps import CHECKSUM_FORM
from shorthorn.domain.image_bytes import UPLOAD_LENGTH
from shorthorn.domain.models import ImageFormat, SourceType, VolumeState
from shorthorn.kube import user_api
from shorthorn.kube.user_api import Refused
from shorthorn.services.image_requests import check_name, selector
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

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.requests import Request
    from starlette.responses import Response

    from shorthorn.web.site import Site

SOURCES: Final = {
    "download": SourceType.DOWNLOAD,
    "upload": SourceType.UPLOAD,
    "export": SourceType.EXPORT_FROM_VOLUME,
    "clone": SourceType.CLONE,
}
#: An image that no pool will take is told so on its page.
_AWAITED_S: Final = 3.0
_FIELDS: Final = (
    "name",
    "url",
    "checksum",
    "volume",
    "export_type",
    "image",
    "copies",
    "node_tags",
    "disk_tags",
    "upload_length",
)


async def show(request: Request) -> Response:
    """The form of one source."""
    site = site_of(request)
    await site.access.require(session_of(request), "create", user_api.IMAGES)
    values = {key: text_of(request.query_params, key) for key in _FIELDS}
    values["copies"] = values["copies"] or "1"
    values["export_type"] = values["export_type"] or ImageFormat.QCOW2
    return _form(request, _source(request.query_params), values)


async def create(request: Request) -> Response:
    """Make the object; the upload's script asks for JSON and then sends the bytes."""
    form = await read_form(request)
    source = _source(form)
    values = {key: text_of(form, key) for key in _FIELDS}
    site, session = site_of(request), session_of(request)
    try:
        body = backing_image(source, values, site.namespace)
        await site.access.api.request(
            session.token, "POST", user_api.IMAGES.path(site.namespace), body=body
        )
    except (DomainError, Refused) as exc:
        problem = problem_or_raise(exc)
        if _wants_json(request):
            body = {"reason": problem.reason, "message": problem.message}
            return JSONResponse(body, problem.status)
        return _form(request, source, values, _in_words(exc, values["name"]), problem.status)
    location = f"/images/{values['name']}"
    if _wants_json(request):
        await _until_awaited(site, values["name"])
        upload = f"/api/v1/images/{values['name']}/upload"
        return JSONResponse({"location": location, "upload": upload}, 201)
    return see_other(location)


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


async def _until_awaited(site: Site, name: str) -> None:
    """Wait until a pool awaits the bytes of a new image, but not for long: who sends asks again."""
    if site.image_bytes is None:
        return
    with contextlib.suppress(TimeoutError, Unavailable):
        async with asyncio.timeout(_AWAITED_S), site.watched.copies.subscribe() as names:
            while True:
                with contextlib.suppress(NotFound):
                    await site.image_bytes.upload_state(name)
                    return
                await anext(names)


routes = [
    Route("/new-image", show, methods=["GET"]),
    Route("/new-image", create, methods=["POST"]),
    Route("/new-image/check-url", check, methods=["POST"]),
]


def backing_image(source: str, values: Mapping[str, str], namespace: str) -> dict[str, Any]:
    """Return the object that a form asks for. Raises: InvalidArgument: a field makes no sense."""
    try:
        check_name(values["name"])
    except InvalidArgument as exc:
        raise InvalidArgument("name", exc.problem) from None
    if values["checksum"] and not CHECKSUM_FORM.fullmatch(values["checksum"].lower()):
        raise InvalidArgument("checksum", "a SHA-512 is 128 hexadecimal digits")
    copies = values["copies"] or "1"
    if not copies.isdecimal() or len(copies) > 4 or not int(copies):
        raise InvalidArgument("copies", "write a whole number of at least 1")
    spec: dict[str, Any] = {
        "sourceType": SOURCES[source].value,
        "sourceParameters": _parameters(source, values),
        "checksum": values["checksum"].lower(),
        "minNumberOfCopies": int(copies),
        "nodeSelector": list(selector(values["node_tags"])),
        "diskSelector": list(selector(values["disk_tags"])),
    }
    meta: dict[str, Any] = {"name": values["name"], "namespace": namespace}
    if source == "upload":
        length = values["upload_length"]
        if not length.isdecimal() or not int(length):
            raise InvalidArgument("file", "choose a file that is not empty")
        meta["annotations"] = {UPLOAD_LENGTH: length}
    return {
        "apiVersion": user_api.IMAGES.api_version,
        "kind": user_api.IMAGES.kind,
        "metadata": meta,
        "spec": {key: value for key, value in spec.items() if value not in ("", [], {})},
    }


def _parameters(source: str, values: Mapping[str, str]) -> dict[str, str]:
    wanted = {
        "download": {"url": "url"},
        "upload": {},
        "export": {"volume": "volume-name", "export_type": "export-type"},
        "clone": {"image": "backing-image"},
    }[source]
    for field in wanted:
        if not values[field]:
            raise InvalidArgument(field.replace("_", " "), "must not be empty")
    return {key: values[field] for field, key in wanted.items()}


def _form(
    request: Request, source: str, values: Mapping[str, str], problem: str = "", status: int = 200
) -> Response:
    site = site_of(request)
    return page(
        request,
        f"create/{source}.html",
        status=status,
        source=source,
        values=values,
        problem=problem,
        volumes=_volumes(site) if source == "export" else [],
        images=_images(site) if source == "clone" else [],
        pools=len(site.watched.pools.cached()),
    )


def _volumes(site: Site) -> list[str]:
    volumes = site.watched.volumes.cached()
    return sorted(v.meta.name for v in volumes if v.status.state is VolumeState.READY)


def _images(site: Site) -> list[str]:
    return sorted(image.meta.name for image in site.watched.images.cached() if image.is_ready)


def _source(values: Mapping[str, Any]) -> str:
    source = text_of(values, "from", "download")
    return source if source in SOURCES else "download"


def _in_words(exc: Exception, name: str) -> str:
    if isinstance(exc, Refused) and exc.reason == "AlreadyExists":
        return f"There is an image named {name} already. Choose another name."
    if isinstance(exc, Refused) and exc.causes:
        return "; ".join(message for _, message in exc.causes if message) or exc.message
    return str(exc)


def _wants_json(request: Request) -> bool:
    return request.headers.get("accept", "").startswith("application/json")
