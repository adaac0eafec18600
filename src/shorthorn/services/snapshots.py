"""CSI snapshots of both types: `snap` beside its volume, `bi` as a backing image.

Owns the decision which type a request or a handle means, and all of type snap; type bi is
`services.images`. What is answered is read from the objects. Called by the CSI edge.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from shorthorn.domain.errors import (
    AlreadyExists,
    DomainError,
    InvalidArgument,
    NotFound,
    OperationPending,
)
from shorthorn.domain.handles import (
    BackingImageHandle,
    InvalidHandle,
    SnapshotHandle,
    find_backing_image,
    find_scheme,
    parse,
)
from shorthorn.domain.labels import CLONE_LABEL, node_labels
from shorthorn.domain.models import (
    NO_MAP,
    ImageFormat,
    Meta,
    Snapshot,
    SnapshotSpec,
    VolumeState,
)
from shorthorn.domain.names import clone_source_name, object_name
from shorthorn.domain.planning import DATA_FINALIZER
from shorthorn.services.answers import SnapshotAnswer
from shorthorn.services.failures import Budget, delete_and_wait, recall, wait_settled
from shorthorn.services.image_requests import (
    check_export_type,
    export_request,
    request_of_handle,
    selector,
)
from shorthorn.services.images import ImageService
from shorthorn.services.pages import page

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from shorthorn.domain.models import Volume
    from shorthorn.domain.ports import Registry
    from shorthorn.kit.keyed import KeyedOperations
    from shorthorn.services.image_requests import ImageRequest


class SnapshotType(StrEnum):
    """Value of the VolumeSnapshotClass parameter `type`."""

    SNAP = "snap"
    BACKING_IMAGE = "bi"


@dataclass(frozen=True, slots=True)
class CreateSnapshotRequest:
    """CSI's request. `parameters` come from the VolumeSnapshotClass."""

    name: str
    volume_id: str
    parameters: Mapping[str, str] = field(default_factory=lambda: NO_MAP)


