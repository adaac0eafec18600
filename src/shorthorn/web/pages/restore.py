"""A claim from an image or a snapshot: the three objects of a restore, made with the user's rights.

Owns: the form, and the order in which the objects are made. What exists already and is the same is
no mistake, so that a form can be sent again after half of it failed.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from starlette.routing import Route

from shorthorn.domain.errors import DomainError, InvalidArgument, NotFound
from shorthorn.domain.handles import SnapshotHandle
from shorthorn.kube import user_api
from shorthorn.kube.user_api import Refused
from shorthorn.web.pages.listing import class_names
from shorthorn.web.site import page, problem_or_raise, read_form, session_of, site_of, text_of
from shorthorn.web.views.manifests import Names, handle_of, objects_for, quantity, to_yaml

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.requests import Request
    from starlette.responses import Response

    from shorthorn.web.site import Site

_FIELDS: Final = ("name", "namespace", "size", "storage_class", "snapshot_class", "mode")
_NAME: Final = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_QUANTITY: Final = re.compile(r"([1-9][0-9]{0,14})(Ki|Mi|Gi|Ti|)")
_UNITS: Final = {"": 1, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40}
_MODES: Final = ("Filesystem", "Block")


async def show(request: Request) -> Response:
    """The form for one image or snapshot."""
    site = site_of(request)
    origin, handle, size_bytes = await _origin(request, request.query_params)
    names = await class_names(request, origin["name"])
    values = {
        "name": names.name,
        "namespace": "default",
        "size": quantity(size_bytes),
        "storage_class": names.storage_class,
        "snapshot_class": names.snapshot_class,
        "mode": _MODES[0],
    }
    return _form(request, origin, handle, values, site)


async def create(request: Request) -> Response:
    """Make content, snapshot and claim."""
    site, session = site_of(request), session_of(request)
    form = await read_form(request)
    origin, handle, _ = await _origin(request, form)
    values = {key: text_of(form, key) for key in _FIELDS}
    try:
        objects = _objects(handle, values, site)
        kinds = (user_api.CONTENTS, user_api.VOLUME_SNAPSHOTS, user_api.CLAIMS)
        for obj, kind in zip(objects, kinds, strict=True):
            path = kind.path(values["namespace"])
            try:
                await site.access.api.request(session.token, "POST", path, body=obj)
            except Refused as exc:
                if exc.reason != "AlreadyExists" or kind is user_api.CLAIMS:
                    raise
                await _check_same(site, session.token, kind, values, obj)
    except (DomainError, Refused) as exc:
        problem = problem_or_raise(exc)
        return _form(request, origin, handle, values, site, problem.message, problem.status)
    return page(request, "restore/done.html", origin=origin, values=values)


routes = [
    Route("/restore", show, methods=["GET"]),
    Route("/restore", create, methods=["POST"]),
]


async def _check_same(
    site: Site, token: str, kind: user_api.Resource, values: Mapping[str, str], wanted: Any
) -> None:
    """Raise InvalidArgument where an object of that name is about something else."""
    path = kind.path(values["namespace"], values["name"])
    found = await site.access.api.request(token, "GET", path)
    if (found.get("spec") or {}).get("source") != wanted["spec"]["source"]:
        raise InvalidArgument("name", f"there is another {kind.kind} {values['name']} already")


def _objects(handle: str, values: Mapping[str, str], site: Site) -> tuple[dict[str, Any], ...]:
    for field in ("name", "namespace", "storage_class", "snapshot_class"):
        is_left_out = field == "snapshot_class" and not values[field]
        if not is_left_out and not _NAME.fullmatch(values[field]):
            problem = "use lower-case letters, digits, '-' and '.'"
            raise InvalidArgument(field.replace("_", " "), problem)
    size = _QUANTITY.fullmatch(values["size"])
    if size is None:
        raise InvalidArgument("size", "write a number and Mi, Gi or Ti, as in 10Gi")
    if values["mode"] not in _MODES:
        raise InvalidArgument("mode", f"write one of {', '.join(_MODES)}")
    names = Names(
        values["name"], values["namespace"], values["snapshot_class"], values["storage_class"]
    )
    return objects_for(
        handle,
        names,
        driver=site.driver_name,
        size_bytes=int(size[1]) * _UNITS[size[2]],
        volume_mode=values["mode"],
    )


async def _origin(request: Request, given: Mapping[str, Any]) -> tuple[dict[str, str], str, int]:
    """Return what is restored, its handle and how large a claim has to be."""
    site, session = site_of(request), session_of(request)
    image_name, snapshot_name = text_of(given, "image"), text_of(given, "snapshot")
    if snapshot_name:
        await site.access.require(session, "list", user_api.SNAPSHOTS)
        snapshot = site.watched.snapshots.find_cached(snapshot_name)
        if snapshot is None:
            raise NotFound("snapshot", snapshot_name)
        handle = SnapshotHandle(snapshot.spec.volume_id, snapshot.meta.name).format()
        origin = {"kind": "snapshot", "name": snapshot_name}
        return origin, handle, snapshot.status.size_bytes
    await site.access.require(session, "list", user_api.IMAGES)
    image = site.watched.images.find_cached(image_name)
    if image is None:
        raise NotFound("backing image", image_name)
    return (
        {"kind": "image", "name": image_name},
        handle_of(image) or "",
        image.status.virtual_size_bytes,
    )


def _form(
    request: Request,
    origin: Mapping[str, str],
    handle: str,
    values: Mapping[str, str],
    site: Site,
    problem: str = "",
    status: int = 200,
) -> Response:
    try:
        preview = to_yaml(*_objects(handle, values, site))
    except DomainError:
        preview = ""
    return page(
        request,
        "restore/form.html",
        status=status,
        origin=origin,
        values=values,
        modes=_MODES,
        problem=problem,
        preview=preview,
    )
