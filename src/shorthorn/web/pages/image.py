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
from shorthorn.web.site import page, problem_or_raise, see_other, session_of, site_of
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
    """What deleting the image would do; the answer is a form."""
    site, session = site_of(request), session_of(request)
    await site.access.require(session, "list", user_api.IMAGES)
    image = _image(request)
    users = await _users(request, image)
    return page(request, "image/delete.html", image=image, users=users, problem="")


async def delete(request: Request) -> Response:
    """Ask for deletion; finalizers may keep the object for a while."""
    site, session, name = site_of(request), session_of(request), _name(request)
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
    site, session, name = site_of(request), session_of(request), _name(request)
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
        _users(request, image), _events(request, image), _class_names(request, image)
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


async def _class_names(request: Request, image: BackingImage) -> Names:
    """Return names for manifests: of classes that exist, where the user may see them."""
    driver = site_of(request).driver_name
    snapshot_classes, storage_classes = await asyncio.gather(
        _list(request, user_api.SNAPSHOT_CLASSES), _list(request, user_api.STORAGE_CLASSES)
    )
    ours = [
        str(c["metadata"]["name"])
        for c in snapshot_classes or ()
        if c.get("driver") == driver and (c.get("parameters") or {}).get("type") == "bi"
    ]
    storage = [
        str(c["metadata"]["name"]) for c in storage_classes or () if c.get("provisioner") == driver
    ]
    fallback = Names(image.meta.name)
    return Names(
        image.meta.name,
        snapshot_class=ours[0] if ours else fallback.snapshot_class,
        storage_class=storage[0] if storage else fallback.storage_class,
    )


async def _users(request: Request, image: BackingImage) -> Any:
    watched = site_of(request).watched
    found = await asyncio.gather(*(_list(request, kind) for kind in _KINDS.values()))
    lists = dict(zip(_KINDS, found, strict=True))
    hidden = [_KINDS[key].kind for key, objects in lists.items() if objects is None]
    cluster = Cluster(**{key: objects or () for key, objects in lists.items()}, hidden=hidden)
    volumes = watched.volumes_of(image.meta.name)
    return users_of(image, volumes, watched.images.cached(), cluster)


async def _events(request: Request, image: BackingImage) -> Sequence[Mapping[str, Any]]:
    site = site_of(request)
    about = {"involvedObject.kind": "BackingImage", "involvedObject.name": image.meta.name}
    found = await _list(request, user_api.EVENTS, namespace=site.namespace, fields=about)
    return sorted(found or (), key=lambda e: str(e.get("lastTimestamp") or ""), reverse=True)[:20]


async def _list(
    request: Request, kind: user_api.Resource, **selection: Any
) -> Sequence[Mapping[str, Any]] | None:
    """Return what the user may list; None where they may not, or nobody answers."""
    try:
        return await site_of(request).access.api.list(session_of(request).token, kind, **selection)
    except (Refused, DomainError):
        return None


def _name(request: Request) -> str:
    return str(request.path_params["name"])


def _image(request: Request) -> BackingImage:
    image = site_of(request).watched.images.find_cached(_name(request))
    if image is None:
        raise NotFound("backing image", _name(request))
    return image


async def _known(request: Request) -> BackingImage:
    """Return the image, also one that was made a moment ago and no watch has told of yet."""
    watched = site_of(request).watched
    image = watched.images.find_cached(_name(request)) or await watched.images.find(_name(request))
    if image is None:
        raise NotFound("backing image", _name(request))
    return image
