"""BackingImages: carry out the plan of their copies, tell their states, see to their end.

Owns: reconciling BackingImage, the only writer of its status. Must never: touch a pool, nor decide
which copies there should be (`domain.copies` does). Run by `controllers.controller`, in a cluster
by the controller that leads.

An image is looked at when it, one of its copies, a volume made from it or a pool changes; the three
`image…_of_…` methods tell whoever follows those kinds which images that are. Times are waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import re
import secrets
from collections.abc import Callable, Hashable, Mapping, Sequence
from datetime import UTC, datetime

from shorthorn.controllers.finalizers import hold, release
from shorthorn.domain import copies as plans
from shorthorn.domain import errors, image_status, names
from shorthorn.domain.clone_plan import SOURCE_NOT_READY
from shorthorn.domain.copy_scene import Origin, is_alive, promised_length
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
    CLONE_SOURCE,
    CLONE_UUID,
    IMAGE_UUID,
    LENGTH_PARAMETER,
    RETRIED,
    RETRY_AT,
    VERIFY_AT,
)
from shorthorn.domain.labels import IMAGE_LABEL, copy_labels, image_selector
from shorthorn.domain.models import (
    BackingImage,
    BackingImageStatus,
    CopyState,
    ImageCopy,
    ImageCopySpec,
    Meta,
    Pool,
    SourceType,
    Volume,
)
from shorthorn.domain.planning import DATA_FINALIZER, IMAGE_FINALIZER
from shorthorn.domain.ports import Registry

_UUID_BYTES = 4
_UUID = re.compile(rf"[0-9a-f]{{{2 * _UUID_BYTES}}}")
_ROOM_S = (5.0, 60.0)
"""How soon an image that no pool can take is looked at again, for room that was made: at first, and
when it has waited for long. A thousand that wait cost a fifth of a processor at five seconds."""
_RECHECK_S = 300.0
"""How often an image with several copies is looked at without cause: whether one is not used any
more. Copies that nobody uses stay an hour, so that a few minutes matter to nobody."""


class BackingImageReconciler:
    """One BackingImage at a time. `clock` tells the time, in UTC."""

    def __init__(
        self,
        images: Registry[BackingImage],
        copies: Registry[ImageCopy],
        pools: Registry[Pool],
        volumes: Registry[Volume],
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._images = images
        self._copies = copies
        self._pools = pools
        self._volumes = volumes
        self._clock = clock
        self._image_of_copy: dict[str, str] = {}
        self._image_of_volume: dict[str, str] = {}
        #: What mattered of each pool when it was last looked at.
        self._told_of_pool: dict[str, Hashable] = {}
        #: Images that lack something that another pool could give.
        self._lacking: set[str] = set()
        #: Of each clone that is not made yet, the image that it is made of.
        self._origin_of_clone: dict[str, str] = {}
        self._adopting = asyncio.Lock()
        self._has_adopted = False

    # --- which images a change of something else concerns

    def image_of_copy(self, copy_name: str) -> str | None:
        """Return the image to look at when a copy changed, also after the copy has gone."""
        copy = self._copies.find_cached(copy_name)
        if copy is None:
            return self._image_of_copy.pop(copy_name, None)
        self._image_of_copy[copy_name] = copy.spec.image
        return copy.spec.image

    def image_of_volume(self, volume_name: str) -> str | None:
        """Return the image that a volume comes from when the volume is new or gone, else None: what
        else becomes of it is nothing to the image.
        """
        volume = self._volumes.find_cached(volume_name)
        if volume is None:
            return self._image_of_volume.pop(volume_name, None)
        image = volume.spec.source.image
        if not image or volume_name in self._image_of_volume:
            return None
        self._image_of_volume[volume_name] = image
        return image

    def images_of_pool(self, pool_name: str) -> Sequence[str]:
        """Return the images to look at when a pool changed in what matters to them: those with a
        copy there, and those that lack one.
        """
        pool = self._pools.find_cached(pool_name)
        told: Hashable = None
        if pool is not None:
            told = (pool.meta.uid, is_alive(pool), pool.spec)
        if self._told_of_pool.get(pool_name) == told:
            return ()
        if pool is None:
            del self._told_of_pool[pool_name]
        else:
            self._told_of_pool[pool_name] = told
        there = {c.spec.image for c in self._copies.cached() if c.spec.pool_uuid == pool_name}
        return sorted(there | self._lacking)

    def clones_of_image(self, name: str) -> Sequence[str]:
        """Return the images to look at when an image changed or went: clones that wait for it."""
        return sorted(clone for clone, origin in self._origin_of_clone.items() if origin == name)

    # --- one image

    async def reconcile(self, name: str) -> float | None:
        await self._adopt()
        image = await self._images.find(name)
        if image is None:
            self._forget(name)
            return None
        listed = await self._copies.list(labels=image_selector(name))
        copies = sorted(
            (copy for copy in listed if copy.spec.image == name), key=lambda c: c.meta.name
        )
        if image.meta.deleting:
            return await self._delete(image, copies)
        uuid = image.status.uuid or _noted_uuid(image)
        strays = [copy for copy in copies if copy.spec.image_uuid != uuid]
        if strays:
            # Left by an image of this name whose finalizer somebody took away: not this one's data.
            return await self._delete(image, strays)
        if IMAGE_FINALIZER not in image.meta.finalizers:
            await hold(self._images, image, IMAGE_FINALIZER)
            return 0
        if not _noted_uuid(image):
            await self._note_uuid(image)
            return 0
        if not image.status.uuid:
            await self._report(image, BackingImageStatus(uuid=uuid))
            return 0
        return await self._keep(image, copies)

    async def _note_uuid(self, image: BackingImage) -> None:
        """Write the image's UUID where it outlives the loss of its status; give it one first."""
        uuid = image.status.uuid or secrets.token_hex(_UUID_BYTES)
        meta = dataclasses.replace(
            image.meta, annotations={**image.meta.annotations, IMAGE_UUID: uuid}
        )
        await self._images.update(dataclasses.replace(image, meta=meta))

    async def _delete(self, image: BackingImage, copies: Sequence[ImageCopy]) -> float | None:
        for copy in copies:
            await self._copies.delete(copy.meta.name, uid=copy.meta.uid)
        if not copies and IMAGE_FINALIZER in image.meta.finalizers:
            self._forget(image.meta.name)
            await release(self._images, image, IMAGE_FINALIZER)
        return None

    async def _keep(self, image: BackingImage, copies: Sequence[ImageCopy]) -> float | None:
        """Tell what is there, then carry out what the plan says."""
        now = self._clock()
        pools, volumes = await self._list_pools(), await self._list_volumes(image, copies)
        alive = {pool.spec.pool_uuid for pool in pools if is_alive(pool)}
        gathered = image_status.gather(image, copies, alive, now)
        references = plans.last_references(image, copies, volumes, now)
        seen = dataclasses.replace(
            image, status=dataclasses.replace(gathered, disk_last_ref_at=references)
        )
        origin = await self._find_origin(image, copies)
        steps = plans.plan_copies(seen, copies, pools, volumes, now, origin)
        image = await self._report(image, _told(seen, steps, now))
        self._remember(image, steps)
        for step in steps:
            image = await self._take(image, step, copies, origin)
        await self._hand_on(image, copies)
        return _delay_s(image, copies, steps, now)

    async def _hand_on(self, image: BackingImage, copies: Sequence[ImageCopy]) -> None:
        """Let the nodes of ready copies know that they are to be verified."""
        value = image.meta.annotations.get(VERIFY_AT, "")
        for copy in copies:
            is_ready = copy.status.state is CopyState.READY and not copy.meta.deleting
            if not value or not is_ready or copy.meta.annotations.get(VERIFY_AT) == value:
                continue
            # A copy that the plan has just removed is a conflict, and is looked at again.
            meta = dataclasses.replace(
                copy.meta, annotations={**copy.meta.annotations, VERIFY_AT: value}
            )
            with contextlib.suppress(errors.NotFound):
                await self._copies.update(dataclasses.replace(copy, meta=meta))

    async def _find_origin(self, image: BackingImage, copies: Sequence[ImageCopy]) -> Origin | None:
        """Return what a clone that is not made yet is made of; None where there is nothing.

        Whoever follows images is told first, by `clones_of_image`: no change is missed.
        """
        is_made = any(copy.status.state is CopyState.READY for copy in copies)
        if image.spec.source_type != SourceType.CLONE or is_made:
            self._origin_of_clone.pop(image.meta.name, None)
            return None
        name = image.spec.source_parameters.get(CLONE_SOURCE, "")
        self._origin_of_clone[image.meta.name] = name
        if copies and not any(copy.status.reason for copy in copies):
            return None  # nothing hinders it
        origin = await self._images.find(name) if name else None
        if origin is None:
            return None
        listed = await self._copies.list(labels=image_selector(name))
        there = [c for c in listed if c.spec.image_uuid == origin.status.uuid]
        return Origin(origin, there)

    async def _take(
        self,
        image: BackingImage,
        step: CopyStep,
        copies: Sequence[ImageCopy],
        origin: Origin | None,
    ) -> BackingImage:
        match step:
            case CreateCopy(pool, source_type):
                await self._copies.create(_copy_of(image, pool, source_type, origin))
            case RemoveCopy(name):
                # The one that was judged: who led before us may have been slow to notice that.
                judged = next(copy for copy in copies if copy.meta.name == name)
                await self._copies.delete(name, uid=judged.meta.uid)
            case DropWish(pool_uuid):
                left = {u: e for u, e in image.spec.disk_file_spec.items() if u != pool_uuid}
                spec = dataclasses.replace(image.spec, disk_file_spec=left)
                return await self._images.update(dataclasses.replace(image, spec=spec))
            case NoteRetry(value):
                noted = {**image.meta.annotations, RETRIED: value}
                meta = dataclasses.replace(image.meta, annotations=noted)
                return await self._images.update(dataclasses.replace(image, meta=meta))
            case Refuse() | Wait():
                pass
        return image

    def _forget(self, name: str) -> None:
        self._lacking.discard(name)
        self._origin_of_clone.pop(name, None)

    def _remember(self, image: BackingImage, steps: Sequence[CopyStep]) -> None:
        if any(isinstance(step, Wait) and step.reason == "NoPool" for step in steps):
            self._lacking.add(image.meta.name)
        else:
            self._lacking.discard(image.meta.name)

    async def _list_pools(self) -> Sequence[Pool]:
        # Before the watch has shown any, there may be some already.
        return self._pools.cached() or await self._pools.list()

    async def _list_volumes(
        self, image: BackingImage, copies: Sequence[ImageCopy]
    ) -> Sequence[Volume]:
        """Return the volumes that the plan asks about: an export's own while there is no copy, and
        all made from the image where a copy might go.
        """
        if not copies:
            source = image.spec.source_parameters.get("volume-name") or "-"
            volume = await self._volumes.find(source)
            return () if volume is None else (volume,)
        if len(copies) == 1 and not image.spec.disk_file_spec:
            return ()
        name = image.meta.name
        return [v for v in self._volumes.cached() if v.spec.source.image == name]

    async def _report(self, image: BackingImage, status: BackingImageStatus) -> BackingImage:
        if status == image.status:
            return image
        return await self._images.update_status(dataclasses.replace(image, status=status))

    async def _adopt(self) -> None:
        """Label, once, the copies that were made before copies had labels."""
        if self._has_adopted:
            return
        async with self._adopting:
            for known in self._copies.cached():
                if IMAGE_LABEL in known.meta.labels:
                    continue
                labels = {**known.meta.labels, **copy_labels(known.spec.image, known.spec.node_id)}
                meta = dataclasses.replace(known.meta, labels=labels)
                with contextlib.suppress(errors.NotFound):
                    await self._copies.update(dataclasses.replace(known, meta=meta))
            self._has_adopted = True


