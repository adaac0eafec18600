"""Finalizers: an object stays until its data is gone.

Owns: adding and removing one. Must never: decide when. Used by every reconciler of this package.
"""

from __future__ import annotations

import dataclasses
from typing import TypeVar

from shorthorn.domain.models import BackingImage, ImageCopy, Meta, Snapshot, Volume
from shorthorn.domain.planning import DATA_FINALIZER
from shorthorn.domain.ports import Registry

Held = TypeVar("Held", BackingImage, ImageCopy, Snapshot, Volume)


async def hold(registry: Registry[Held], obj: Held, finalizer: str = DATA_FINALIZER) -> None:
    """Add `finalizer`."""
    finalizers = (*obj.meta.finalizers, finalizer)
    await registry.update(dataclasses.replace(obj, meta=_meta(obj.meta, finalizers)))


async def release(registry: Registry[Held], obj: Held, finalizer: str = DATA_FINALIZER) -> None:
    """Remove `finalizer`; the API server then forgets an object that is being deleted."""
    left = tuple(name for name in obj.meta.finalizers if name != finalizer)
    await registry.update(dataclasses.replace(obj, meta=_meta(obj.meta, left)))


def _meta(meta: Meta, finalizers: tuple[str, ...]) -> Meta:
    return dataclasses.replace(meta, finalizers=finalizers)
