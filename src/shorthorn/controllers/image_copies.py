"""Copies of backing images on this node's pool: capture, transfer, hash, remove.

Owns: reconciling ImageCopy. Long work runs in `Transfers`; a reconcile starts it, writes down how
far it is, and takes its end. Must never: gather states of several copies
(`controllers.backing_images` does). Run on the node of the pool.

A copy of source type `sync` comes from whichever pool has one that is ready. Who that is, is looked
up at the start of every try: copies and pools of other nodes are not in this node's watches.
"""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shorthorn.controllers.controller import back_off_s
from shorthorn.controllers.finalizers import hold, release
from shorthorn.controllers.outcomes import is_final, reason_of
from shorthorn.controllers.peers import has_copies, peers_with_image
from shorthorn.controllers.retries import Retries
from shorthorn.controllers.transfers import Transfers, failure_of
from shorthorn.domain import errors, names, planning
from shorthorn.domain.image_bytes import CLONE_SOURCE, CLONE_UUID, VERIFY_AT, ImageCloner
from shorthorn.domain.models import (
    CopyState,
    ImageCopy,
    ImageFormat,
    ImageKey,
    ImageRecord,
    Peer,
    Pool,
    Progress,
    SourceType,
)
from shorthorn.domain.planning import Step
from shorthorn.domain.ports import (
    Checksummer,
    Engine,
    ImageFetcher,
    PeerSource,
    Registry,
    ReportProgress,
)
from shorthorn.kit.keyed import KeyedLocks

log = logging.getLogger(__name__)

_FULL_PERCENT = 100
_DAMAGED = (errno.ENOENT, errno.EIO, errno.EUCLEAN)
"""What says that an artifact is damaged, and not that it cannot be read at this moment."""

_SYNCS_MAX = 5
"""Most copies that come to this node from peers at once; Longhorn's
concurrent-backing-image-replenish-per-node-limit."""


