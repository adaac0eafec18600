"""Volumes: create from nothing, an image, a snapshot or another volume; delete, grow, list.

Owns the decisions of CSI's controller about volumes. Writes Volume objects and waits for what
`controllers.volumes` makes of them; answers are functions of the object alone. Must never touch
data. Called by the CSI edge.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from shorthorn.domain.errors import (
    AlreadyExists,
    Conflict,
    DomainError,
    InUse,
    InvalidArgument,
    NotFound,
    OperationPending,
    SizeOutOfRange,
    Unavailable,
)
from shorthorn.domain.handles import BackingImageHandle
from shorthorn.domain.labels import node_labels
from shorthorn.domain.models import NO_MAP, Meta, Volume, VolumeSource, VolumeSpec, VolumeState
from shorthorn.domain.names import object_name
from shorthorn.domain.planning import DATA_FINALIZER
from shorthorn.services.capabilities import Capability, check_all_offered
from shorthorn.services.deletions import wait_until_gone
from shorthorn.services.failures import Budget, delete_and_wait, recall, wait_for, wait_settled
from shorthorn.services.image_requests import (
    IMAGE_KEY,
    check_data_engine,
    merge_handle,
    request_of_parameters,
)
from shorthorn.services.origins import Origin, Origins, parse_source
from shorthorn.services.pages import page
from shorthorn.services.placement import (
    TOPOLOGY_KEY,
    TopologyRequirement,
    available_bytes,
    choose_pool,
)
from shorthorn.services.sizes import CapacityRange, decide_capacity, round_up

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from shorthorn.domain.models import Pool
    from shorthorn.domain.node_ports import VolumeUse
    from shorthorn.domain.ports import Registry
    from shorthorn.kit.keyed import KeyedOperations
    from shorthorn.services.image_requests import ImageRequest
    from shorthorn.services.images import ImageService
    from shorthorn.services.snapshots import SnapshotService

_UPDATE_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class CreateVolumeRequest:
    """CSI's request. At most one of `snapshot_handle` and `source_volume_id` is set."""

    name: str
    capacity: CapacityRange
    capabilities: tuple[Capability, ...]
    parameters: Mapping[str, str] = field(default_factory=lambda: NO_MAP)
    snapshot_handle: str = ""
    source_volume_id: str = ""
    topology: TopologyRequirement = field(default_factory=TopologyRequirement)

    @property
    def source_handle(self) -> str:
        """The content source as the caller named it; empty for none."""
        return self.snapshot_handle or self.source_volume_id


@dataclass(frozen=True, slots=True)
class _Place:
    """What was decided about a new volume."""

    pool: Pool
    capacity_bytes: int