def _noted_uuid(image: BackingImage) -> str:
    """Return the UUID that the image's annotation gives, empty where it gives none of ours."""
    noted = image.meta.annotations.get(IMAGE_UUID, "")
    return noted if _UUID.fullmatch(noted) else ""


def _told(image: BackingImage, steps: Sequence[CopyStep], now: datetime) -> BackingImageStatus:
    """Return the status with what the plan adds to what was seen."""
    if image.is_ready:
        for step in steps:
            if isinstance(step, Refuse):
                return image_status.failed(image, step.reason, step.message, now)
        return image_status.with_enough(image, steps, now)
    for step in steps:
        if isinstance(step, Refuse):
            return image_status.failed(image, step.reason, step.message, now)
        if isinstance(step, Wait) and (image.failure is None or _is_clones(image, step)):
            return image_status.waiting(image, step.reason, step.message, now)
    return image.status


def _is_clones(image: BackingImage, step: Wait) -> bool:
    """Whether a clone that failed before it was begun goes on, and waits for something else."""
    is_clone = image.spec.source_type == SourceType.CLONE
    return is_clone and step.reason in (SOURCE_NOT_READY, "NoPool")


def _delay_s(
    image: BackingImage, copies: Sequence[ImageCopy], steps: Sequence[CopyStep], now: datetime
) -> float | None:
    """Return when to look again though nothing changed; None: never."""
    delays = [_RECHECK_S] if len(copies) > 1 else []
    for step in steps:
        if isinstance(step, Wait) and step.until is not None:
            delays.append(max(0.1, (step.until - now).total_seconds()))
        elif isinstance(step, Wait) and step.reason == "NoPool":
            delays.append(_RECHECK_S if image.is_ready else _room_delay_s(image, now))
    return min(delays, default=None)


