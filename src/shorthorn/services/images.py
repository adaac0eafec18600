"""Backing images behind CSI: export of a volume, on-demand images, look-up and deletion.

Owns the decisions; `controllers.backing_images` makes true what is written here. An image's
readiness is never guessed: what is answered is read from its status. Must never move bytes. Called
by `services.snapshots` (CSI snapshots of type bi) and `services.volumes` (volumes from images).
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from shorthorn.domain.copy_scene import was_ready
from shorthorn.domain.errors import (
    AlreadyExists,
    Conflict,
    ImageFailed,
    ImageMismatch,
    InvalidArgument,
    NotFound,
    OperationPending,
    StillWorking,
)
from shorthorn.domain.handles import BackingImageHandle
from shorthorn.domain.image_bytes import PROMISED
from shorthorn.domain.image_status import ENOUGH
from shorthorn.domain.models import (
    BackingImage,
    CopyState,
    DiskFileSpec,
    Meta,
    SourceType,
    VolumeState,
)
from shorthorn.domain.names import object_name
from shorthorn.domain.planning import IMAGE_FINALIZER
from shorthorn.services.answers import SnapshotAnswer
from shorthorn.services.failures import OBSTACLES, Budget, delete_and_wait, recall, wait_for
from shorthorn.services.image_requests import (
    VOLUME_NAME,
    ImageRequest,
    check_creatable,
    check_matches,
    check_name,
    is_same_request,
    request_of_handle,
    stored_parameters,
)

if TYPE_CHECKING:
    from shorthorn.domain.models import Condition, Volume
    from shorthorn.domain.ports import ClaimDirectory, Registry
    from shorthorn.kit.keyed import KeyedOperations

_UPDATE_ATTEMPTS = 10
#: The name that external-snapshotter gives, which its image keeps: `snapshot-` and a UID.
_OF_A_SNAPSHOT = re.compile(r"snapshot-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class ImageService:
    """See the module. One per process; all state is in the registries."""

    def __init__(
        self,
        *,
        images: Registry[BackingImage],
        volumes: Registry[Volume],
        claims: ClaimDirectory,
        operations: KeyedOperations,
    ) -> None:
        self._images = images
        self._volumes = volumes
        self._claims = claims
        self._operations = operations
        #: Told as the creation time of images that do not exist yet: stable while we run.
        self._started_at = datetime.now(UTC)

    async def export(self, name: str, request: ImageRequest, *, timeout_s: float) -> SnapshotAnswer:
        """Export a volume as image `name` and answer once its point in time is fixed.

        Waits for readiness as long as the time allows; after that an answer that is not ready is
        given if only conversion is missing.

        Raises: AlreadyExists: the name has other content. NotFound: no such volume. StillWorking:
            nothing is fixed yet. What the export failed of: nothing of it remains then, unless its
            point in time was answered before; such an image keeps its failure until it is deleted.
        """
        image_name, budget = object_name(name), Budget(timeout_s)
        image = await self._operations.run(
            f"image/{image_name}",
            ("export", request),
            lambda: self._begin_export(image_name, request),
        )
        return await self._finish_export(image, budget)

    async def ensure(self, request: ImageRequest, *, timeout_s: float) -> BackingImage:
        """Return the image of that name, ready and as `request` says; make it where it is absent.

        Raises: ImageMismatch: it is something else. ImageFailed and its kin: it cannot be made;
            asked again equally, the same is said without trying again. StillWorking: not ready yet.
            InvalidArgument: it is absent, and cannot be made from this request.
        """
        check_name(request.name)
        budget = Budget(timeout_s)
        image = await self._operations.run(
            f"image/{request.name}", ("ensure", request), lambda: self._begin(request, budget)
        )
        image = await self._wait_settled(image, budget)
        _raise_failure(image)
        obstacle = _obstacle(image)
        if obstacle:
            raise recall(obstacle.reason, obstacle.message, ImageFailed)
        if not image.is_ready:
            raise StillWorking(f"backing image {request.name}", progress_of(image))
        check_matches(image, request)  # its own checksum may have become known meanwhile
        return image

    async def ensure_copy(
        self, image: BackingImage, pool_uuid: str, *, budget: Budget
    ) -> BackingImage:
        """Return the image once that pool has a ready copy; ask for one where it has none.

        The wish stays in spec.diskFileSpecMap until nobody has used the copy for an hour.
        Raises: StillWorking: the copy is not there yet; the text says how far it is.
            OperationPending: the image is being deleted. Whatever the whole image failed of.
        """
        name, uid = image.meta.name, image.meta.uid
        if pool_uuid in ready_pools(image):
            return image
        await self._ask_for_copy(image, pool_uuid)

        def is_settled(found: BackingImage | None) -> bool:
            if found is None or found.meta.uid != uid or found.meta.deleting:
                return True
            return pool_uuid in ready_pools(found) or found.failure is not None

        found = await wait_for(
            self._images,
            name,
            is_settled,
            budget=budget,
            progress=lambda i: f"its copy on pool {pool_uuid}: {copy_progress(i, pool_uuid)}",
        )
        if found is None or found.meta.uid != uid or found.meta.deleting:
            raise OperationPending(f"backing image {name}, which is being deleted")
        _raise_failure(found)
        return found

    async def find(self, name: str) -> BackingImage | None:
        """Return the image of that name, in whatever state."""
        return await self._images.find(name)

    async def delete(self, name: str, meant: ImageRequest | None, *, timeout_s: float) -> None:
        """Make the image absent; missing is success. Volumes made from it stay.

        Args: meant: what the caller says of the image. One that is something else stays: it is
            somebody else's, whose handle has never been good for it.
        Raises: OperationPending: a volume is being made from it. StillWorking.
        """
        image = await self._images.find(name)
        if image is None or (meant is not None and _differs(image, meant)):
            return
        # The cache will do: a volume that it does not show yet fails cleanly, its source missing.
        for volume in self._volumes.cached():
            if volume.spec.source.image == name and volume.status.state is VolumeState.PENDING:
                raise OperationPending(f"volume {volume.meta.name}, made from this image")
        await delete_and_wait(self._images, name, image.meta.uid, budget=Budget(timeout_s))

    async def describe(self, handle: BackingImageHandle) -> SnapshotAnswer:
        """Return what a handle stands for. A valid handle of an absent image that can be made on
        demand is ready: provisioners wait for that, and its data can be had.

        Raises: as `ensure` would, except StillWorking.
        """
        request = request_of_handle(handle)
        check_name(request.name)
        image = await self._images.find(request.name)
        if image is None or (_can_be_replaced(image) and not is_same_request(image, request)):
            await self._check_makable(request)
            source = request.parameters.get(VOLUME_NAME, "")
            return SnapshotAnswer(handle.format(), source, 0, self._started_at, is_ready=True)
        check_matches(image, request)
        _raise_failure(image)
        return _answer(image, handle.format())

    async def list_exports(self) -> list[SnapshotAnswer]:
        """Return all images that are snapshots of a volume and have their point in time."""
        return [
            _answer(image, handle_of(image))
            for image in await self._images.list()
            if image.spec.source_type == SourceType.EXPORT_FROM_VOLUME
            and image.status.point_in_time
            and not image.meta.deleting
            and not image.failure
        ]

    async def _ask_for_copy(self, image: BackingImage, pool_uuid: str) -> None:
        """Write into the spec that a copy is wanted on the pool."""
        name = image.meta.name
        for _ in range(_UPDATE_ATTEMPTS):
            current = await self._images.find(name)
            if current is None or current.meta.uid != image.meta.uid or current.meta.deleting:
                raise OperationPending(f"backing image {name}, which is being deleted")
            entry = current.spec.disk_file_spec.get(pool_uuid)
            if entry is not None and entry.eviction_requested:
                raise StillWorking(f"backing image {name}", f"it shall leave pool {pool_uuid}")
            if entry is not None:
                return
            files = {**current.spec.disk_file_spec, pool_uuid: DiskFileSpec()}
            spec = replace(current.spec, disk_file_spec=files)
            with contextlib.suppress(Conflict):
                await self._images.update(replace(current, spec=spec))
                return
        raise StillWorking(f"backing image {name}", "its object changes too often")

    # --- export

    async def _begin_export(self, name: str, request: ImageRequest) -> BackingImage:
        image = await self._images.find(name)
        if image is None:
            await self._check_exportable(request.parameters[VOLUME_NAME])
            image = await self._create(name, request)
        _check_same_export(image, request)
        return image

    async def _finish_export(self, image: BackingImage, budget: Budget) -> SnapshotAnswer:
        name = image.meta.name
        image = await self._wait_settled(image, budget)
        failure = _obstacle(image) or (None if image.is_ready else image.failure)
        if failure:
            if PROMISED not in image.meta.annotations:
                # The snapshotter forgets a snapshot that failed before it got a handle, so nothing
                # of it may stay behind.
                await delete_and_wait(self._images, name, image.meta.uid, budget=budget)
            raise recall(failure.reason, failure.message, ImageFailed)
        if not image.status.point_in_time:
            raise StillWorking(f"backing image {name}", progress_of(image))
        if not image.is_ready:
            await self._promise(image)
        return _answer(image, handle_of(image), await self._volume_bytes(image))

    async def _promise(self, image: BackingImage) -> None:
        """Record that a caller is told the point in time before the image is ready.

        From then on a failure stays with the image: made anew, it would hold another moment's data.
        Raises: StillWorking: the object changes too often to write to it.
        """
        for _ in range(_UPDATE_ATTEMPTS):
            current = await self._images.find(image.meta.name)
            if current is None or current.meta.uid != image.meta.uid:
                raise OperationPending(f"backing image {image.meta.name}, which is being deleted")
            if PROMISED in current.meta.annotations:
                return
            annotations = {**current.meta.annotations, PROMISED: "true"}
            meta = replace(current.meta, annotations=annotations)
            with contextlib.suppress(Conflict):
                await self._images.update(replace(current, meta=meta))
                return
        raise StillWorking(f"backing image {image.meta.name}", progress_of(image))

    async def _check_exportable(self, volume_id: str) -> None:
        volume = await self._find_volume(volume_id)
        if volume is None or volume.meta.deleting:
            raise NotFound("volume", volume_id)
        if volume.status.state is not VolumeState.READY:
            raise OperationPending(f"volume {volume_id}")

    async def _volume_bytes(self, image: BackingImage) -> int:
        if image.status.virtual_size_bytes:
            return image.status.virtual_size_bytes
        volume = await self._find_volume(image.spec.source_parameters[VOLUME_NAME])
        return volume.spec.capacity_bytes if volume else 0

    # --- ensure

    async def _begin(self, request: ImageRequest, budget: Budget) -> BackingImage:
        """Return the image that matches `request`, made just now where there was none."""
        image = await self._images.find(request.name)
        if image and image.meta.deleting:
            raise OperationPending(f"backing image {request.name}, which is being deleted")
        if image and _can_be_replaced(image) and not is_same_request(image, request):
            await self._check_makable(request)
            await delete_and_wait(self._images, request.name, image.meta.uid, budget=budget)
            image = None
        if image is None:
            await self._check_makable(request)
            image = await self._create(request.name, request)
        check_matches(image, request)
        return image

    async def _check_makable(self, request: ImageRequest) -> None:
        """Raise what keeps an absent image from being made.

        The image of a snapshot is never made again: its volume holds something else by now.
        """
        check_creatable(request)
        if request.source_type == SourceType.EXPORT_FROM_VOLUME:
            if _OF_A_SNAPSHOT.fullmatch(request.name):
                raise NotFound(
                    "backing image", request.name, "it held a snapshot and was deleted since"
                )
            await self._check_volume_named(request.parameters[VOLUME_NAME])

    async def _check_volume_named(self, volume_name: str) -> None:
        """Raise InvalidArgument where `volume_name` is no volume handle, naming the right one."""
        volume = await self._find_volume(volume_name)
        if volume is not None and not volume.meta.deleting:
            if volume.status.state is VolumeState.PENDING:
                raise OperationPending(f"volume {volume_name}")
            return
        handles = await self._claims.volume_handles_of_claim(volume_name)
        problem = f"there is no volume {volume_name}"
        if handles:
            written = " or ".join(f"{VOLUME_NAME}={handle}" for handle in sorted(handles))
            problem += (
                f"; that is the name of a PersistentVolumeClaim, a volume handle belongs here: "
                f"write {written}"
            )
        else:
            problem += "; give the volumeHandle of a PersistentVolume"
        raise InvalidArgument(VOLUME_NAME, problem)

    # --- both

    async def _find_volume(self, volume_id: str) -> Volume | None:
        """Look up a volume by an id that a caller wrote: anything else than our names is none."""
        return await self._volumes.find(volume_id) if object_name(volume_id) == volume_id else None

    async def _create(self, name: str, request: ImageRequest) -> BackingImage:
        meta = Meta(name=name, finalizers=(IMAGE_FINALIZER,))
        try:
            return await self._images.create(BackingImage(meta=meta, spec=request.to_spec()))
        except AlreadyExists:
            raise OperationPending(f"backing image {name}") from None

    async def _wait_settled(self, image: BackingImage, budget: Budget) -> BackingImage:
        """Return the image when it is ready, failed or held up, else as it is when time is over.

        Raises: OperationPending: it was deleted meanwhile.
        """
        name = image.meta.name

        def is_settled(found: BackingImage | None) -> bool:
            if found is None or found.is_ready or found.failure is not None:
                return True
            return _obstacle(found) is not None

        try:
            found = await wait_for(self._images, name, is_settled, budget=budget)
        except StillWorking:
            found = await self._images.find(name)
        if found is None or found.meta.uid != image.meta.uid:
            raise OperationPending(f"backing image {name}, which was deleted meanwhile")
        return found


def handle_of(image: BackingImage) -> str:
    """Return the handle that names an image and everything that made it."""
    parameters = stored_parameters(image.spec)
    return BackingImageHandle(image.meta.name, image.spec.source_type, "", parameters).format()


def ready_pools(image: BackingImage) -> frozenset[str]:
    """Return the UUIDs of the pools that have a complete copy."""
    return frozenset(
        uuid
        for uuid, file in image.status.disk_file_status.items()
        if file.state == CopyState.READY
    )


def progress_of(image: BackingImage) -> str:
    """Return in words how far an image is, over all its pools."""
    if not image.status.disk_file_status:
        said = [c.message for c in image.status.conditions if c.type == "Ready" and c.message]
        return said[0] if said else "waiting for a pool"
    return ", ".join(
        f"{file.state} {file.progress_percent} %" + (f" ({file.message})" if file.message else "")
        for _, file in sorted(image.status.disk_file_status.items())
    )


def copy_progress(image: BackingImage | None, pool_uuid: str) -> str:
    """Return in words how far the copy on one pool is."""
    if image is None:
        return "gone"
    file = image.status.disk_file_status.get(pool_uuid)
    if file is not None:
        return f"{file.state} {file.progress_percent} %" + (
            f" ({file.message})" if file.message else ""
        )
    said = [c.message for c in image.status.conditions if c.type == ENOUGH and c.message]
    return said[0] if said else "asked for"


def _check_same_export(image: BackingImage, request: ImageRequest) -> None:
    if image.meta.deleting:
        raise OperationPending(f"backing image {image.meta.name}, which is being deleted")
    if image.spec.source_type != request.source_type:
        raise AlreadyExists(
            "snapshot", image.meta.name, f"its source type is {image.spec.source_type}"
        )
    stored = stored_parameters(image.spec)
    for key, value in request.parameters.items():
        if stored.get(key) != value:
            raise AlreadyExists("snapshot", image.meta.name, f"its {key} is {stored.get(key)}")


def _differs(image: BackingImage, request: ImageRequest) -> bool:
    try:
        check_matches(image, request)
    except ImageMismatch:
        return True
    return False


def _can_be_replaced(image: BackingImage) -> bool:
    """Whether it failed before it was ever ready, so that nobody can have built on it."""
    return image.failure is not None and not image.is_ready and not was_ready(image)


def _obstacle(image: BackingImage) -> Condition | None:
    """Return what keeps an export from beginning until somebody lets go of its volume."""
    if image.is_ready or image.status.point_in_time:
        return None
    for condition in image.status.conditions:
        if condition.type == "Ready" and condition.reason in OBSTACLES:
            return condition
    return None


def _raise_failure(image: BackingImage) -> None:
    if image.failure and not image.is_ready:
        raise recall(image.failure.reason, image.failure.message, ImageFailed)


def _answer(image: BackingImage, handle: str, size_bytes: int = 0) -> SnapshotAnswer:
    created_at = image.status.point_in_time or image.meta.created_at
    assert created_at is not None, "objects that were read have a creation time"
    source = ""
    if image.spec.source_type == SourceType.EXPORT_FROM_VOLUME:
        source = image.spec.source_parameters.get(VOLUME_NAME, "")
    return SnapshotAnswer(
        handle=handle,
        source_volume_id=source,
        size_bytes=size_bytes or image.status.virtual_size_bytes,
        created_at=created_at,
        is_ready=image.is_ready,
    )