class SnapshotService:
    """See the module. One per process; all state is in the registries."""

    def __init__(
        self,
        *,
        snapshots: Registry[Snapshot],
        volumes: Registry[Volume],
        images: ImageService,
        operations: KeyedOperations,
    ) -> None:
        self._snapshots = snapshots
        self._volumes = volumes
        self._images = images
        self._operations = operations

    async def create(self, request: CreateSnapshotRequest, *, timeout_s: float) -> SnapshotAnswer:
        """Fix the volume's content now, and return the snapshot.

        Raises: InvalidArgument: unknown type or export type. AlreadyExists: the name has other
            content. NotFound: no such volume. StillWorking: nothing is fixed yet.
        """
        name = object_name(request.name)
        if _type_of(request) is SnapshotType.BACKING_IMAGE:
            wanted = _export_of(request)
            if await self._snapshots.find(name):
                raise AlreadyExists("snapshot", request.name, "its type is snap")
            return await self._images.export(request.name, wanted, timeout_s=timeout_s)
        if await self._images.find(name):
            raise AlreadyExists("snapshot", request.name, "its type is bi")
        budget = Budget(timeout_s)
        snapshot = await self._operations.run(
            f"snapshot/{name}", request, lambda: self._begin(name, request)
        )
        return await self._finish(snapshot, budget)

    async def delete(self, handle: str, *, timeout_s: float) -> None:
        """Make the snapshot absent. Missing ones, and handles of no known form, are success; so are
        those that name an image and describe another.

        Raises: OperationPending: a volume is being made from it. StillWorking.
        """
        parsed: BackingImageHandle | SnapshotHandle | None = None
        with contextlib.suppress(InvalidArgument):
            parsed = parse(handle)
        image = find_backing_image(handle)
        if image:
            meant = request_of_handle(parsed) if isinstance(parsed, BackingImageHandle) else None
            await self._images.delete(image, meant, timeout_s=timeout_s)
        elif isinstance(parsed, SnapshotHandle):
            await self._delete(parsed, Budget(timeout_s))

    async def get(self, handle: str) -> SnapshotAnswer:
        """Return the snapshot.

        Raises: NotFound. For an image's handle whatever `ImageService.describe` raises.
        """
        found = await self._find(handle)
        if found is None:
            raise NotFound("snapshot", handle, _how_written(handle))
        return found

    async def list(
        self, *, handle: str, volume_id: str, max_entries: int, token: str
    ) -> tuple[Sequence[SnapshotAnswer], str]:
        """Return one page of snapshots and the token of the next; empty filters select all.

        Raises: InvalidPageToken. With `handle`, what `get` raises except NotFound.
        """
        if handle:
            found = await self._find(handle)
            answers = [found] if found else []
        else:
            shown = [s for s in await self._snapshots.list() if CLONE_LABEL not in s.meta.labels]
            answers = [_answer(s) for s in shown if _is_ready(s)]
            answers += await self._images.list_exports()
        if volume_id:
            answers = [answer for answer in answers if answer.source_volume_id == volume_id]
        return page(answers, lambda a: a.handle, max_entries=max_entries, token=token)

    async def find_object(self, handle: SnapshotHandle) -> Snapshot:
        """Return the ready snapshot object that a volume is to be made from.

        Raises: NotFound. OperationPending: it is not ready yet.
        """
        snapshot = await self._find_snapshot(handle)
        if snapshot is None:
            raise NotFound("snapshot", handle.format())
        if not _is_ready(snapshot):
            raise OperationPending(f"snapshot {handle.name}")
        return snapshot

    async def ensure_clone_source(
        self, volume: str, source_volume_id: str, *, budget: Budget
    ) -> Snapshot:
        """Fix the content of a volume for the one named `volume`, which is cloned from it on
        another node. No caller of CSI sees this snapshot.

        It carries a label with the new volume's name, by which `controllers.clone_sources` removes
        it when that volume is ready or has failed, whatever becomes of us.
        Raises: as `create`.
        """
        name = clone_source_name(volume)
        request = CreateSnapshotRequest(f"clone-{volume}", source_volume_id)
        snapshot = await self._operations.run(
            f"snapshot/{name}",
            request,
            lambda: self._begin(name, request, {CLONE_LABEL: volume}),
        )
        return await self._settled(snapshot, budget)

    async def drop_clone_source(self, volume: str) -> None:
        """Have the snapshot that `volume` was cloned from removed; missing is success."""
        await self._snapshots.delete(clone_source_name(volume))

    async def _find(self, handle: str) -> SnapshotAnswer | None:
        parsed = _parse_or_none(handle)
        if isinstance(parsed, BackingImageHandle):
            return await self._images.describe(parsed)
        snapshot = await self._find_snapshot(parsed) if parsed else None
        return _answer(snapshot) if snapshot and snapshot.status.point_in_time else None

    async def _find_snapshot(self, handle: SnapshotHandle) -> Snapshot | None:
        if object_name(handle.name) != handle.name:
            return None
        snapshot = await self._snapshots.find(handle.name)
        if snapshot is None or CLONE_LABEL in snapshot.meta.labels:
            return None
        return snapshot if snapshot.spec.volume_id == handle.volume_id else None

    async def _begin(
        self, name: str, request: CreateSnapshotRequest, labels: Mapping[str, str] = NO_MAP
    ) -> Snapshot:
        snapshot = await self._snapshots.find(name)
        if snapshot is None:
            snapshot = await self._create(name, request, labels)
        if snapshot.meta.deleting:
            raise OperationPending(f"snapshot {name}, which is being deleted")
        if snapshot.spec.csi_name != request.name:
            raise AlreadyExists("snapshot", name, f"its name is {snapshot.spec.csi_name}")
        if snapshot.spec.volume_id != request.volume_id:
            raise AlreadyExists("snapshot", name, f"it is of volume {snapshot.spec.volume_id}")
        return snapshot

    async def _create(
        self, name: str, request: CreateSnapshotRequest, labels: Mapping[str, str]
    ) -> Snapshot:
        is_name = object_name(request.volume_id) == request.volume_id
        volume = await self._volumes.find(request.volume_id) if is_name else None
        if volume is None or volume.meta.deleting:
            raise NotFound("volume", request.volume_id)
        if volume.status.state is not VolumeState.READY:
            raise OperationPending(f"volume {request.volume_id}")
        spec = SnapshotSpec(
            csi_name=request.name,
            volume_id=request.volume_id,
            node_id=volume.spec.node_id,
            pool_uuid=volume.spec.pool_uuid,
        )
        labels = {**node_labels(volume.spec.node_id), **labels}
        meta = Meta(name=name, finalizers=(DATA_FINALIZER,), labels=labels)
        try:
            return await self._snapshots.create(Snapshot(meta=meta, spec=spec))
        except AlreadyExists:
            raise OperationPending(f"snapshot {name}") from None

    async def _finish(self, snapshot: Snapshot, budget: Budget) -> SnapshotAnswer:
        return _answer(await self._settled(snapshot, budget))

    async def _settled(self, snapshot: Snapshot, budget: Budget) -> Snapshot:
        """Return the snapshot when it is ready; what failed is removed before its error is told."""
        found = await wait_settled(self._snapshots, snapshot, budget=budget)
        if found.status.state is not VolumeState.READY:
            await delete_and_wait(self._snapshots, found.meta.name, found.meta.uid, budget=budget)
            raise recall(found.status.reason, found.status.message, DomainError)
        return found

    async def _delete(self, handle: SnapshotHandle, budget: Budget) -> None:
        snapshot = await self._find_snapshot(handle)
        if snapshot is None:
            return
        for volume in self._volumes.cached():
            if (
                volume.spec.source.snapshot == handle.name
                and volume.status.state is VolumeState.PENDING
            ):
                raise OperationPending(f"volume {volume.meta.name}, made from this snapshot,")
        await delete_and_wait(self._snapshots, handle.name, snapshot.meta.uid, budget=budget)


