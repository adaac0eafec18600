"""Copies of backing images on this node's pool: capture, transfer, hash, remove.

Owns: reconciling ImageCopy. Long work runs in `Transfers`; a reconcile starts it, writes down how
far it is, and takes its end. Must never: gather states of several copies
(`controllers.backing_images` does). Run on the node of the pool.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shorthorn.controllers.controller import back_off_s
from shorthorn.controllers.finalizers import hold, release
from shorthorn.controllers.outcomes import is_final, reason_of
from shorthorn.controllers.transfers import Transfers
from shorthorn.domain import errors, planning
from shorthorn.domain.models import (
    CopyState,
    ImageCopy,
    ImageFormat,
    ImageKey,
    ImageRecord,
    SourceType,
)
from shorthorn.domain.planning import Step
from shorthorn.domain.ports import Checksummer, Engine, ImageFetcher, Registry, ReportProgress
from shorthorn.kit.keyed import KeyedLocks

log = logging.getLogger(__name__)

_FULL_PERCENT = 100


class ImageCopyReconciler:
    """One ImageCopy at a time; `enqueue` is the controller's, so that transfers can wake it."""

    def __init__(
        self,
        copies: Registry[ImageCopy],
        engine: Engine,
        fetcher: ImageFetcher,
        checksummer: Checksummer,
        locks: KeyedLocks[str],
        enqueue: Callable[[str], None],
    ) -> None:
        self._copies = copies
        self._engine = engine
        self._fetcher = fetcher
        self._checksummer = checksummer
        self._locks = locks
        self._transfers: Transfers[ImageRecord] = Transfers(enqueue)
        self._waits: dict[str, _Wait] = {}

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
            failure = _failure_of(ended)
            if failure is not None:
                return await self._give_up(copy, failure)
            self._transfers.forget(name)
            self._waits.pop(name, None)
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
            case Step.TRANSFER | Step.HASH if self._wait_s(copy.meta.name) > 0:
                return self._wait_s(copy.meta.name)
            case Step.TRANSFER:
                await self._start_transfer(copy)
                return None
            case Step.REPORT if record is not None:
                await self._report_ready(copy, record)
            case Step.HASH if record is not None:
                self._start_hash(copy, record)
                return None
            case Step.REPORT_LOST:
                await self._fail(
                    copy, errors.Corrupt("image copy", copy.meta.name, "its files are gone")
                )
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
        if copy.status.state is CopyState.PENDING:
            await self._report(copy, state=CopyState.IN_PROGRESS)
        self._transfers.start(copy.meta.name, lambda report: self._transfer(copy, report))

    async def _transfer(self, copy: ImageCopy, report: ReportProgress) -> ImageRecord:
        key = _key(copy)
        if copy.spec.source_type == SourceType.EXPORT_FROM_VOLUME:
            return await self._engine.finish_export(key, report)
        if copy.spec.source_type == SourceType.SYNC:
            raise errors.Unavailable("peers", "this node cannot fetch from others")
        if copy.spec.source_type != SourceType.DOWNLOAD:
            raise errors.ImageFailed(
                key.name, f"source type {copy.spec.source_type} is not supported"
            )
        staging = await self._engine.staging_dir(key)
        record = await self._fetcher.fetch(
            key, copy.spec.source_parameters, copy.spec.expected_checksum, staging, report
        )
        return await self._engine.commit_image(record)

    def _start_hash(self, copy: ImageCopy, record: ImageRecord) -> None:
        async def work(report: ReportProgress) -> ImageRecord:
            checksum = await self._checksummer.sha512(Path(record.artifact_path), report)
            return await self._engine.record_checksum(record.key, checksum)

        self._transfers.start(copy.meta.name, work)

    async def _delete(self, copy: ImageCopy) -> None:
        await self._forget(copy.meta.name)
        await self._engine.delete_image(_key(copy))
        await release(self._copies, copy)

    async def _forget(self, name: str) -> None:
        await self._transfers.cancel(name)
        self._waits.pop(name, None)

    async def _give_up(self, copy: ImageCopy, exc: BaseException) -> float | None:
        """Say in the status that the transfer failed; return when to try again, None: never.

        The end is forgotten only when that is written down: a verdict on a large download would be
        lost otherwise, and all of it fetched again.
        """
        name = copy.meta.name
        is_ready = copy.status.state is CopyState.READY
        if is_ready:
            # It stays so when only its checksum could not be computed this time.
            log.warning("image copy %s: %s", name, exc)
        elif is_final(exc):
            await self._engine.discard_staging(_key(copy))
            await self._fail(copy, exc)
        else:
            await self._report(copy, reason=reason_of(exc), message=str(exc))
        self._transfers.forget(name)
        if is_final(exc) and not is_ready:
            return None
        failures = self._waits[name].failures + 1 if name in self._waits else 1
        delay_s = back_off_s(failures)
        self._waits[name] = _Wait(failures, asyncio.get_running_loop().time() + delay_s)
        return delay_s

    def _wait_s(self, name: str) -> float:
        """Return how long the next transfer has to wait: events come earlier than its time."""
        wait = self._waits.get(name)
        return wait.until - asyncio.get_running_loop().time() if wait else 0

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
        if copy.status.state not in (CopyState.STARTING, CopyState.IN_PROGRESS):
            return
        progress = self._transfers.progress(copy.meta.name)
        if progress.bytes_done == 0 or progress.bytes_done == copy.status.bytes_done:
            return
        await self._report(
            copy,
            state=CopyState.IN_PROGRESS,
            progress_percent=progress.percent,
            bytes_done=progress.bytes_done,
            bytes_total=progress.bytes_total,
            reason="",
            message=progress.message,
        )

    async def _fail(self, copy: ImageCopy, exc: BaseException) -> None:
        await self._report(copy, state=CopyState.FAILED, reason=reason_of(exc), message=str(exc))

    async def _report(self, copy: ImageCopy, **changes: Any) -> None:
        status = dataclasses.replace(copy.status, **changes)
        if status == copy.status:
            return
        if status.state is not copy.status.state:
            status = dataclasses.replace(status, changed_at=datetime.now(UTC))
        await self._copies.update_status(dataclasses.replace(copy, status=status))


@dataclasses.dataclass(frozen=True, slots=True)
class _Wait:
    """After so many failures in a row, nothing before `until` (the loop's time)."""

    failures: int
    until: float


def _failure_of(ended: asyncio.Task[ImageRecord]) -> BaseException | None:
    if ended.cancelled():
        return errors.Unavailable("transfer", "it was cancelled")
    return ended.exception()


def _export_format(text: str | None) -> ImageFormat:
    try:
        return ImageFormat(text or ImageFormat.RAW)
    except ValueError:
        raise errors.InvalidArgument("export-type", f"{text!r} is neither raw nor qcow2") from None


def _key(copy: ImageCopy) -> ImageKey:
    return ImageKey(copy.spec.image, copy.spec.image_uuid)
