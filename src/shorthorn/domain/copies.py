"""Which copies of an image should exist on which pools, as pure functions of what is there.

Owns: the plan of one image over all pools: its first copy, the floor of `minNumberOfCopies`, copies
that are asked for by `diskFileSpecMap`, eviction, the removal of unused and failed copies, and what
to do when all are lost. Must never: do I/O, wait or know the time. `controllers.backing_images`
observes, plans, and carries out the steps; a satisfied state plans nothing.

The rules, in the order in which they win:

1. The last ready copy is never removed, and a copy that another volume is being made from stays.
2. A copy counts while its pool is there; on a silent node it is unknown, neither used nor removed.
3. Copies after the first come from copies (`sync`), once the image's checksum is known, so that
   every one of them is compared with it. At most as many move at once as are ready, and no more
   than `SYNCS_MAX`; one that waits for a peer takes nobody's turn.
4. What is asked for explicitly comes first and goes to its pool, whatever the selectors say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

from shorthorn.domain.clone_plan import hindrance, is_unmade_clone, stranded
from shorthorn.domain.copy_scene import (
    Origin,
    Scene,
    comes_again,
    promised_length,
    was_ready,
    wishes,
)
from shorthorn.domain.copy_steps import (
    CopyStep,
    CreateCopy,
    DropWish,
    NoteRetry,
    Refuse,
    RemoveCopy,
    Wait,
)
from shorthorn.domain.image_bytes import (
    PROMISED,
    RETRIED,
    RETRY_AT,
    UPLOAD_LENGTH,
)
from shorthorn.domain.models import (
    BackingImage,
    CopyState,
    ImageCopy,
    Pool,
    SourceType,
    Volume,
    VolumeState,
)

RECOVERY_WAIT: Final = timedelta(seconds=300)
"""How long a failed copy stays; Longhorn's backing-image-recovery-wait-interval."""

CLEANUP_WAIT: Final = timedelta(minutes=60)
"""How long a copy above the floor stays unused; Longhorn's backing-image-cleanup-wait-interval."""

SYNCS_MAX: Final = 3
"""Most copies of one image that move at once; Longhorn sends a file at most three times at once."""

_SUPPORTED = (
    SourceType.DOWNLOAD,
    SourceType.EXPORT_FROM_VOLUME,
    SourceType.UPLOAD,
    SourceType.CLONE,
)


def plan_copies(
    image: BackingImage,
    copies: Sequence[ImageCopy],
    pools: Sequence[Pool],
    volumes: Sequence[Volume],
    now: datetime,
    origin: Origin | None = None,
) -> tuple[CopyStep, ...]:
    """Return what is to be done now about the copies of `image`, whose status is up to date.

    Args: copies: all of this image, also those that are being deleted. volumes: at least the one
        that an export comes from and, where there are several copies, all made from the image.
    """
    scene = Scene(image, copies, pools, volumes, now, origin)
    retry = image.meta.annotations.get(RETRY_AT, "")
    if retry and retry != image.meta.annotations.get(RETRIED):
        return _retry(scene, retry)
    return _plan(scene)


def _plan(scene: Scene) -> tuple[CopyStep, ...]:
    if not scene.live:
        return _begin(scene)
    if not scene.ready:
        return _recover(scene)
    return (*_removals(scene), *_additions(scene))


def last_references(
    image: BackingImage, copies: Sequence[ImageCopy], volumes: Sequence[Volume], now: datetime
) -> Mapping[str, datetime]:
    """Return status.diskLastRefAtMap: since when nobody uses the copy of each pool.

    A pool is missing while volumes on it were made from the image. To ask for a copy counts as
    using it at that moment. Nothing is noted of a copy that is alone: it is never removed.
    """
    live = (copy for copy in copies if not copy.meta.deleting)
    noted = {copy.spec.pool_uuid for copy in live if copy.status.state is CopyState.READY}
    noted |= wishes(image)
    if len(noted) < 2:
        return {}
    used = {v.spec.pool_uuid for v in volumes if v.spec.source.image == image.meta.name}
    known = image.status.disk_last_ref_at
    return {uuid: known.get(uuid, now) for uuid in sorted(noted - used)}


