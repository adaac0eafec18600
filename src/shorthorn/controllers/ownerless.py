"""Data in this node's pool that no object names.

Owns: finding it, for the log. Must never: delete or adopt it: somebody restored an old database, or
copied files into the pool, and only they know what it is. Called by `daemon` at start, before
anything makes new data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shorthorn.controllers.contents import CONTENT
from shorthorn.domain.models import ImageCopy, Snapshot, Volume
from shorthorn.domain.ports import Engine, Registry


async def find_ownerless(
    engine: Engine,
    volumes: Registry[Volume],
    snapshots: Registry[Snapshot],
    copies: Registry[ImageCopy],
    *,
    labels: Mapping[str, str] | None = None,
) -> Sequence[str]:
    """Return kind and name, as in `volumes/pvc-1`, of committed data without an object.

    What was brought for a volume that is being made is not such data: its volume uses or removes
    it. `labels` are those of all objects that can own data here: a node's own.
    """
    owned = {f"volumes/{volume.meta.name}" for volume in await volumes.list(labels=labels)}
    owned |= {f"snapshots/{snapshot.meta.name}" for snapshot in await snapshots.list(labels=labels)}
    owned |= {
        f"images/{copy.spec.image}/{copy.spec.image_uuid}"
        for copy in await copies.list(labels=labels)
    }
    there = [f"volumes/{record.volume_id}" for record in await engine.list_volumes()]
    there += [f"snapshots/{record.snapshot_id}" for record in await engine.list_snapshots()]
    there += [
        f"images/{record.key.name}/{record.key.uuid}"
        for record in await engine.list_images()
        if record.source.get("type") != CONTENT
    ]
    return [name for name in there if name not in owned]