class ImageCopyReconciler:
    """One ImageCopy at a time; `enqueue` is the controller's, so that transfers can wake it.

    `pools` and `peers`: where copies of source type sync come from; without them, on one host, none
    can be made. `uploads`: its `fetch` waits for bytes that are sent to us. `cloner`: for
    images made of others in this pool.
    """

    def __init__(
        self,
        copies: Registry[ImageCopy],
        engine: Engine,
        fetcher: ImageFetcher,
        checksummer: Checksummer,
        locks: KeyedLocks[str],
        enqueue: Callable[[str], None],
        *,
        pools: Registry[Pool] | None = None,
        peers: PeerSource | None = None,
        uploads: ImageFetcher | None = None,
        cloner: ImageCloner | None = None,
    ) -> None:
        self._copies = copies
        self._pools = pools
        self._peers = peers
        self._engine = engine
        #: By source type, those that bring an image's bytes into a staging directory.
        self._fetchers: dict[str, ImageFetcher] = {SourceType.DOWNLOAD: fetcher}
        if uploads is not None:
            self._fetchers[SourceType.UPLOAD] = uploads
        self._cloner = cloner
        self._checksummer = checksummer
        self._locks = locks
        self._transfers: Transfers[ImageRecord] = Transfers(enqueue)
        #: By copy, the request that its running transfer carries out, where that verifies.
        self._verifying: dict[str, str] = {}
        self._turns = asyncio.Semaphore(_SYNCS_MAX)
        self._retries = Retries(lambda failures: back_off_s(failures))

    async def close(self) -> None:
        """Stop all transfers; what arrived so far is resumed by the next process."""
        await self._transfers.close()

    async def reconcile(self, name: str) -> float | None:
        copy = await self._copies.find(name)
        if copy is None:
            await self._forget(name)
            return None
        if copy.spec.pool_uuid != self._engine.pool_uuid:
            return None
        ended = self._transfers.find_ended(name)
        if ended is not None and not copy.meta.deleting:
            failure = failure_of(ended)
            if failure is not None:
                return await self._give_up(copy, failure)
            if name in self._verifying:
                await self._report(copy, **self._verified(name))
                copy = await self._copies.find(name) or copy
            self._end(name)
            self._retries.forget(name)
        record = await self._engine.find_image(_key(copy))
        step = planning.plan_copy(copy, record, is_moving=self._transfers.is_known(name))
        return await self._take(step, copy, record)

    async def _take(self, step: Step, copy: ImageCopy, record: ImageRecord | None) -> float | None:
        match step:
            case Step.HOLD:
                await hold(self._copies, copy)
            case Step.DELETE:
                await self._delete(copy)
                return None
            case Step.CAPTURE:
                await self._capture(copy)
            case Step.TRANSFER | Step.HASH | Step.VERIFY if (
                self._retries.wait_s(copy.meta.name) > 0
            ):
                return self._retries.wait_s(copy.meta.name)
            case Step.TRANSFER:
                await self._start_transfer(copy)
                return None
            case Step.REPORT if record is not None:
                await self._report_ready(copy, record)
            case Step.REPORT_OTHER if record is not None:
                problem = f"the pool has other bytes under its name, of SHA-512 {record.checksum}"
                await self._fail(copy, errors.Corrupt("image copy", copy.meta.name, problem))
            case Step.HASH if record is not None:
                self._start_hash(copy, record)
                return None
            case Step.VERIFY if record is not None:
                self._start_verification(copy, record)
                return None
            case Step.REPORT_LOST:
                gone = errors.Corrupt("image copy", copy.meta.name, "its files are gone")
                # Not condemned: it is as good as before when they are there again.
                await self._fail(copy, gone, verify_at="", verified_at=None)
            case _:
                await self._report_progress(copy)
                return None
        return 0

    # what a step does

    async def _capture(self, copy: ImageCopy) -> None:
        parameters = copy.spec.source_parameters
        volume_id = parameters.get("volume-name", "")
        try:
            async with self._locks.hold([volume_id]):
                when = await self._engine.begin_export(
                    _key(copy), volume_id, _export_format(parameters.get("export-type"))
                )
        except Exception as exc:
            if not is_final(exc):
                await self._report(copy, reason=reason_of(exc), message=str(exc))
                raise
            await self._fail(copy, exc)
            return
        await self._report(
            copy, state=CopyState.STARTING, point_in_time=when, reason="", message=""
        )

    async def _start_transfer(self, copy: ImageCopy) -> None:
        # An export has said that it starts, and is mostly over before anybody could read more.
        # An upload is pending until bytes come.
        is_upload = copy.spec.source_type == SourceType.UPLOAD
        if copy.status.state is CopyState.PENDING and not is_upload:
            await self._report(copy, state=CopyState.IN_PROGRESS)
        self._transfers.start(copy.meta.name, lambda report: self._transfer(copy, report))

    async def _transfer(self, copy: ImageCopy, report: ReportProgress) -> ImageRecord:
        key = _key(copy)
        if copy.spec.source_type == SourceType.EXPORT_FROM_VOLUME:
            return await self._engine.finish_export(key, report)
        if copy.spec.source_type == SourceType.SYNC:
            return await self._sync(copy, report)
        if copy.spec.source_type == SourceType.CLONE:
            return await self._clone(copy, report)
        fetcher = self._fetchers.get(copy.spec.source_type)
        if fetcher is None:
            raise errors.ImageFailed(
                key.name, f"source type {copy.spec.source_type} is not supported"
            )
        staging = await self._engine.staging_dir(key)
        record = await fetcher.fetch(
            key, copy.spec.source_parameters, copy.spec.expected_checksum, staging, report
        )
        return await self._engine.commit_image(record)

    async def _sync(self, copy: ImageCopy, report: ReportProgress) -> ImageRecord:
        """Bring the image from a peer. Raises Unavailable while none has it: tried again."""
        key, expected = _key(copy), copy.spec.expected_checksum
        if self._peers is None or self._pools is None:
            raise errors.ImageFailed(key.name, "this node gets nothing from peers")
        async with self._turns:
            peers = await peers_with_image(self._copies, self._pools, copy)
            if not peers:
                raise errors.Unavailable("peers", "no node with a ready copy of the image is there")
            staging = await self._engine.staging_dir(key)
            record = await self._peers.fetch_image(key, peers, expected, staging, report)
        if expected not in ("", record.checksum):
            raise errors.ChecksumMismatch(key.name, expected, record.checksum)
        return await self._engine.commit_image(dataclasses.replace(record, key=key))

    async def _clone(self, copy: ImageCopy, report: ReportProgress) -> ImageRecord:
        """Make the image of another one's bytes: in this pool if they are here, else by a peer."""
        parameters = copy.spec.source_parameters
        origin = ImageKey(parameters.get(CLONE_SOURCE, ""), parameters.get(CLONE_UUID, ""))
        key, expected = _key(copy), copy.spec.expected_checksum
        record = await self._find_sound(origin)
        staging = await self._engine.staging_dir(key)
        if record is not None and self._cloner is not None:
            made = await self._cloner.clone(record, key, staging)
        else:
            peers = await self._peers_with_origin(copy, origin)
            if self._peers is None:
                raise errors.Unavailable("pool", f"it has no sound copy of image {origin.name}")
            made = await self._peers.fetch_image(origin, peers, expected, staging, report)
        if expected not in ("", made.checksum):
            raise errors.ChecksumMismatch(key.name, expected, made.checksum)
        source = {"type": str(SourceType.CLONE), CLONE_SOURCE: origin.name}
        return await self._engine.commit_image(dataclasses.replace(made, key=key, source=source))

    async def _peers_with_origin(self, copy: ImageCopy, origin: ImageKey) -> Sequence[Peer]:
        """Return who can give what a clone is made of; where there are no peers, nobody.

        Raises: NotFound: it was deleted. Unavailable: nobody can at this moment.
        """
        spec = dataclasses.replace(copy.spec, image=origin.name, image_uuid=origin.uuid)
        of_origin = dataclasses.replace(copy, spec=spec)
        if not await has_copies(self._copies, of_origin):
            raise errors.NotFound("backing image", origin.name, "it was deleted")
        if self._pools is None:
            return ()
        peers = await peers_with_image(self._copies, self._pools, of_origin)
        if not peers:
            problem = f"no node with a ready copy of image {origin.name} is there now"
            raise errors.Unavailable("peers", problem)
        return peers

    async def _find_sound(self, image: ImageKey) -> ImageRecord | None:
        """Return another image of this pool, if it is there and not known to be damaged."""
        copy = await self._copies.find(names.copy_name(image.name, self._engine.pool_uuid))
        if copy is not None and copy.spec.image_uuid == image.uuid and copy.is_condemned:
            return None
        return await self._engine.find_image(image)

    def _start_hash(self, copy: ImageCopy, record: ImageRecord) -> None:
        async def work(report: ReportProgress) -> ImageRecord:
            checksum = await self._checksummer.sha512(Path(record.artifact_path), report)
            return await self._engine.record_checksum(record.key, checksum)

        self._transfers.start(copy.meta.name, work)

    def _start_verification(self, copy: ImageCopy, record: ImageRecord) -> None:
        """Hash the artifact again, and compare the base with it. Ends with Corrupt where one is not
        what was written.
        """
        name = copy.meta.name

        async def work(report: ReportProgress) -> ImageRecord:
            path = Path(record.artifact_path)
            try:
                found = await self._checksummer.sha512(path, report, from_disk=True)
                if found != record.checksum:
                    problem = f"its SHA-512 was {record.checksum} and is now {found}"
                    raise errors.Corrupt("image copy", name, problem)
                problem = await self._checksummer.base_problem(record, report)
            except OSError as exc:
                if exc.errno not in _DAMAGED:
                    raise
                raise errors.Corrupt("image copy", name, f"it cannot be read: {exc}") from exc
            if problem:
                whole = f"base.raw, which volumes are made of, is not what it was: {problem}"
                raise errors.Corrupt("image copy", name, whole)
            return record

        self._verifying[name] = copy.meta.annotations[VERIFY_AT]
        self._transfers.start(name, work)

    def _verified(self, name: str) -> dict[str, Any]:
        """What the status says of a verification that has ended; nothing where none has."""
        if name not in self._verifying:
            return {}
        return {"verify_at": self._verifying[name], "verified_at": datetime.now(UTC)}

    def _end(self, name: str) -> None:
        """Forget a transfer whose end has been written down."""
        self._transfers.forget(name)
        self._verifying.pop(name, None)

    async def _delete(self, copy: ImageCopy) -> None:
        await self._forget(copy.meta.name)
        await self._engine.delete_image(_key(copy))
        await release(self._copies, copy)

    async def _forget(self, name: str) -> None:
        await self._transfers.cancel(name)
        self._verifying.pop(name, None)
        self._retries.forget(name)

    async def _give_up(self, copy: ImageCopy, exc: BaseException) -> float | None:
        """Say in the status that the transfer failed; return when to try again, None: never.

        The end is forgotten only when that is written down: a verdict on a large download would be
        lost otherwise, and all of it fetched again.
        """
        name = copy.meta.name
        is_ready = copy.status.state is CopyState.READY and not isinstance(exc, errors.Corrupt)
        # Of a moment that is over there is nothing but what was captured: that waits for room.
        waits_for_room = isinstance(exc, errors.NoSpace) and planning.is_captured(copy)
        if is_ready:
            # It stays so when only its checksum could not be computed this time.
            log.warning("image copy %s: %s", name, exc)
        elif is_final(exc):
            if not waits_for_room:
                await self._engine.discard_staging(_key(copy))
            await self._fail(copy, exc, **self._verified(name))
        else:
            await self._report(copy, reason=reason_of(exc), message=str(exc))
        self._end(name)
        if is_final(exc) and not is_ready and not waits_for_room:
            return None
        return self._retries.failed(name)

    # what is written down

    async def _report_ready(self, copy: ImageCopy, record: ImageRecord) -> None:
        usage = await self._engine.measure_image(record.key)
        await self._report(
            copy,
            state=CopyState.READY,
            progress_percent=_FULL_PERCENT,
            reason="",
            message="",
            size_bytes=record.size_bytes,
            virtual_size_bytes=record.virtual_size_bytes,
            real_size_bytes=usage.allocated_bytes,
            shared_bytes=usage.shared_bytes,
            extent_count=usage.extent_count,
            format=record.format.value,
            checksum=record.checksum,
            point_in_time=record.point_in_time,
        )

    async def _report_progress(self, copy: ImageCopy) -> None:
        progress = self._transfers.progress(copy.meta.name)
        if not _is_news(copy, progress):
            return
        await self._report(
            copy,
            state=CopyState.IN_PROGRESS if progress.bytes_done else copy.status.state,
            progress_percent=progress.percent,
            bytes_done=progress.bytes_done,
            bytes_total=progress.bytes_total,
            reason="",
            message=progress.message,
        )

    async def _fail(self, copy: ImageCopy, exc: BaseException, **changes: Any) -> None:
        failure = {"state": CopyState.FAILED, "reason": reason_of(exc), "message": str(exc)}
        await self._report(copy, **failure, **changes)

    async def _report(self, copy: ImageCopy, **changes: Any) -> None:
        status = dataclasses.replace(copy.status, **changes)
        if status == copy.status:
            return
        if status.state is not copy.status.state:
            status = dataclasses.replace(status, changed_at=datetime.now(UTC))
        await self._copies.update_status(dataclasses.replace(copy, status=status))


def _export_format(text: str | None) -> ImageFormat:
    try:
        return ImageFormat(text or ImageFormat.RAW)
    except ValueError:
        raise errors.InvalidArgument("export-type", f"{text!r} is neither raw nor qcow2") from None


def _key(copy: ImageCopy) -> ImageKey:
    return ImageKey(copy.spec.image, copy.spec.image_uuid)


def _is_news(copy: ImageCopy, progress: Progress) -> bool:
    """Whether the status shall say how far a transfer is."""
    status = copy.status
    if copy.spec.source_type == SourceType.UPLOAD:
        # It waits for somebody, who has to see that it does.
        is_open = status.state in (CopyState.PENDING, CopyState.IN_PROGRESS)
        return is_open and progress.bytes_total > 0
    if status.state not in (CopyState.STARTING, CopyState.IN_PROGRESS):
        return False
    return progress.bytes_done not in (0, status.bytes_done)