# --- asked for again


def _retry(scene: Scene, value: str) -> tuple[CopyStep, ...]:
    """Plan an image that is to be tried again, once for `value`.

    New copies carry the value; so whichever step the controller dies at, the next one does not take
    the outcome of this try for that of the last.
    """
    is_over = _is_of_another_moment(scene.image)
    old = [c for c in scene.failed if c.meta.annotations.get(RETRY_AT) != value]
    if is_over and not scene.ready:
        # Nothing can take its place, and it says why it failed.
        old = [c for c in old if c.spec.source_type != SourceType.EXPORT_FROM_VOLUME]
    if old:
        return tuple(RemoveCopy(c.meta.name, "it is made anew") for c in old)
    if scene.live:
        return (NoteRetry(value), *_plan(scene))
    if scene.copies:
        return (Wait("Removing", "a copy is being removed"),)
    if is_over:
        return (NoteRetry(value), *_plan(scene))
    steps = _begin_anew(scene)
    made_or_waiting = any(isinstance(step, CreateCopy | Wait) for step in steps)
    return steps if made_or_waiting else (NoteRetry(value), *steps)


def _is_of_another_moment(image: BackingImage) -> bool:
    """Whether the image holds what its volume held when somebody was told so: what the volume holds
    now would be another image.
    """
    is_told = was_ready(image) or PROMISED in image.meta.annotations
    return is_told and image.spec.source_type == SourceType.EXPORT_FROM_VOLUME


# --- without a ready copy


def _begin(scene: Scene) -> tuple[CopyStep, ...]:
    """Plan an image of which there is no copy."""
    image = scene.image
    if scene.copies:
        return (Wait("Removing", "a copy is being removed"),)
    if image.failure is not None and not is_unmade_clone(image):
        return _fetch_again(scene)
    if image.is_ready or was_ready(image) or _is_of_another_moment(image):
        # Nobody asked them to go: the image cannot be made again in silence.
        return (Refuse("Corrupt", "all copies of the image are gone"),)
    return _begin_anew(scene)


def _begin_anew(scene: Scene) -> tuple[CopyStep, ...]:
    """Plan the first copy, whatever was before."""
    image = scene.image
    if image.spec.source_type not in _SUPPORTED:
        message = f"source type {image.spec.source_type} is not supported"
        return (Refuse("UnsupportedSource", message),)
    if image.spec.source_type == SourceType.EXPORT_FROM_VOLUME:
        return _begin_export(scene)
    if image.spec.source_type == SourceType.CLONE:
        return _begin_clone(scene)
    if image.spec.source_type == SourceType.UPLOAD and promised_length(image) == 0:
        said = image.meta.annotations.get(UPLOAD_LENGTH, "")
        message = f"annotation {UPLOAD_LENGTH}: {said!r} is not a number of bytes above 0"
        return (Refuse("InvalidArgument", message),)
    return _begin_download(scene)


def _begin_download(scene: Scene) -> tuple[CopyStep, ...]:
    asked_for = [
        pool
        for uuid, pool in scene.alive.items()
        if uuid in wishes(scene.image) and not scene.is_evicted(uuid)
    ]
    found = asked_for or scene.fitting()
    if not found:
        return (Wait("NoPool", _why_nowhere(scene)),)
    return (CreateCopy(found[0], scene.image.spec.source_type),)


def _begin_export(scene: Scene) -> tuple[CopyStep, ...]:
    """An export stays in the pool of its volume: extents are shared only within a file system."""
    volume_id = scene.image.spec.source_parameters.get("volume-name", "")
    volume = next((v for v in scene.volumes if v.meta.name == volume_id), None)
    if volume is None or volume.status.state is not VolumeState.READY:
        state = "does not exist" if volume is None else f"is {volume.status.state}"
        return (Refuse("VolumeNotFound", f"volume {volume_id} {state}"),)
    pool = scene.alive.get(volume.spec.pool_uuid)
    if pool is None:
        message = f"pool {volume.spec.pool_uuid} of volume {volume_id} is away"
        return (Wait("NoPool", message),)
    return (CreateCopy(pool, scene.image.spec.source_type),)


