"""One backing image: its detail, deleting it, trying again, verifying.

Owns: the detail page and its actions. Must never: act but by a request with the user's token.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from starlette.routing import Route

from shorthorn.domain.errors import DomainError, NotFound
from shorthorn.domain.image_bytes import RETRY_AT, UPLOAD_LENGTH, VERIFY_AT
from shorthorn.kube import user_api
from shorthorn.kube.user_api import Refused
from shorthorn.web.pages.listing import class_names, list_allowed
from shorthorn.web.site import (
    image_named_in,
    page,
    problem_or_raise,
    see_other,
    session_of,
    site_of,
)
from shorthorn.web.views.image import detail_of
from shorthorn.web.views.manifests import Names, handle_of, objects_for, to_yaml
from shorthorn.web.views.users import Cluster, users_of
from shorthorn.web.watched import mark_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from starlette.requests import Request
    from starlette.responses import Response

    from shorthorn.domain.models import BackingImage
    from shorthorn.web.site import Site

_GIB: Final = 1 << 30
#: Of a request: the page's script wants a dialog's content; of the answer: that is what it is.
_DIALOG: Final = "X-Dialog"
#: Of one request; what comes later is not waited for, the page says so.
_KINDS: Final = {
    "claims": user_api.CLAIMS,
    "persistent_volumes": user_api.PERSISTENT_VOLUMES,
    "volume_snapshots": user_api.VOLUME_SNAPSHOTS,
    "contents": user_api.CONTENTS,
}


async def show(request: Request) -> Response:
    """The detail page."""
    return await _detail(request)


async def ask_deletion(request: Request) -> Response:
    """What deleting the image would do; the answer is a form: a page, or what a dialog shows where
    our script asks for that.
    """
    site, session = site_of(request), session_of(request)
    await site.access.require(session, "list", user_api.IMAGES)
    image = _image(request)
    users = await _users(request, image)
    if _DIALOG in request.headers:
        response = page(request, "image/delete_dialog.html", image=image, users=users)
        response.headers[_DIALOG] = "1"
        return response
    return page(request, "image/delete.html", image=image, users=users, problem="")


async def delete(request: Request) -> Response:
    """Ask for deletion; finalizers may keep the object for a while."""
    site, session, name = site_of(request), session_of(request), image_named_in(request)
    path = user_api.IMAGES.path(site.namespace, name)
    try:
        await site.access.api.request(session.token, "DELETE", path)
    except (DomainError, Refused) as exc:
        problem = problem_or_raise(exc)
        if problem.status == 404:
            return see_other("/images")
        image = _image(request)
        users = await _users(request, image)
        values = {"image": image, "users": users, "problem": problem.message}
        return page(request, "image/delete.html", status=problem.status, **values)
    return see_other("/images")


async def retry(request: Request) -> Response:
    """Have failed copies made anew."""
    return await _annotate(request, RETRY_AT)


async def verify(request: Request) -> Response:
    """Have ready copies hashed again."""
    return await _annotate(request, VERIFY_AT)


routes = [
    Route("/images/{name}", show, methods=["GET"]),
    Route("/images/{name}/delete", ask_deletion, methods=["GET"]),
    Route("/images/{name}/delete", delete, methods=["POST"]),
    Route("/images/{name}/retry", retry, methods=["POST"]),
    Route("/images/{name}/verify", verify, methods=["POST"]),
]


async def _annotate(request: Request, key: str) -> Response:
    site, session, name = site_of(request), session_of(request), image_named_in(request)
    now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    body = {"metadata": {"annotations": {key: now}}}
    path = user_api.IMAGES.path(site.namespace, name)
    try:
        await site.access.api.request(session.token, "PATCH", path, body=body)
    except (DomainError, Refused) as exc:
        problem = problem_or_raise(exc)
        return await _detail(request, problem.message, problem.status)
    return see_other(f"/images/{name}")


async def _detail(request: Request, problem: str = "", status: int = 200) -> Response:
    site, session = site_of(request), session_of(request)
    await site.access.require(session, "list", user_api.IMAGES)
    watched = site.watched
    kinds = (watched.images, watched.copies, watched.volumes)
    mark = mark_of(*(kind.cached() for kind in kinds))
    image = await _known(request)
    pools = {pool.spec.pool_uuid: pool for pool in watched.pools.cached()}
    detail = detail_of(image, watched.copies_of(image.meta.name), pools, site.rates)
    users, events, names = await asyncio.gather(
        _users(request, image), _events(request, image), class_names(request, image.meta.name)
    )
    handle = handle_of(image)
    annotations = image.meta.annotations
    return page(
        request,
        "image/page.html",
        status=status,
        image=detail,
        mark=mark,
        users=users,
        events=events,
        handle=handle,
        manifests=_manifests(image, handle, names, site) if handle else [],
        upload_length=annotations.get(UPLOAD_LENGTH, ""),
        asked={"retry": annotations.get(RETRY_AT, ""), "verify": annotations.get(VERIFY_AT, "")},
        may_update=await site.access.may(session, "update", user_api.IMAGES),
        may_delete=await site.access.may(session, "delete", user_api.IMAGES),
        problem=problem,
    )


def _manifests(image: BackingImage, handle: str, names: Names, site: Site) -> list[tuple[str, str]]:
    """Return (kind, YAML) of each object, and all of them."""
    size_bytes = image.status.virtual_size_bytes or _GIB
    objects = objects_for(handle, names, driver=site.driver_name, size_bytes=size_bytes)
    return [("All three", to_yaml(*objects)), *((o["kind"], to_yaml(o)) for o in objects)]


async def _users(request: Request, image: BackingImage) -> Any:
    watched = site_of(request).watched
    found = await asyncio.gather(*(list_allowed(request, kind) for kind in _KINDS.values()))
    lists = dict(zip(_KINDS, found, strict=True))
    hidden = [_KINDS[key].kind for key, objects in lists.items() if objects is None]
    cluster = Cluster(**{key: objects or () for key, objects in lists.items()}, hidden=hidden)
    volumes = watched.volumes_of(image.meta.name)
    return users_of(image, volumes, watched.images.cached(), cluster)


async def _events(request: Request, image: BackingImage) -> Sequence[Mapping[str, Any]]:
    site = site_of(request)
    about = {"involvedObject.kind": "BackingImage", "involvedObject.name": image.meta.name}
    found = await list_allowed(request, user_api.EVENTS, namespace=site.namespace, fields=about)
    return sorted(found or (), key=lambda e: str(e.get("lastTimestamp") or ""), reverse=True)[:20]


def _image(request: Request) -> BackingImage:
    image = site_of(request).watched.images.find_cached(image_named_in(request))
    if image is None:
        raise NotFound("backing image", image_named_in(request))
    return image


async def _known(request: Request) -> BackingImage:
    """Return the image, also one that was made a moment ago and no watch has told of yet."""
    watched = site_of(request).watched
    image = watched.images.find_cached(image_named_in(request)) or await watched.images.find(
        image_named_in(request)
    )
    if image is None:
        raise NotFound("backing image", image_named_in(request))
    return image