class VolumeService:
    """See the module. One per process; all state is in the registries."""

    def __init__(
        self,
        *,
        volumes: Registry[Volume],
        pools: Registry[Pool],
        images: ImageService,
        snapshots: SnapshotService,
        operations: KeyedOperations,
        use: VolumeUse,
    ) -> None:
        self._volumes = volumes
        self._pools = pools
        self._origins = Origins(volumes, images, snapshots)
        self._operations = operations
        self._use = use

    async def create(self, request: CreateVolumeRequest, *, timeout_s: float) -> Volume:
        """Return the volume of that name, made now where there is none.

        Where its source is on another node than the volume has to be, it is brought there, and the
        text of StillWorking says how far that is.

        Raises: AlreadyExists: the name has other content, size or place. StillWorking: the image
            it comes from, or the volume itself, is not ready yet. InvalidArgument, ImageMismatch,
            SizeOutOfRange, NotFound (source), NoAccessiblePool, NoSpace: final, nothing remains.
        """
        check_all_offered(request.capabilities)
        request.capacity.check()
        parameters, image = _image_wanted(request)
        name, budget = object_name(request.name), Budget(timeout_s)
        volume = await self._volumes.find(name)
        if volume is None:
            origin = await self._find_origin(request, image, budget)
            place = await self._place(name, request, origin, budget)
            volume = await self._operations.run(
                f"volume/{name}",
                request,
                lambda: self._begin(name, request, origin, place, parameters),
            )
        elif volume.status.state is VolumeState.PENDING:
            await self._give_up_stranded(volume)
        _check_same(volume, request, image)
        return await self._finish(volume, budget)

    async def _give_up_stranded(self, volume: Volume) -> None:
        """Let go of a volume that was begun on a node that the cluster has given up since; nobody
        was told of it, and it can be made elsewhere.

        Raises: OperationPending: it was one, and goes.
        """
        name, spec = volume.meta.name, volume.spec
        # The cache will do: the pool was chosen from it, and nothing of the volume is told yet.
        if volume.meta.deleting or self._pools.find_cached(spec.pool_uuid) is not None:
            return
        await self._volumes.delete(name, uid=volume.meta.uid)
        raise OperationPending(f"volume {name}, begun on node {spec.node_id}, which is gone,")

    async def delete(self, volume_id: str, *, timeout_s: float) -> None:
        """Make the volume absent; missing is success.

        Raises: InUse: it is staged or published; on one host nothing was started, in a cluster it
            goes once it is let go. OperationPending: something is being made from it. StillWorking:
            its data is not gone yet.
        """
        budget = Budget(timeout_s)
        volume = await self._operations.run(
            f"volume/{volume_id}", "delete", lambda: self._begin_deletion(volume_id)
        )
        if volume is None:
            await self._origins.release(volume_id, VolumeSource(volume=volume_id))
            return
        await self._origins.release(volume_id, volume.spec.source)
        await wait_until_gone(self._volumes, volume, budget=budget)

    async def expand(self, volume_id: str, capacity: CapacityRange, *, timeout_s: float) -> Volume:
        """Return the volume with at least the capacity asked for; it never shrinks.

        Raises: NotFound. SizeOutOfRange. StillWorking. NoSpace and whatever the node met.
        """
        capacity.check()
        if not capacity.required_bytes and not capacity.limit_bytes:
            raise InvalidArgument("capacity_range", "is required")
        budget = Budget(timeout_s)
        volume = await self._operations.run(
            f"volume/{volume_id}",
            ("expand", capacity),
            lambda: self._begin_expansion(volume_id, capacity),
        )
        wanted_bytes, generation = volume.spec.capacity_bytes, volume.meta.generation

        def is_done(found: Volume | None) -> bool:
            if found is None or found.status.capacity_bytes >= wanted_bytes:
                return True
            return bool(found.status.reason) and found.status.observed_generation >= generation

        found = await wait_for(self._volumes, volume_id, is_done, budget=budget)
        if found is None:
            raise NotFound("volume", volume_id)
        if found.status.capacity_bytes < wanted_bytes:
            raise recall(found.status.reason, found.status.message, DomainError)
        return found

    async def get(self, volume_id: str) -> Volume:
        """Return a volume that is ready. Raises NotFound."""
        volume = await self._find(volume_id)
        if volume is None or volume.status.state is not VolumeState.READY:
            raise NotFound("volume", volume_id)
        return volume

    async def list(self, *, max_entries: int, token: str) -> tuple[Sequence[Volume], str]:
        """Return one page of the volumes that are ready. Raises InvalidPageToken."""
        ready = [v for v in await self._volumes.list() if v.status.state is VolumeState.READY]
        return page(ready, lambda v: v.meta.name, max_entries=max_entries, token=token)

    async def free_bytes(self, segments: Mapping[str, str]) -> int:
        """Return what pools within the topology segments have free.

        Raises: Unavailable: the node that they name has told of no pool yet. external-provisioner
            asks again at once; of a pool without room, only after a minute.
        """
        pools = await self._pools.list()
        node = segments.get(TOPOLOGY_KEY)
        if node and not any(pool.spec.node_id == node for pool in pools):
            raise Unavailable(f"node {node}", "it has told of no pool yet")
        return available_bytes(pools, segments)

    # --- creation

    async def _find_origin(
        self, request: CreateVolumeRequest, image: ImageRequest | None, budget: Budget
    ) -> Origin:
        if image is not None:
            return await self._origins.of_image(image, request.source_handle, budget)
        if request.snapshot_handle:
            return await self._origins.of_snapshot(request.snapshot_handle)
        if request.source_volume_id:
            return await self._origins.of_volume(request.source_volume_id)
        return Origin(VolumeSource())

    async def _place(
        self, name: str, request: CreateVolumeRequest, origin: Origin, budget: Budget
    ) -> _Place:
        """Choose size and pool, and have the origin there."""
        capacity_bytes = decide_capacity(
            request.capacity,
            source_bytes=origin.size_bytes,
            source=origin.name,
            capabilities=request.capabilities,
        )
        pool = choose_pool(
            await self._pools.list(),
            request.topology,
            source=origin.places,
            what=f"volume {request.name}",
        )
        await self._origins.bring(origin, name, pool, budget)
        return _Place(pool, capacity_bytes)

    async def _begin(
        self,
        name: str,
        request: CreateVolumeRequest,
        origin: Origin,
        place: _Place,
        parameters: Mapping[str, str],
    ) -> Volume:
        existing = await self._volumes.find(name)
        if existing is not None:
            return existing
        pool = place.pool
        spec = VolumeSpec(
            csi_name=request.name,
            node_id=pool.spec.node_id,
            pool_uuid=pool.spec.pool_uuid,
            capacity_bytes=place.capacity_bytes,
            source=origin.source,
            parameters=parameters,
        )
        labels = node_labels(pool.spec.node_id)
        meta = Meta(name=name, finalizers=(DATA_FINALIZER,), labels=labels)
        try:
            return await self._volumes.create(Volume(meta=meta, spec=spec))
        except AlreadyExists:
            raise OperationPending(f"volume {name}") from None

    async def _finish(self, volume: Volume, budget: Budget) -> Volume:
        found = await wait_settled(self._volumes, volume, budget=budget)
        name = found.meta.name
        await self._origins.release(name, found.spec.source)
        if found.status.state is not VolumeState.READY:
            await delete_and_wait(self._volumes, name, found.meta.uid, budget=budget)
            source, is_missing = found.spec.source, found.status.reason == NotFound.reason
            if source.image and is_missing and await self._origins.is_there(source):
                # Its copy was removed as unused in the moment in which this volume began.
                raise OperationPending(f"backing image {source.image}, whose copy went meanwhile,")
            raise recall(found.status.reason, found.status.message, DomainError)
        return found

    # --- the rest

    async def _find(self, volume_id: str) -> Volume | None:
        """Look up an id that a caller wrote: whatever is none of our names names nothing."""
        return await self._volumes.find(volume_id) if object_name(volume_id) == volume_id else None

    async def _begin_deletion(self, volume_id: str) -> Volume | None:
        volume = await self._find(volume_id)
        if volume is None:
            return None
        user = await self._use.find_user(volume_id)
        if user:
            raise InUse("volume", volume_id, user)
        # The cache will do: a clone that it does not show yet fails cleanly, its source missing.
        for other in self._volumes.cached():
            if other.spec.source.volume == volume_id and other.status.state is VolumeState.PENDING:
                raise OperationPending(f"volume {other.meta.name}, a clone of this volume")
        await self._volumes.delete(volume_id, uid=volume.meta.uid)
        return volume

    async def _begin_expansion(self, volume_id: str, capacity: CapacityRange) -> Volume:
        for _ in range(_UPDATE_ATTEMPTS):
            volume = await self._find(volume_id)
            if volume is None or volume.meta.deleting:
                raise NotFound("volume", volume_id)
            present_bytes = volume.spec.capacity_bytes
            wanted_bytes = round_up(max(capacity.required_bytes, present_bytes))
            if capacity.limit_bytes and wanted_bytes > capacity.limit_bytes:
                raise SizeOutOfRange(
                    f"volume {volume_id}", wanted_bytes, maximum_bytes=capacity.limit_bytes
                )
            if wanted_bytes == present_bytes:
                return volume
            spec = replace(volume.spec, capacity_bytes=wanted_bytes)
            try:
                return await self._volumes.update(replace(volume, spec=spec))
            except Conflict:
                continue
        raise OperationPending(f"volume {volume_id}")


