"""Where a new volume's content comes from, and how it gets to the volume's node.

Owns: finding the source that a request names, the pools on which it is, and having it brought to
another pool before the volume is made there: an image by a copy, a volume by a snapshot of it. What
a snapshot holds is brought by the volume's own node (`controllers.contents`). Called by
`services.volumes`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shorthorn.domain.copy_scene import room_needed, wishes
from shorthorn.domain.errors import NotFound, OperationPending
from shorthorn.domain.handles import BackingImageHandle, InvalidHandle, SnapshotHandle, parse
from shorthorn.domain.models import BackingImage, CopyState, VolumeSource, VolumeState
from shorthorn.domain.names import object_name
from shorthorn.services.images import ready_pools
from shorthorn.services.placement import SourcePlaces

if TYPE_CHECKING:
    from shorthorn.domain.models import Pool, Volume
    from shorthorn.domain.ports import Registry
    from shorthorn.services.failures import Budget
    from shorthorn.services.image_requests import ImageRequest
    from shorthorn.services.images import ImageService
    from shorthorn.services.snapshots import SnapshotService


@dataclass(frozen=True, slots=True)
class Origin:
    """What a new volume begins as. `places` is None where any pool will do; `image` is set where
    it is one.
    """

    source: VolumeSource
    size_bytes: int = 0
    name: str = ""
    places: SourcePlaces | None = None
    image: BackingImage | None = None


class Origins:
    """See the module."""

    def __init__(
        self, volumes: Registry[Volume], images: ImageService, snapshots: SnapshotService
    ) -> None:
        self._volumes = volumes
        self._images = images
        self._snapshots = snapshots

    async def of_image(self, request: ImageRequest, handle: str, budget: Budget) -> Origin:
        """Return a backing image as origin, made now where it can be.

        Raises: as `ImageService.ensure`.
        """
        image = await self._images.ensure(request, timeout_s=budget.left_s)
        source = VolumeSource(image=request.name, image_uuid=image.status.uuid, handle=handle)
        size_bytes = image.status.virtual_size_bytes
        name = f"backing image {request.name}"
        return Origin(source, size_bytes, name, _places_of_image(image), image)

    async def of_snapshot(self, handle: str) -> Origin:
        """Return the snapshot of a `snap://` handle. Raises NotFound, OperationPending."""
        parsed = parse_source(handle)
        assert isinstance(parsed, SnapshotHandle), "images are found by their request"
        snapshot = await self._snapshots.find_object(parsed)
        return Origin(
            VolumeSource(snapshot=snapshot.meta.name, handle=handle),
            snapshot.status.size_bytes,
            f"snapshot {parsed.name}",
            SourcePlaces(
                frozenset({snapshot.spec.pool_uuid}),
                needed_bytes=snapshot.status.allocated_bytes,
            ),
        )

    async def of_volume(self, volume_id: str) -> Origin:
        """Return the volume to clone. Raises NotFound, OperationPending: it is not ready."""
        is_name = object_name(volume_id) == volume_id
        volume = await self._volumes.find(volume_id) if is_name else None
        if volume is None or volume.meta.deleting:
            raise NotFound("volume", volume_id)
        if volume.status.state is not VolumeState.READY:
            raise OperationPending(f"volume {volume_id}")
        return Origin(
            VolumeSource(volume=volume_id, handle=volume_id),
            volume.status.capacity_bytes,
            f"volume {volume_id}",
            SourcePlaces(
                frozenset({volume.spec.pool_uuid}), needed_bytes=volume.status.allocated_bytes
            ),
        )

    async def bring(self, origin: Origin, volume: str, pool: Pool, budget: Budget) -> None:
        """Have the origin where the node of `pool` can make `volume` from it.

        Raises: StillWorking: not there yet; asked again, it goes on. What `ensure_copy` and
            `ensure_clone_source` raise.
        """
        places = origin.places
        if places is None or pool.spec.pool_uuid in places.ready:
            return
        if origin.image is not None:
            await self._images.ensure_copy(origin.image, pool.spec.pool_uuid, budget=budget)
        elif origin.source.volume:
            await self._snapshots.ensure_clone_source(volume, origin.source.volume, budget=budget)

    async def release(self, volume: str, source: VolumeSource) -> None:
        """Let go of what `bring` made for the volume alone; it is ready, has failed, or is gone."""
        if source.volume:
            await self._snapshots.drop_clone_source(volume)

    async def is_there(self, source: VolumeSource) -> bool:
        """Whether the image that a volume is made from still exists."""
        image = await self._images.find(source.image)
        return image is not None and image.status.uuid == source.image_uuid


def parse_source(handle: str) -> BackingImageHandle | SnapshotHandle:
    """Read a content source's handle.

    Raises: NotFound: an id without a scheme, as other drivers give; no snapshot here has one.
        InvalidHandle: everything else that cannot be read.
    """
    try:
        return parse(handle)
    except InvalidHandle as exc:
        if "://" in handle:
            raise
        raise NotFound("snapshot", exc.shown, exc.problem) from exc


def _places_of_image(image: BackingImage) -> SourcePlaces:
    files = image.status.disk_file_status
    failed = {u for u, f in files.items() if f.state is CopyState.FAILED}
    still = (CopyState.READY, CopyState.FAILED, CopyState.UNKNOWN)
    moving = {u for u, f in files.items() if f.state not in still}
    entries = image.spec.disk_file_spec.items()
    return SourcePlaces(
        ready_pools(image),
        coming=(wishes(image) | moving) - failed,
        failed=frozenset(failed),
        refused=frozenset(uuid for uuid, entry in entries if entry.eviction_requested),
        needed_bytes=room_needed(image),
    )
