"""A volume's way into a workload on this node: stage, publish, expand, and back.

Owns the order of steps and what is compatible with what is there. Every step looks at the kernel
first and does only what is missing, so that any call may be repeated after any interruption. Needs
no API server: what it must know of a volume is in the pool. Must never remember anything between
calls. Called by the CSI edge; `find_user` also by `services.volumes`.

A file system is mounted at the staging path and bound to target paths. Of a block volume the device
node is bound to `<staging path>/<volume id>`, which records the staging in the kernel, and from
there to target paths.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from shorthorn.domain.errors import (
    AlreadyExists,
    InUse,
    InvalidArgument,
    NotFound,
    SizeOutOfRange,
    WrongState,
)
from shorthorn.domain.names import object_name
from shorthorn.domain.node_ports import JournalReplayNeeded
from shorthorn.services.capabilities import AccessMode, VolumeMode, check_offered
from shorthorn.services.file_system_rule import ensure_file_system

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable, Sequence

    from shorthorn.domain.models import VolumeRecord
    from shorthorn.domain.node_ports import FileSystemUsage, MountPoint, NodeStorage
    from shorthorn.domain.ports import Engine
    from shorthorn.kit.keyed import KeyedLocks, KeyedOperations
    from shorthorn.services.capabilities import Capability


@dataclass(frozen=True, slots=True)
class StageRequest:
    """NodeStageVolume. Paths are absolute."""

    volume_id: str
    staging_path: str
    capability: Capability


@dataclass(frozen=True, slots=True)
class PublishRequest:
    """NodePublishVolume. `is_read_only` is the request's own wish, beside the capability's."""

    volume_id: str
    staging_path: str
    target_path: str
    capability: Capability
    is_read_only: bool = False

    @property
    def wants_read_only(self) -> bool:
        """Whether writes through the target must be refused."""
        return self.is_read_only or self.capability.is_read_only


@dataclass(frozen=True, slots=True)
class VolumeStats:
    """`file_system` is None for a block volume, of which only the size is known."""

    capacity_bytes: int
    file_system: FileSystemUsage | None


class NodeService:
    """See the module. `locks` are held by volume id, and shared with whatever else changes volumes
    on this node. `released` is told of every volume that was unstaged: its deletion may wait for
    that.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        storage: NodeStorage,
        operations: KeyedOperations,
        locks: KeyedLocks[str],
        released: Callable[[str], None] = lambda volume_id: None,
    ) -> None:
        self._engine = engine
        self._storage = storage
        self._operations = operations
        self._locks = locks
        self._released = released

    async def stage(self, request: StageRequest) -> None:
        """Attach the volume; mount it at the staging path unless it is a block volume.

        Raises: NotFound. AlreadyExists: staged there otherwise. VolumeModeMismatch. Corrupt.
        """
        check_offered(request.capability)
        _check_paths(staging_target_path=request.staging_path)
        real = replace(request, staging_path=await self._storage.resolve(request.staging_path))
        await self._run(request.volume_id, real, lambda: self._stage(real))

    async def unstage(self, volume_id: str, staging_path: str) -> None:
        """Undo `stage`; not staged, or no such volume, is success. Raises InUse: published."""
        _check_paths(staging_target_path=staging_path)
        path = await self._storage.resolve(staging_path)
        await self._run(volume_id, ("unstage", path), lambda: self._unstage(volume_id, path))
        self._released(volume_id)

    async def publish(self, request: PublishRequest) -> None:
        """Make the staged volume visible at the target path.

        Raises: NotFound. WrongState: not staged, or published elsewhere in a way that does not go
            with this. AlreadyExists: the target path holds something else.
        """
        check_offered(request.capability)
        _check_paths(staging_target_path=request.staging_path, target_path=request.target_path)
        real = replace(
            request,
            staging_path=await self._storage.resolve(request.staging_path),
            target_path=await self._storage.resolve(request.target_path),
        )
        await self._run(request.volume_id, real, lambda: self._publish(real))

    async def unpublish(self, volume_id: str, target_path: str) -> None:
        """Undo `publish` and remove the target path; nothing there is success."""
        _check_paths(target_path=target_path)
        path = await self._storage.resolve(target_path)
        await self._run(volume_id, ("unpublish", path), lambda: self._unpublish(volume_id, path))

    async def expand(self, volume_id: str, volume_path: str, required_bytes: int) -> int:
        """Let the file system mounted at `volume_path` fill its volume; return the capacity.

        Raises: NotFound. SizeOutOfRange: the volume itself was not expanded that far.
        """
        capacity: int = await self._run(
            volume_id,
            ("expand", volume_path, required_bytes),
            lambda: self._expand(volume_id, volume_path, required_bytes),
        )
        return capacity

    async def stats(self, volume_id: str, volume_path: str) -> VolumeStats:
        """Return what the volume published (or staged) at `volume_path` holds. Raises NotFound."""
        record, mount = await self._get_mount(volume_id, volume_path)
        if mount.is_block:
            return VolumeStats(await self._storage.device_size_bytes(mount.device), None)
        return VolumeStats(record.capacity_bytes, await self._storage.usage(volume_path))

    async def find_user(self, volume_id: str) -> str | None:
        """Return where the volume is mounted, in words, or None."""
        record = await self._find(volume_id)
        mounts = await self._list_mounts(record) if record else []
        return f"{mounts[0].target} ({len(mounts)} mounts)" if mounts else None

    # --- stage

    async def _stage(self, request: StageRequest) -> None:
        record = await self._get(request.volume_id)
        mount = await self._find_staged(record, request.staging_path)
        if mount is not None:
            _check_staged_alike(mount, request)
        elif request.capability.mode is VolumeMode.BLOCK:
            await self._stage_block(record, request)
        else:
            await self._stage_file_system(record, request)
        mount = await self._find_staged(record, request.staging_path)
        if mount and not mount.is_block and not mount.is_read_only:
            # What can grow only unmounted has done so, or has to wait for its next mount.
            with contextlib.suppress(WrongState):
                await self._storage.grow(mount)

    async def _stage_block(self, record: VolumeRecord, request: StageRequest) -> None:
        device = await self._storage.attach(record.path)
        await self._storage.set_writable(device, writable=not request.capability.is_read_only)
        target = _block_path(request.staging_path, record.volume_id)
        await self._storage.bind(device, target, read_only=request.capability.is_read_only)

    async def _stage_file_system(self, record: VolumeRecord, request: StageRequest) -> None:
        capability = request.capability
        device = await self._storage.attach(record.path)
        await self._storage.set_writable(device, writable=True)
        fs_type = await ensure_file_system(
            self._engine, self._storage, record, device, capability.file_system
        )
        if not capability.is_read_only:
            await self._storage.grow_unmounted(device, fs_type)
            await self._mount(device, request, fs_type)
            return
        await self._storage.set_writable(device, writable=False)
        try:
            await self._mount(device, request, fs_type)
        except JournalReplayNeeded:
            await self._stage_replayed(record, request, fs_type)

    async def _stage_replayed(
        self, record: VolumeRecord, request: StageRequest, fs_type: str
    ) -> None:
        """Mount a private copy whose journal the kernel may replay; the volume stays as it is."""
        await self._release(record.path)
        await self._release(_replayed_path(record))
        await self._storage.clone_file(record.path, _replayed_path(record))
        device = await self._storage.attach(_replayed_path(record))
        await self._storage.set_writable(device, writable=True)
        await self._mount(device, request, fs_type)

    async def _mount(self, device: str, request: StageRequest, fs_type: str) -> None:
        await self._storage.mount(
            device,
            request.staging_path,
            fs_type,
            read_only=request.capability.is_read_only,
            options=request.capability.mount_options,
        )

    async def _unstage(self, volume_id: str, staging_path: str) -> None:
        record = await self._find(volume_id)
        own = (_block_path(staging_path, object_name(volume_id)), staging_path)
        if record is not None:
            await self._find_staged(record, staging_path)  # refuses what is another volume's
            for mount in await self._list_mounts(record):
                if mount.target not in own:
                    raise InUse("volume", volume_id, f"its publication at {mount.target}")
        for path in own:
            await self._storage.unmount(path)
        await self._storage.remove_mount_point(own[0])
        if record is not None:
            await self._release(record.path)
            await self._release(_replayed_path(record))
            await self._storage.remove_file(_replayed_path(record))

    async def _release(self, image: str) -> None:
        device = await self._storage.find_device(image)
        if device is not None:
            # The flag would stay with the device's number, for whatever is attached next.
            await self._storage.set_writable(device, writable=True)
            await self._storage.detach(image)

    # --- publish

    async def _publish(self, request: PublishRequest) -> None:
        record = await self._get(request.volume_id)
        staged = await self._find_staged(record, request.staging_path)
        if staged is None or staged.is_block != (request.capability.mode is VolumeMode.BLOCK):
            required = f"staging at {request.staging_path} as {request.capability.mode}"
            raise WrongState("volume", record.volume_id, "not staged like that", required)
        if staged.is_read_only and not request.wants_read_only:
            raise WrongState("volume", record.volume_id, "staged read-only", "staging for writing")
        existing = await self._storage.find_mount(request.target_path)
        if existing is not None:
            _check_published_alike(existing, staged, request)
            return
        others = await self._list_others(record, request)
        _check_goes_with(others, request)
        if staged.is_block:
            await self._storage.set_writable(staged.device, writable=not request.wants_read_only)
        await self._storage.bind(
            staged.target, request.target_path, read_only=request.wants_read_only
        )

    async def _list_others(self, record: VolumeRecord, request: PublishRequest) -> list[MountPoint]:
        """Return where else the volume is published."""
        block_path = _block_path(request.staging_path, record.volume_id)
        own = (request.staging_path, block_path, request.target_path)
        return [m for m in await self._list_mounts(record) if m.target not in own]

    async def _unpublish(self, volume_id: str, target_path: str) -> None:
        record = await self._find(volume_id)
        mount = await self._storage.find_mount(target_path)
        if record is not None and mount is not None:
            await self._check_own(record, mount, target_path)
        await self._storage.unmount(target_path)
        await self._storage.remove_mount_point(target_path)

    # --- the rest

    async def _expand(self, volume_id: str, volume_path: str, required_bytes: int) -> int:
        record, mount = await self._get_mount(volume_id, volume_path)
        if required_bytes > record.capacity_bytes:
            raise SizeOutOfRange(
                f"volume {volume_id}", required_bytes, maximum_bytes=record.capacity_bytes
            )
        if not mount.is_block and not mount.is_read_only:
            await self._storage.grow(mount)
        return record.capacity_bytes

    async def _run(
        self, volume_id: str, request: Hashable, work: Callable[[], Awaitable[int | None]]
    ) -> int:
        """Run `work` to its end, whatever becomes of the caller; alone on this volume."""

        async def locked() -> int:
            async with self._locks.hold([volume_id]):
                return await work() or 0

        return await self._operations.run(f"node/{volume_id}", request, locked)

    async def _find(self, volume_id: str) -> VolumeRecord | None:
        """Look up an id that a caller wrote: whatever is none of our names names nothing."""
        is_ours = object_name(volume_id) == volume_id
        return await self._engine.find_volume(volume_id) if is_ours else None

    async def _get(self, volume_id: str) -> VolumeRecord:
        record = await self._find(volume_id)
        if record is None:
            raise NotFound("volume", volume_id)
        return record

    async def _get_mount(self, volume_id: str, path: str) -> tuple[VolumeRecord, MountPoint]:
        """Return the volume and its mount at `path`. Raises NotFound; relative paths hold none."""
        record = await self._get(volume_id)
        mount = await self._storage.find_mount(path) if path.startswith("/") else None
        if mount is None or mount.device not in await self._devices(record):
            raise NotFound("volume path", path, f"volume {volume_id} is not mounted there")
        return record, mount

    async def _find_staged(self, record: VolumeRecord, staging_path: str) -> MountPoint | None:
        """Return the volume's mount at its staging path, in whichever mode.

        Raises: AlreadyExists: something else is mounted there.
        """
        for path in (staging_path, _block_path(staging_path, record.volume_id)):
            mount = await self._storage.find_mount(path)
            if mount is not None:
                await self._check_own(record, mount, path)
                return mount
        return None

    async def _check_own(self, record: VolumeRecord, mount: MountPoint, path: str) -> None:
        if mount.device not in await self._devices(record):
            raise AlreadyExists("path", path, f"what is mounted there is not {record.volume_id}")

    async def _devices(self, record: VolumeRecord) -> list[str]:
        images = (record.path, _replayed_path(record))
        return [d for image in images if (d := await self._storage.find_device(image))]

    async def _list_mounts(self, record: VolumeRecord) -> list[MountPoint]:
        devices = await self._devices(record)
        return [m for device in devices for m in await self._storage.list_mounts(device)]


