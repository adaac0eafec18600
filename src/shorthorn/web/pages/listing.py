"""What pages list of the API server with the user's rights, beside what is watched.

Owns: that a kind which the user may not list is no mistake, and which classes manifests name.
Used by pages, and by the event stream of volumes.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shorthorn.domain.errors import DomainError
from shorthorn.domain.manifests import Names
from shorthorn.kube import user_api
from shorthorn.kube.user_api import Refused
from shorthorn.web.site import session_of, site_of
from shorthorn.web.views import volumes

if TYPE_CHECKING:
    from starlette.requests import Request


async def list_allowed(
    request: Request, kind: user_api.Resource, **selection: Any
) -> Sequence[Mapping[str, Any]] | None:
    """Return what the user may list; None where they may not, or nobody answers."""
    try:
        return await site_of(request).access.api.list(session_of(request).token, kind, **selection)
    except (Refused, DomainError):
        return None


async def names_of_volumes(request: Request) -> volumes.Names:
    """Return what people call volumes and snapshots, as far as the user may see."""
    kinds = (user_api.PERSISTENT_VOLUMES, user_api.CONTENTS)
    found = await asyncio.gather(*(list_allowed(request, kind) for kind in kinds))
    hidden = [kind.kind for kind, objects in zip(kinds, found, strict=True) if objects is None]
    names = volumes.read_names(*(objects or () for objects in found))
    return dataclasses.replace(names, hidden=hidden)


async def class_names(request: Request, name: str) -> Names:
    """Return names for manifests: of classes that exist, where the user may see them."""
    driver = site_of(request).driver_name
    snapshot_classes, storage_classes = await asyncio.gather(
        list_allowed(request, user_api.SNAPSHOT_CLASSES),
        list_allowed(request, user_api.STORAGE_CLASSES),
    )
    ours = [
        str(c["metadata"]["name"])
        for c in snapshot_classes or ()
        if c.get("driver") == driver and (c.get("parameters") or {}).get("type") == "bi"
    ]
    storage = [
        str(c["metadata"]["name"]) for c in storage_classes or () if c.get("provisioner") == driver
    ]
    fallback = Names(name)
    return Names(
        name,
        snapshot_class=ours[0] if ours else fallback.snapshot_class,
        storage_class=storage[0] if storage else fallback.storage_class,
    )