def _image_wanted(request: CreateVolumeRequest) -> tuple[Mapping[str, str], ImageRequest | None]:
    """Return the volume's parameters, a handle's values merged in, and the image they ask for.

    A content source of another kind wins over an image that the StorageClass names.
    """
    parameters: Mapping[str, str] = request.parameters
    if request.snapshot_handle:
        handle = parse_source(request.snapshot_handle)
        if isinstance(handle, BackingImageHandle):
            parameters = merge_handle(parameters, handle)
            return parameters, request_of_parameters(parameters)
    check_data_engine(parameters)
    if request.source_handle:
        return parameters, None
    return parameters, request_of_parameters(parameters)


def _check_same(volume: Volume, request: CreateVolumeRequest, image: ImageRequest | None) -> None:
    """Raise AlreadyExists where `volume` is not what `request` would make."""
    name, spec = volume.meta.name, volume.spec
    if volume.meta.deleting:
        raise OperationPending(f"volume {name}, which is being deleted")
    if spec.csi_name != request.name:
        raise AlreadyExists("volume", name, f"its name is {spec.csi_name}")
    if spec.source.handle != request.source_handle:
        raise AlreadyExists("volume", name, f"its source is {spec.source.handle or 'none'}")
    if spec.source.image != (image.name if image else ""):
        raise AlreadyExists("volume", name, f"its {IMAGE_KEY} is {spec.source.image or 'none'}")
    wanted, limit_bytes = request.capacity.required_bytes, request.capacity.limit_bytes
    if (wanted and round_up(wanted) != spec.capacity_bytes) or (
        limit_bytes and spec.capacity_bytes > limit_bytes
    ):
        raise AlreadyExists(
            "volume", name, f"size {spec.capacity_bytes} differs from requested size {wanted}"
        )
    if not request.topology.accepts(spec.node_id):
        raise AlreadyExists("volume", name, f"it is on node {spec.node_id}")
