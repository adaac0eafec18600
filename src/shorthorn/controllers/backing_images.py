"""BackingImages: place their copies, gather their states, see to their end.

Owns: reconciling BackingImage, the only writer of its status. Must never: touch a pool. Run by
`controllers.controller`.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from shorthorn.controllers.finalizers import hold, release
from shorthorn.domain import names, planning
from shorthorn.domain.labels import copy_labels
from shorthorn.domain.models import (
    BackingImage,
    BackingImageStatus,
    Condition,
    CopyState,
    DiskFileStatus,
    ImageCopy,
    ImageCopySpec,
    Meta,
    Pool,
    SourceType,
    Volume,
)
from shorthorn.domain.planning import DATA_FINALIZER, IMAGE_FINALIZER
from shorthorn.domain.ports import Registry

_SUPPORTED = (SourceType.DOWNLOAD, SourceType.EXPORT_FROM_VOLUME)
_UUID_BYTES = 4
_PLACEMENT_RETRY_S = 5.0


class BackingImageReconciler:
    """One BackingImage at a time."""

    def __init__(
        self,
        images: Registry[BackingImage],
        copies: Registry[ImageCopy],
        pools: Registry[Pool],
        volumes: Registry[Volume],
    ) -> None:
        self._images = images
        self._copies = copies
        self._pools = pools
        self._volumes = volumes
        self._image_of_copy: dict[str, str] = {}

    def image_of_copy(self, copy_name: str) -> str | None:
        """Return the image to look at when a copy changed, also after the copy has gone."""
        for copy in self._copies.cached():
            if copy.meta.name == copy_name:
                self._image_of_copy[copy_name] = copy.spec.image
                return copy.spec.image
        return self._image_of_copy.pop(copy_name, None)

    async def reconcile(self, name: str) -> float | None:
        image = await self._images.find(name)
        if image is None:
            return None
        copies = [copy for copy in await self._copies.list() if copy.spec.image == name]
        if image.meta.deleting:
            return await self._delete(image, copies)
        strays = [copy for copy in copies if copy.spec.image_uuid != image.status.uuid]
        if strays:
            # Left by an image of this name whose finalizer somebody took away: not this one's data.
            return await self._delete(image, strays)
        if IMAGE_FINALIZER not in image.meta.finalizers:
            await hold(self._images, image, IMAGE_FINALIZER)
            return 0
        if not image.status.uuid:
            await self._report(image, BackingImageStatus(uuid=secrets.token_hex(_UUID_BYTES)))
            return 0
        if copies or image.failure:
            await self._report(image, gather(image, copies))
            return None
        return await self._place(image)

    async def _delete(self, image: BackingImage, copies: Sequence[ImageCopy]) -> float | None:
        for copy in copies:
            await self._copies.delete(copy.meta.name)
        if not copies and IMAGE_FINALIZER in image.meta.finalizers:
            await release(self._images, image, IMAGE_FINALIZER)
        return None

    async def _place(self, image: BackingImage) -> float | None:
        if image.is_ready:
            # Every copy went without being asked to: the image cannot be made again in silence.
            await self._report(image, failed(image, "Corrupt", "all copies of the image are gone"))
            return None
        if image.spec.source_type not in _SUPPORTED:
            message = f"source type {image.spec.source_type} is not supported"
            await self._report(image, failed(image, "UnsupportedSource", message))
            return None
        volumes = await self._source_volumes(image)
        placement = planning.place_copy(image, await self._pools.list(), volumes)
        if placement.pool is None:
            if placement.reason == "VolumeNotFound":
                await self._report(image, failed(image, placement.reason, placement.message))
                return None
            await self._report(image, waiting(image, placement.reason, placement.message))
            return _PLACEMENT_RETRY_S
        await self._copies.create(_copy_of(image, placement.pool))
        return None

    async def _source_volumes(self, image: BackingImage) -> Mapping[str, Volume]:
        volume = await self._volumes.find(image.spec.source_parameters.get("volume-name") or "-")
        return {} if volume is None else {volume.meta.name: volume}

    async def _report(self, image: BackingImage, status: BackingImageStatus) -> None:
        if status != image.status:
            await self._images.update_status(dataclasses.replace(image, status=status))


def _copy_of(image: BackingImage, pool: Pool) -> ImageCopy:
    spec = ImageCopySpec(
        image=image.meta.name,
        image_uuid=image.status.uuid,
        node_id=pool.spec.node_id,
        pool_uuid=pool.spec.pool_uuid,
        source_type=image.spec.source_type,
        source_parameters=image.spec.source_parameters,
        expected_checksum=image.spec.checksum,
    )
    name = names.copy_name(image.meta.name, pool.spec.pool_uuid)
    labels = copy_labels(image.meta.name, pool.spec.node_id)
    return ImageCopy(Meta(name=name, finalizers=(DATA_FINALIZER,), labels=labels), spec)


def gather(image: BackingImage, copies: Sequence[ImageCopy]) -> BackingImageStatus:
    """Return the image's status as its copies tell it."""
    if not copies:
        return image.status
    ready = next((copy for copy in copies if copy.status.state is CopyState.READY), None)
    best = (ready or copies[0]).status
    status = dataclasses.replace(
        image.status,
        size_bytes=best.size_bytes,
        virtual_size_bytes=best.virtual_size_bytes,
        real_size_bytes=best.real_size_bytes,
        checksum=best.checksum,
        format=best.format,
        point_in_time=best.point_in_time or image.status.point_in_time,
        disk_file_status={copy.spec.pool_uuid: _disk_file(copy) for copy in copies},
    )
    if ready is not None:
        return _with_conditions(status, image, _ready_conditions(image, best.checksum))
    if all(copy.status.state is CopyState.FAILED for copy in copies):
        return failed(dataclasses.replace(image, status=status), best.reason, best.message)
    reason = best.reason or ("Pending" if best.state is CopyState.PENDING else "InProgress")
    message = best.message or f"{best.progress_percent} % of the image is here"
    return waiting(dataclasses.replace(image, status=status), reason, message)