def _check_staged_alike(mount: MountPoint, request: StageRequest) -> None:
    capability = request.capability
    is_block = capability.mode is VolumeMode.BLOCK
    if (mount.is_block, mount.is_read_only) != (is_block, capability.is_read_only):
        raise AlreadyExists(
            "volume", request.volume_id, "it is staged there with another capability"
        )


def _check_published_alike(
    existing: MountPoint, staged: MountPoint, request: PublishRequest
) -> None:
    if (existing.device, existing.is_block) != (staged.device, staged.is_block):
        raise AlreadyExists("path", request.target_path, "something else is mounted there")
    if existing.is_read_only != request.wants_read_only:
        raise AlreadyExists(
            "volume", request.volume_id, "it is published there with another read-only state"
        )


def _check_goes_with(others: Sequence[MountPoint], request: PublishRequest) -> None:
    """Raise WrongState where a second publication would break what the first was promised."""
    if not others:
        return
    if request.capability.access is AccessMode.SINGLE_NODE_SINGLE_WRITER:
        where = others[0].target
        raise WrongState("volume", request.volume_id, f"published at {where}", "unpublishing it")
    if any(m.is_block and m.is_read_only != request.wants_read_only for m in others):
        # The kernel knows one read-only flag per device, not per name of it.
        raise WrongState(
            "volume",
            request.volume_id,
            f"published at {others[0].target} with another read-only state",
            "the same read-only state in all publications of a block volume",
        )


def _check_paths(**paths: str) -> None:
    for name, path in paths.items():
        if not path.startswith("/"):
            raise InvalidArgument(name, f"{path!r} is no absolute path")


def _block_path(staging_path: str, volume_id: str) -> str:
    return str(PurePosixPath(staging_path, volume_id))


def _replayed_path(record: VolumeRecord) -> str:
    """Where a read-only mount's private copy is: beside the volume, so that it can share blocks."""
    return str(PurePosixPath(record.path).with_name("read-only.raw"))
