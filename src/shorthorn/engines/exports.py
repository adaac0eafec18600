"""Exports: from a volume to an image, in two steps.

Owns the journal `export.json` in an image's staging directory. The first step fixes the data and
records when; from then on neither the volume nor our process is needed. The second makes the
artifact and commits. Must never capture twice for one image: the point in time was answered.
Called by `engines.local`.
"""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from shorthorn.domain.errors import AlreadyExists, ImageFailed, NotFound
from shorthorn.domain.models import ImageFormat, ImageRecord, Progress, SourceType
from shorthorn.engines import records
from shorthorn.engines.extent_budget import keep_within_budget
from shorthorn.engines.failures import cleaned_up, translated
from shorthorn.engines.layout import (
    EXPORT_RECORD,
    IMAGE_ARTIFACT,
    IMAGE_BASE,
    VOLUME_DATA,
)
from shorthorn.host.qcow2_conversion import raw_to_qcow2

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from shorthorn.domain.models import ImageKey, VolumeRecord
    from shorthorn.domain.ports import ReportProgress
    from shorthorn.engines.images import Images
    from shorthorn.engines.pool import OpenPool


class Exports:
    """The exports of one open pool."""

    def __init__(self, pool: OpenPool, images: Images) -> None:
        self._pool = pool
        self._images = images

    async def begin(
        self,
        key: ImageKey,
        volume_id: str,
        export_format: ImageFormat,
        get_volume: Callable[[str], Awaitable[VolumeRecord]],
    ) -> datetime:
        """See ports.Engine. The volume is looked for only where nothing was begun."""
        directory = self._pool.layout.image(key)
        finished = await self._images.find(key) or self._images.find_staged(key)
        if finished is not None:
            return _moment_of(finished, volume_id, export_format)
        staged = self._pool.layout.staged(directory)
        journal = records.read(staged / EXPORT_RECORD, records.ExportJson)
        if journal is not None:
            _check_same(key, journal, volume_id, export_format)
            return journal.point_in_time
        await get_volume(volume_id)
        source = self._pool.layout.volume(volume_id) / VOLUME_DATA
        needed_bytes = self._pool.cloner.cost_bytes(source)
        async with (
            translated(self._pool.root, "image", key.name, needed_bytes=needed_bytes),
            cleaned_up(self._pool.staging, directory),
        ):
            return await self._capture(directory, source, volume_id, export_format)

    async def _capture(
        self, directory: Path, source: Path, volume_id: str, export_format: ImageFormat
    ) -> datetime:
        staged = await self._pool.staging.begin(directory)
        base = staged / IMAGE_BASE
        moment = await self._pool.capture.take(volume_id, source, base)
        journal = records.ExportJson(
            volume_id=volume_id,
            export_format=export_format,
            size_bytes=base.stat().st_size,
            point_in_time=moment,
        )
        await self._pool.staging.sync_parents(directory)
        await self._pool.staging.write_record(staged / EXPORT_RECORD, journal)
        return moment

    async def finish(self, key: ImageKey, report: ReportProgress) -> ImageRecord:
        """See ports.Engine. Raises: NotFound: nothing was begun. ImageFailed: too large for qcow2.

        State: after an error, NoSpace too, what `begin` fixed is still there: finish again, or
        discard it.
        """
        existing = await self._images.find(key)
        if existing is not None:
            return existing
        staged = self._pool.layout.staged(self._pool.layout.image(key))
        made = self._images.find_staged(key)
        journal = records.read(staged / EXPORT_RECORD, records.ExportJson)
        if made is None and journal is None:
            raise NotFound("export", f"{key.name} ({key.uuid})")
        needed_bytes = self._pool.cloner.cost_bytes(staged / IMAGE_BASE)
        async with translated(self._pool.root, "image", key.name, needed_bytes=needed_bytes):
            if made is None:
                assert journal is not None
                made = await self._make(key, staged, journal, report)
            return await self._images.commit(made)

    async def _make(
        self, key: ImageKey, staged: Path, journal: records.ExportJson, report: ReportProgress
    ) -> ImageRecord:
        """Make the artifact and return the record of what is to be committed."""
        base, artifact = staged / IMAGE_BASE, staged / IMAGE_ARTIFACT
        artifact.unlink(missing_ok=True)
        total = base.stat().st_blocks * 512
        report(Progress(0, total, "checking extents"))
        await keep_within_budget(
            self._pool.staging,
            base,
            extents_max=self._pool.extents_max,
            on_bytes=_on_loop(report, "writing in one piece"),
        )
        try:
            await self._write_artifact(key, base, artifact, journal, report)
        except BaseException:
            artifact.unlink(missing_ok=True)
            raise
        self._pool.staging.reached("artifact made")
        return ImageRecord(
            key=key,
            format=journal.export_format,
            size_bytes=artifact.stat().st_size,
            virtual_size_bytes=journal.size_bytes,
            checksum="",
            source={
                "type": str(SourceType.EXPORT_FROM_VOLUME),
                "volume-name": journal.volume_id,
                "export-type": str(journal.export_format),
            },
            created_at=datetime.now(UTC),
            point_in_time=journal.point_in_time,
            artifact_path=str(artifact),
            base_path=str(base),
        )

    async def _write_artifact(
        self,
        key: ImageKey,
        base: Path,
        artifact: Path,
        journal: records.ExportJson,
        report: ReportProgress,
    ) -> None:
        if journal.export_format is ImageFormat.RAW:
            # One file under two names: no second set of extents, and both stay as they are.
            artifact.hardlink_to(base)
            return
        os.close(os.open(artifact, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        try:
            await raw_to_qcow2(
                base,
                artifact,
                virtual_size_bytes=journal.size_bytes,
                on_bytes=lambda done, total: report(Progress(done, total, "converting")),
            )
        except ValueError as exc:
            raise ImageFailed(key.name, str(exc)) from exc


def _on_loop(report: ReportProgress, message: str) -> Callable[[int, int], None]:
    """Return a listener for another thread; `report` is called from the event loop."""
    loop = asyncio.get_running_loop()

    def relay(done: int, total: int) -> None:
        loop.call_soon_threadsafe(report, Progress(done, total, message))

    return relay


def _moment_of(record: ImageRecord, volume_id: str, export_format: ImageFormat) -> datetime:
    """Return when the finished export's data was fixed. Raises AlreadyExists: it is another."""
    source = record.source.get("type"), record.source.get("volume-name")
    if record.point_in_time is None or source != (SourceType.EXPORT_FROM_VOLUME, volume_id):
        raise AlreadyExists("image", record.key.name, f"it is not an export of volume {volume_id}")
    if record.format is not export_format:
        raise AlreadyExists("image", record.key.name, f"it was exported as {record.format}")
    return record.point_in_time


def _check_same(
    key: ImageKey, journal: records.ExportJson, volume_id: str, export_format: ImageFormat
) -> None:
    if (journal.volume_id, journal.export_format) != (volume_id, export_format):
        raise AlreadyExists(
            "image",
            key.name,
            f"an export of volume {journal.volume_id} as {journal.export_format} was begun",
        )
