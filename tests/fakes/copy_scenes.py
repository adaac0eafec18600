"""Images, their copies, pools and volumes as the plan of copies sees them, and what it planned.

`plan` plans as the reconciler of BackingImages does; `created`, `removed` and `waits` read a plan.
"""

import dataclasses
from datetime import UTC, datetime, timedelta

from shorthorn.domain import image_status
from shorthorn.domain.copies import last_references, plan_copies
from shorthorn.domain.copy_scene import is_alive
from shorthorn.domain.copy_steps import CreateCopy, RemoveCopy, Wait
from shorthorn.domain.models import (
    BackingImage,
    BackingImageSpec,
    Condition,
    CopyState,
    DiskFileSpec,
    ImageCopy,
    ImageCopySpec,
    ImageCopyStatus,
    Meta,
    Pool,
    PoolSpec,
    PoolStatus,
    Volume,
    VolumeSource,
    VolumeSpec,
    VolumeState,
    VolumeStatus,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
GIB = 1 << 30
ASKED = DiskFileSpec()
EVICTED = DiskFileSpec(eviction_requested=True)


def pool(uuid, *, node="", room=100 * GIB, tags=(), node_tags=(), evicted=False, alive=True):
    spec = PoolSpec(node or f"node-{uuid}", uuid, "/", tags, node_tags, "h:1", evicted)
    ready = Condition("Ready", alive, "Open" if alive else "Silent")
    return Pool(Meta(uuid), spec, PoolStatus(available_bytes=room, conditions=(ready,)))


def copy(uuid, state=CopyState.READY, *, node="", source="sync", since=NOW, **status):
    spec = ImageCopySpec("i", "u", node or f"node-{uuid}", uuid, source)
    if state is CopyState.READY:
        status = {"size_bytes": GIB, "real_size_bytes": GIB, "checksum": "c", **status}
    return ImageCopy(Meta(f"i-{uuid}"), spec, ImageCopyStatus(state, changed_at=since, **status))


def deleting(obj):
    return dataclasses.replace(obj, meta=dataclasses.replace(obj.meta, deleting=True))


def image(floor=1, *, source="download", parameters=None, files=None, **selectors):
    spec = BackingImageSpec(
        source,
        parameters or {},
        min_number_of_copies=floor,
        disk_file_spec=files or {},
        **selectors,
    )
    return BackingImage(Meta("i"), spec)


def volume(uuid, state=VolumeState.READY, *, name="v", source="i"):
    spec = VolumeSpec(name, f"node-{uuid}", uuid, GIB, VolumeSource(image=source))
    return Volume(Meta(name), spec, VolumeStatus(state))


def seen(wanted, copies, pools, volumes=(), now=NOW):
    """Return the image with the status that the reconciler gives it before it plans."""
    alive = {p.spec.pool_uuid for p in pools if is_alive(p)}
    status = image_status.gather(wanted, copies, alive, now)
    references = last_references(wanted, copies, volumes, now)
    return dataclasses.replace(
        wanted, status=dataclasses.replace(status, disk_last_ref_at=references)
    )


def plan(wanted, copies, pools, volumes=(), now=NOW, since=None):
    """Plan as the reconciler does. `since`: when copies were last used, by pool."""
    status = dataclasses.replace(wanted.status, disk_last_ref_at=since or {})
    wanted = dataclasses.replace(wanted, status=status)
    wanted = seen(wanted, copies, pools, volumes, now)
    return list(plan_copies(wanted, copies, pools, volumes, now))


def annotated(made, **annotations):
    keys = {f"shorthorn.io/{key.replace('_', '-')}": text for key, text in annotations.items()}
    return dataclasses.replace(made, meta=dataclasses.replace(made.meta, annotations=keys))


def created(steps):
    return [step.pool.spec.pool_uuid for step in steps if isinstance(step, CreateCopy)]


def removed(steps):
    return [step.name.removeprefix("i-") for step in steps if isinstance(step, RemoveCopy)]


def waits(steps):
    return [step.reason for step in steps if isinstance(step, Wait)]