def _room_delay_s(image: BackingImage, now: datetime) -> float:
    """Return a tenth of the image's age, within bounds."""
    age_s = (now - (image.meta.created_at or now)).total_seconds()
    soonest, latest = _ROOM_S
    return min(max(age_s / 10, soonest), latest)


def _copy_of(image: BackingImage, pool: Pool, source_type: str, origin: Origin | None) -> ImageCopy:
    is_sync = source_type == SourceType.SYNC
    spec = ImageCopySpec(
        image=image.meta.name,
        image_uuid=image.status.uuid,
        node_id=pool.spec.node_id,
        pool_uuid=pool.spec.pool_uuid,
        source_type=source_type,
        source_parameters={} if is_sync else _parameters(image, origin),
        # What the first copy was is the truth, also for one that is downloaded again.
        expected_checksum=image.status.checksum
        or image.spec.checksum
        or (origin.image.status.checksum if origin else ""),
    )
    name = names.copy_name(image.meta.name, pool.spec.pool_uuid)
    labels = copy_labels(image.meta.name, pool.spec.node_id)
    retry = image.meta.annotations.get(RETRY_AT)
    annotations = {RETRY_AT: retry} if retry else {}
    meta = Meta(name=name, finalizers=(DATA_FINALIZER,), labels=labels, annotations=annotations)
    return ImageCopy(meta, spec)


def _parameters(image: BackingImage, origin: Origin | None) -> Mapping[str, str]:
    """Return what the node of the first copy has to know of its source."""
    if image.spec.source_type == SourceType.UPLOAD:
        return {**image.spec.source_parameters, LENGTH_PARAMETER: str(promised_length(image))}
    if origin is not None:
        return {**image.spec.source_parameters, CLONE_UUID: origin.image.status.uuid}
    return image.spec.source_parameters