def _type_of(request: CreateSnapshotRequest) -> SnapshotType:
    given = request.parameters.get("type", "") or SnapshotType.SNAP
    if given in {"bak", "bs"}:
        raise InvalidArgument("type", f"{given}: backups are not kept here; use snap or bi")
    if given not in list(SnapshotType):
        raise InvalidArgument("type", f"invalid CSI snapshot type {given!r}; use snap or bi")
    return SnapshotType(given)


def _export_of(request: CreateSnapshotRequest) -> ImageRequest:
    """Return what a snapshot of type bi asks for; `exportType` wins over `export-type`."""
    parameters = request.parameters
    given = parameters.get("exportType", parameters.get("export-type", ""))
    return export_request(
        request.volume_id,
        check_export_type(given or ImageFormat.RAW),
        node_selector=selector(parameters.get("nodeSelector", "")),
        disk_selector=selector(parameters.get("diskSelector", "")),
    )


def _how_written(handle: str) -> str:
    """Return what is wrong with an id of no known form; empty for one that could exist."""
    try:
        parse(handle)
    except InvalidHandle as exc:
        return exc.problem
    return ""


def _parse_or_none(handle: str) -> BackingImageHandle | SnapshotHandle | None:
    """Return what the handle is; None for ids of no form that we know.

    A `bi://` handle that lacks something is no such id: its error is worth telling.
    """
    if find_scheme(handle) == "bi":
        return parse(handle)
    try:
        return parse(handle)
    except InvalidArgument:
        return None


def _is_ready(snapshot: Snapshot) -> bool:
    return snapshot.status.state is VolumeState.READY and not snapshot.meta.deleting


def _answer(snapshot: Snapshot) -> SnapshotAnswer:
    created_at = snapshot.status.point_in_time or snapshot.meta.created_at
    assert created_at is not None, "objects that were read have a creation time"
    return SnapshotAnswer(
        handle=SnapshotHandle(snapshot.spec.volume_id, snapshot.meta.name).format(),
        source_volume_id=snapshot.spec.volume_id,
        size_bytes=snapshot.status.size_bytes,
        created_at=created_at,
        is_ready=_is_ready(snapshot),
    )