def _begin_clone(scene: Scene) -> tuple[CopyStep, ...]:
    """A clone begins where its origin is, to share extents; else on any pool, by way of a peer.

    Until its origin is ready it waits, or says that the origin has failed; either is judged anew at
    each look, so that it begins when somebody has mended that.
    """
    hindered = hindrance(scene)
    if hindered is not None:
        return (hindered,)
    copies = scene.origin.copies if scene.origin else ()
    there = {c.spec.pool_uuid for c in copies if c.status.state is CopyState.READY}
    asked_for = [p for u, p in scene.alive.items() if u in wishes(scene.image)]
    found = asked_for or scene.fitting()
    if not found:
        return (Wait("NoPool", _why_nowhere(scene)),)
    beside = [pool for pool in found if pool.spec.pool_uuid in there]
    return (CreateCopy((beside or found)[0], SourceType.CLONE),)


def _recover(scene: Scene) -> tuple[CopyStep, ...]:
    """Plan an image that has copies and no ready one."""
    given_up = stranded(scene)
    if given_up:
        return given_up
    if scene.moving:
        return ()
    if len(scene.failed) < len(scene.live):
        return (Wait("NodeAway", "the nodes of its copies do not report"),)
    wait = _recovery_wait(scene)
    if wait is None:
        return ()
    if wait.until is not None and wait.until > scene.now:
        return (wait,)
    return tuple(RemoveCopy(c.meta.name, "it is downloaded again") for c in scene.failed)


def _fetch_again(scene: Scene) -> tuple[CopyStep, ...]:
    wait = _recovery_wait(scene)
    if wait is None:
        return ()
    if wait.until is not None and wait.until > scene.now:
        return (wait,)
    return _begin_download(scene)


def _recovery_wait(scene: Scene) -> Wait | None:
    """Return until when a lost image waits for its next download; None: it stays failed."""
    image, failure = scene.image, scene.image.failure
    if failure is None or failure.changed_at is None or not comes_again(image):
        return None
    until = failure.changed_at + RECOVERY_WAIT
    return Wait("Recovering", "it will be downloaded again", until)


def _why_nowhere(scene: Scene) -> str:
    if not scene.alive:
        return "no pool is ready"
    if scene.image.spec.node_selector or scene.image.spec.disk_selector:
        return "no pool with room carries the tags of nodeSelector and diskSelector"
    return "no further pool is ready and has room"


# --- with at least one ready copy


def _removals(scene: Scene) -> list[CopyStep]:
    steps: list[CopyStep] = []
    for copy in scene.failed:
        # By the node's clock, which may be slow: then by when the API server got the copy, or it
        # would be made anew without a pause.
        failed_at = copy.status.changed_at or scene.now
        until = max(failed_at, copy.meta.created_at or failed_at) + RECOVERY_WAIT
        if until <= scene.now or scene.is_evicted(copy.spec.pool_uuid):
            steps.append(RemoveCopy(copy.meta.name, "it failed"))
        else:
            steps.append(Wait("CopyFailed", copy.status.message, until))
    return [*steps, *_evictions(scene), *_unused(scene)]


def _evictions(scene: Scene) -> list[CopyStep]:
    """Remove copies that have to leave, once others are ready. As many as the floor asks for where
    they can be had; one where there is no further pool.
    """
    leaving = [c for c in scene.ready if c not in scene.staying]
    leaving += [c for c in scene.moving if scene.is_evicted(c.spec.pool_uuid)]
    if not scene.staying:
        return []
    is_coming = len(scene.proper) < scene.floor and (
        bool(scene.fitting()) or any(c not in leaving for c in scene.moving)
    )
    if is_coming:
        return []
    steps: list[CopyStep] = []
    for copy in leaving:
        if not scene.is_being_cloned(copy):
            steps += [*_wish_of(scene, copy), RemoveCopy(copy.meta.name, "it is evicted")]
    return steps


def _wish_of(scene: Scene, copy: ImageCopy) -> list[CopyStep]:
    """A copy that goes is wished for no more, or it would come back."""
    pool_uuid = copy.spec.pool_uuid
    return [DropWish(pool_uuid)] if pool_uuid in wishes(scene.image) else []


