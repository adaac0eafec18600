"""What is seen of an image and its copies over all pools, sorted by what it means for a plan.

Owns: which pools are there, which copies count, and where one more may be put. Must never: decide
what to do (`domain.copies` does), do I/O or know the time. Called by `domain.copies` and
by `services.placement`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

from shorthorn.domain.image_bytes import UPLOAD_LENGTH
from shorthorn.domain.models import (
    BackingImage,
    CopyState,
    ImageCopy,
    ImageFormat,
    Pool,
    SourceType,
    Volume,
    VolumeState,
)

_LENGTH_DIGITS = 20
_FAILED = (CopyState.FAILED, CopyState.FAILED_AND_CLEANUP)


def is_alive(pool: Pool) -> bool:
    """Whether the pool's node reports and the pool can be used."""
    if pool.meta.deleting:
        return False
    return all(c.is_true for c in pool.status.conditions if c.type == "Ready")


def room_needed(image: BackingImage) -> int:
    """Return the bytes that one more copy takes; 0 where that is not known yet."""
    status = image.status
    if not was_ready(image) and image.spec.source_type == SourceType.UPLOAD:
        return promised_length(image)
    if status.format == ImageFormat.QCOW2:
        return status.real_size_bytes + status.size_bytes
    return status.real_size_bytes


def promised_length(image: BackingImage) -> int:
    """Return how many bytes of an upload will come; 0 where the image does not say it."""
    text = image.meta.annotations.get(UPLOAD_LENGTH, "")
    is_number = text.isascii() and text.isdecimal() and len(text) < _LENGTH_DIGITS
    return int(text) if is_number else 0


def was_ready(image: BackingImage) -> bool:
    """Whether a complete copy has ever been reported: sizes are known from then on."""
    return image.status.size_bytes > 0


def comes_again(image: BackingImage) -> bool:
    """Whether an image that is lost is fetched once more without anybody's doing.

    Only a download can be had again, and only one that has been ready is: what failed before says
    so for good. Its checksum is known, so that no other bytes can take its place.
    """
    return was_ready(image) and image.spec.source_type == SourceType.DOWNLOAD


def wishes(image: BackingImage) -> frozenset[str]:
    """Return the UUIDs of the pools on which spec.diskFileSpecMap asks for a copy."""
    return frozenset(
        uuid for uuid, entry in image.spec.disk_file_spec.items() if not entry.eviction_requested
    )


@dataclass(frozen=True)
class Origin:
    """The image that a clone is made of, and its copies."""

    image: BackingImage
    copies: Sequence[ImageCopy]


@dataclass(frozen=True)
class Scene:
    """What is seen, sorted by what it means for the plan. `origin`: of a clone, where there is
    one.
    """

    image: BackingImage
    copies: Sequence[ImageCopy]
    pools: Sequence[Pool]
    volumes: Sequence[Volume]
    now: datetime
    origin: Origin | None = None

    @cached_property
    def alive(self) -> Mapping[str, Pool]:
        return {pool.spec.pool_uuid: pool for pool in self.pools if is_alive(pool)}

    @cached_property
    def live(self) -> Sequence[ImageCopy]:
        """Copies that nobody deletes, also of silent nodes."""
        return [copy for copy in self.copies if not copy.meta.deleting]

    @cached_property
    def here(self) -> Sequence[ImageCopy]:
        """Live copies whose pools are there."""
        return [copy for copy in self.live if copy.spec.pool_uuid in self.alive]

    @cached_property
    def ready(self) -> Sequence[ImageCopy]:
        return [copy for copy in self.here if copy.status.state is CopyState.READY]

    @cached_property
    def failed(self) -> Sequence[ImageCopy]:
        return [copy for copy in self.here if copy.status.state in _FAILED]

    @cached_property
    def moving(self) -> Sequence[ImageCopy]:
        still = (CopyState.READY, *_FAILED)
        return [copy for copy in self.here if copy.status.state not in still]

    @cached_property
    def staying(self) -> Sequence[ImageCopy]:
        """Ready copies that are not to leave their pools."""
        return [copy for copy in self.ready if not self.is_evicted(copy.spec.pool_uuid)]

    @cached_property
    def proper(self) -> Sequence[ImageCopy]:
        """Staying copies that the floor counts: not an export's, which had to be made beside its
        volume, where that is on a pool without the tags asked for.
        """
        return [copy for copy in self.staying if self._is_proper(copy)]

    def _is_proper(self, copy: ImageCopy) -> bool:
        if copy.spec.source_type != SourceType.EXPORT_FROM_VOLUME:
            return True
        pool_uuid = copy.spec.pool_uuid
        return pool_uuid in wishes(self.image) or self.has_tags(self.alive[pool_uuid])

    def has_tags(self, pool: Pool) -> bool:
        spec = self.image.spec
        return set(spec.disk_selector) <= set(pool.spec.tags) and set(spec.node_selector) <= set(
            pool.spec.node_tags
        )

    @property
    def floor(self) -> int:
        return max(1, self.image.spec.min_number_of_copies)

    def is_evicted(self, pool_uuid: str) -> bool:
        entry = self.image.spec.disk_file_spec.get(pool_uuid)
        if entry is not None and entry.eviction_requested:
            return True
        pool = self.alive.get(pool_uuid)
        return pool is not None and pool.spec.eviction_requested

    def fitting(self) -> list[Pool]:
        """Return the pools on which one more copy may be put, best first: those on nodes that have
        fewest copies, then those with the most room.
        """
        taken = {copy.spec.pool_uuid for copy in self.copies}
        nodes = [copy.spec.node_id for copy in self.here]
        found = [
            pool
            for uuid, pool in self.alive.items()
            if uuid not in taken
            and not self.is_evicted(uuid)
            and self.has_tags(pool)
            and pool.status.available_bytes >= room_needed(self.image)
        ]
        return sorted(
            found,
            key=lambda pool: (
                nodes.count(pool.spec.node_id),
                -pool.status.available_bytes,
                pool.meta.name,
            ),
        )

    def is_being_cloned(self, copy: ImageCopy) -> bool:
        """Whether a volume is being made from the copy at this moment."""
        return any(
            volume.status.state is VolumeState.PENDING
            and volume.spec.source.image == self.image.meta.name
            and volume.spec.pool_uuid == copy.spec.pool_uuid
            for volume in self.volumes
        )