def failed(image: BackingImage, reason: str, message: str) -> BackingImageStatus:
    """Return the status of an image that cannot be made."""
    wanted = [
        Condition("Ready", False, reason, message),
        Condition("Failed", True, reason, message),
    ]
    return _with_conditions(image.status, image, wanted)


def waiting(image: BackingImage, reason: str, message: str) -> BackingImageStatus:
    """Return the status of an image that is not there yet."""
    return _with_conditions(image.status, image, [Condition("Ready", False, reason, message)])


def _ready_conditions(image: BackingImage, checksum: str) -> list[Condition]:
    if not checksum:
        verified = Condition(
            "ChecksumVerified", False, "Computing", "the checksum is being computed"
        )
    elif image.spec.checksum and image.spec.checksum != checksum:
        message = f"expected {image.spec.checksum}, the artifact has {checksum}"
        verified = Condition("ChecksumVerified", False, "ChecksumMismatch", message)
    else:
        verified = Condition("ChecksumVerified", True, "Verified")
    return [Condition("Ready", True, "Ready"), verified]


def _with_conditions(
    status: BackingImageStatus, image: BackingImage, wanted: Sequence[Condition]
) -> BackingImageStatus:
    """Replace the conditions; the time of one changes only with its status."""
    old = {condition.type: condition for condition in image.status.conditions}
    conditions = []
    for condition in wanted:
        before = old.get(condition.type)
        kept = before is not None and before.is_true == condition.is_true
        changed_at = before.changed_at if kept and before is not None else datetime.now(UTC)
        conditions.append(dataclasses.replace(condition, changed_at=changed_at))
    return dataclasses.replace(status, conditions=tuple(conditions))


def _disk_file(copy: ImageCopy) -> DiskFileStatus:
    status = copy.status
    return DiskFileStatus(status.state, status.progress_percent, status.message, status.changed_at)