def _unused(scene: Scene) -> list[CopyStep]:
    """Remove one copy above the floor that was not used for long; on doubly used nodes first."""
    spare = [copy for copy in scene.staying if copy not in scene.proper]
    spare += scene.proper if len(scene.proper) > scene.floor else []
    if len(scene.proper) < scene.floor:
        return []
    nodes = [copy.spec.node_id for copy in scene.staying]
    idle = sorted(
        ((since, copy) for copy in spare if (since := _idle_since(scene, copy))),
        key=lambda pair: (-nodes.count(pair[1].spec.node_id), pair[0], pair[1].meta.name),
    )
    for since, copy in idle:
        if since + CLEANUP_WAIT > scene.now:
            continue
        remove = RemoveCopy(copy.meta.name, "nobody used it for an hour")
        return [*_wish_of(scene, copy), remove]
    if not idle:
        return []
    until = min(since for since, _ in idle) + CLEANUP_WAIT
    return [Wait("Unused", "a copy above the minimum is not used", until)]


def _idle_since(scene: Scene, copy: ImageCopy) -> datetime | None:
    """Return since when nobody uses a copy, at the earliest since it is ready; None: it is used."""
    since = scene.image.status.disk_last_ref_at.get(copy.spec.pool_uuid)
    if since is None or scene.is_being_cloned(copy):
        return None
    return max(since, copy.status.changed_at or since)


def _additions(scene: Scene) -> list[CopyStep]:
    wanted, lacking = _wanted_pools(scene)
    waits: list[CopyStep] = [] if lacking is None else [lacking]
    if not wanted:
        return waits or _on_their_way(scene)
    if not scene.image.status.checksum:
        return [Wait("Computing", "copies are made when the checksum is known")]
    turns = min(len(scene.ready), SYNCS_MAX) - len([c for c in scene.moving if not c.status.reason])
    if turns <= 0:
        return [Wait("Copying", "copies are made one after another")]
    return [*(CreateCopy(pool, SourceType.SYNC) for pool in wanted[:turns]), *waits]


def _on_their_way(scene: Scene) -> list[CopyStep]:
    ready = {copy.spec.pool_uuid for copy in scene.ready}
    asked_for = {uuid for uuid in wishes(scene.image) if uuid in scene.alive}
    if not scene.moving or (len(scene.proper) >= scene.floor and asked_for <= ready):
        return []
    message = f"{len(scene.proper)} of {scene.floor} copies are ready, more are on their way"
    return [Wait("Copying", message)]


def _wanted_pools(scene: Scene) -> tuple[list[Pool], Wait | None]:
    """Return the pools that should get a copy, in order, and what is lacking beyond them."""
    taken = {copy.spec.pool_uuid for copy in scene.copies}
    wanted = [
        pool
        for uuid, pool in sorted(scene.alive.items())
        if uuid in wishes(scene.image) and uuid not in taken and not scene.is_evicted(uuid)
    ]
    # A failed copy keeps its place until its time is over, or it would fail on pool after pool.
    counted = [*scene.proper, *scene.moving, *scene.failed]
    there = len([c for c in counted if not scene.is_evicted(c.spec.pool_uuid)])
    missing = scene.floor - there - len(wanted)
    if missing <= 0:
        return wanted, None
    further = [pool for pool in scene.fitting() if pool not in wanted]
    wanted += _spread(further, missing)
    if len(further) >= missing:
        return wanted, None
    message = f"{len(scene.proper)} of {scene.floor} copies are ready: {_why_nowhere(scene)}"
    return wanted, Wait("NoPool", message)


def _spread(pools: Sequence[Pool], count: int) -> list[Pool]:
    """Return `count` of the pools, best first, on different nodes as far as there are any."""
    nodes: set[str] = set()
    first: list[Pool] = []
    second: list[Pool] = []
    for pool in pools:
        (second if pool.spec.node_id in nodes else first).append(pool)
        nodes.add(pool.spec.node_id)
    return [*first, *second][:count]
