"""A claim from an image or a snapshot, and how far it is.

Owns: the form with its checks, and the page that follows the claim. The objects are made by
`web.restoring`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode

from starlette.responses import Response
from starlette.routing import Route

from shorthorn.domain.errors import DomainError, InvalidArgument, NotFound
from shorthorn.domain.handles import SnapshotHandle
from shorthorn.domain.image_bytes import CLONE_SOURCE
from shorthorn.domain.models import BackingImage, SourceType
from shorthorn.domain.names import is_object_name, problem_of_name
from shorthorn.kube import user_api
from shorthorn.kube.user_api import Refused
from shorthorn.services.image_requests import VOLUME_NAME
from shorthorn.services.sizes import CAPACITY_BYTES_MAX
from shorthorn.web.pages.listing import class_names, list_allowed
from shorthorn.web.restoring import Restoring, parse_size
from shorthorn.web.site import (
    page,
    problem_or_raise,
    read_form,
    see_other,
    session_of,
    site_of,
    text_of,
)
from shorthorn.web.views.claim import Standing, standing_of
from shorthorn.web.views.manifests import Names, handle_of, objects_for, quantity, to_yaml

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.requests import Request

    from shorthorn.web.site import Site

_FIELDS: Final = ("name", "namespace", "size", "storage_class", "snapshot_class", "mode")
_MODES: Final = ("Filesystem", "Block")
#: How the API server begins to say that there is no such namespace.
_NO_NAMESPACE: Final = 'namespaces "'
#: Clones of clones: a chain may end in itself, so it is not followed for ever.
_CLONES_MAX: Final = 16


@dataclass(frozen=True, slots=True)
class Origin:
    """What is restored. `kind`: image or snapshot; `size_bytes`: what a claim has to hold, 0 where
    nobody knows yet; `volume_id`: of the volume that it was taken of; empty: of none.
    """

    kind: str
    name: str
    handle: str
    size_bytes: int
    volume_id: str = ""

    @property
    def path(self) -> str:
        """Return the address of its form, which is also where the form is sent."""
        return "/restore?" + urlencode({self.kind: self.name})


async def show(request: Request) -> Response:
    """The form for one image or snapshot."""
    origin = await _origin(request, request.query_params)
    names = await class_names(request, origin.name)
    values = {
        "name": names.name,
        "namespace": "default",
        "size": quantity(origin.size_bytes),
        "storage_class": names.storage_class,
        "snapshot_class": names.snapshot_class,
        "mode": await _mode_of(request, origin),
    }
    return _form(request, origin, values)


async def create(request: Request) -> Response:
    """Make content, snapshot and claim."""
    site, session = site_of(request), session_of(request)
    form = await read_form(request)
    origin = await _origin(request, form)
    values = {key: text_of(form, key) for key in _FIELDS}
    try:
        objects = _objects(origin, values, site)
        await _check_storage_class(request, values["storage_class"])
        await Restoring(site.access.api, session.token).make(objects)
    except (DomainError, Refused) as exc:
        return _form(request, origin, values, exc)
    told = {origin.kind: origin.name, "namespace": values["namespace"], "name": values["name"]}
    return see_other(f"/restore/done?{urlencode(told)}")


async def follow(request: Request) -> Response:
    """How far a claim is. `seen`: what the page says already; 204 where it is still so."""
    asked = {
        key: text_of(request.query_params, key)
        for key in ("image", "snapshot", "namespace", "name")
    }
    kind = "snapshot" if asked["snapshot"] else "image"
    if not all(is_object_name(asked[key]) for key in (kind, "namespace", "name")):
        raise NotFound("claim", f"{asked['namespace']}/{asked['name']}")
    standing = await _standing(request, asked["namespace"], asked["name"])
    mark = f"{standing.state}.{_digest(standing.message)}"
    if request.query_params.get("seen") == mark:
        return Response(status_code=204)
    claim = {kind: asked[kind], "namespace": asked["namespace"], "name": asked["name"]}
    return page(
        request,
        "restore/done.html",
        origin={"kind": kind, "name": asked[kind]},
        claim=claim,
        standing=standing,
        follow=f"/restore/done?{urlencode(claim)}",
        seen=mark,
    )


routes = [
    Route("/restore", show, methods=["GET"]),
    Route("/restore", create, methods=["POST"]),
    Route("/restore/done", follow, methods=["GET"]),
]


async def _standing(request: Request, namespace: str, name: str) -> Standing:
    site, session = site_of(request), session_of(request)
    path = user_api.CLAIMS.path(namespace, name)
    try:
        claim = await site.access.api.request(session.token, "GET", path)
    except Refused as exc:
        if exc.code == 403:  # to make claims is another right than to look at them
            return Standing("hidden", exc.message)
        if exc.code != 404:
            raise
        return standing_of(None, ())
    about = {"involvedObject.kind": "PersistentVolumeClaim", "involvedObject.name": name}
    events = await list_allowed(request, user_api.EVENTS, namespace=namespace, fields=about)
    return standing_of(claim, events or ())


async def _check_storage_class(request: Request, name: str) -> None:
    """Raise InvalidArgument where there is no such class; who may not look may still use it."""
    site, session = site_of(request), session_of(request)
    path = user_api.STORAGE_CLASSES.path(name=name)
    try:
        await site.access.api.request(session.token, "GET", path)
    except Refused as exc:
        if exc.code == 404:
            raise InvalidArgument("storage class", f"there is none called {name}") from None


def _objects(origin: Origin, values: Mapping[str, str], site: Site) -> tuple[dict[str, Any], ...]:
    """Return the three objects. Raises: InvalidArgument: a field cannot be so."""
    for field in ("name", "namespace", "storage_class", "snapshot_class"):
        is_left_out = field == "snapshot_class" and not values[field]
        problem = "" if is_left_out else problem_of_name(values[field])
        if problem:
            raise InvalidArgument(field.replace("_", " "), problem)
    if values["mode"] not in _MODES:
        raise InvalidArgument("mode", f"write one of {', '.join(_MODES)}")
    names = Names(
        values["name"], values["namespace"], values["snapshot_class"], values["storage_class"]
    )
    return objects_for(
        origin.handle,
        names,
        driver=site.driver_name,
        size_bytes=_checked_size(values["size"], origin),
        volume_mode=values["mode"],
    )


def _checked_size(text: str, origin: Origin) -> int:
    """Return the bytes of a size that can be made. Raises: InvalidArgument."""
    size_bytes = parse_size(text)
    if size_bytes is None:
        raise InvalidArgument("size", "write a number and Mi, Gi or Ti, as in 10Gi")
    if size_bytes < origin.size_bytes:
        least = quantity(origin.size_bytes)
        told = f"{origin.kind} {origin.name} does not fit into {text}; write {least} or more"
        raise InvalidArgument("size", told)
    if size_bytes > CAPACITY_BYTES_MAX:
        raise InvalidArgument("size", f"{text} is too much; a volume has less than 16Ti")
    return size_bytes


async def _origin(request: Request, given: Mapping[str, Any]) -> Origin:
    """Return what is restored. Raises: NotFound, Forbidden."""
    site, session = site_of(request), session_of(request)
    image_name, snapshot_name = text_of(given, "image"), text_of(given, "snapshot")
    if snapshot_name:
        await site.access.require(session, "list", user_api.SNAPSHOTS)
        snapshot = site.watched.snapshots.find_cached(snapshot_name)
        if snapshot is None:
            raise NotFound("snapshot", snapshot_name)
        volume_id = snapshot.spec.volume_id
        handle = SnapshotHandle(volume_id, snapshot.meta.name).format()
        return Origin("snapshot", snapshot_name, handle, snapshot.status.size_bytes, volume_id)
    await site.access.require(session, "list", user_api.IMAGES)
    image = site.watched.images.find_cached(image_name)
    if image is None:
        raise NotFound("backing image", image_name)
    volume_id = _volume_of(image, site)
    size_bytes = image.status.virtual_size_bytes
    return Origin("image", image_name, handle_of(image) or "", size_bytes, volume_id)


def _volume_of(image: BackingImage, site: Site) -> str:
    """Return the volume that an image was exported from, also by way of clones; empty: of none."""
    for _ in range(_CLONES_MAX):
        if image.spec.source_type != SourceType.CLONE:
            break
        origin = site.watched.images.find_cached(image.spec.source_parameters.get(CLONE_SOURCE, ""))
        if origin is None:
            break
        image = origin
    if image.spec.source_type != SourceType.EXPORT_FROM_VOLUME:
        return ""
    return str(image.spec.source_parameters.get(VOLUME_NAME, ""))


async def _mode_of(request: Request, origin: Origin) -> str:
    """Return how a volume of the origin is most likely used: as the volume was that it was taken
    of; what came from elsewhere is the image of a disk, with partitions.
    """
    if not origin.volume_id:
        return "Block"
    for volume in await list_allowed(request, user_api.PERSISTENT_VOLUMES) or ():
        spec = volume.get("spec") or {}
        if (spec.get("csi") or {}).get("volumeHandle") == origin.volume_id:
            return str(spec.get("volumeMode") or "Filesystem")
    return "Filesystem"


def _form(
    request: Request, origin: Origin, values: Mapping[str, str], error: Exception | None = None
) -> Response:
    """Show the form with what was typed. `error`: said above it, and at the field it is about."""
    problem = problem_or_raise(error) if error is not None else None
    try:
        preview = to_yaml(*_objects(origin, values, site_of(request)))
    except DomainError:
        preview = ""
    field, told = _field_of(error)
    return page(
        request,
        "restore/form.html",
        status=problem.status if problem else 200,
        origin=origin,
        values=values,
        modes=_MODES,
        problem=problem.message if problem else "",
        wrong={**dict.fromkeys(_FIELDS, ""), **({field: told} if field else {})},
        least=quantity(origin.size_bytes) if origin.size_bytes else "",
        preview=preview,
    )


def _field_of(error: Exception | None) -> tuple[str, str]:
    """Return the field that an error is about, and its sentence; both empty: of none."""
    if isinstance(error, InvalidArgument):
        return error.field.replace(" ", "_"), error.problem
    if isinstance(error, Refused) and error.code == 404 and error.message.startswith(_NO_NAMESPACE):
        return "namespace", "there is no such namespace"
    return "", ""


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
