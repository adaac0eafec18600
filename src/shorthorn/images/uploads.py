"""Images whose bytes are sent to us: received into staging, resumed at any byte, then judged.

Owns every upload that awaits bytes on this node: who sends at this moment, how far it is, and when
it is given up. It implements domain.ports.ImageFetcher, whose `fetch` waits here for bytes instead
of asking for them; `append` is the other end. Must never let two connections write one file, nor
say that a byte is durable before it is. `fetch` is called by the image copy controller, the rest by
`images.local_bytes`.

Checks and errors of downloads are loaded when the first upload is awaited: with their libraries
they would take a quarter of every start.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import msgspec

from shorthorn.domain import errors
from shorthorn.domain.byte_sizes import format_progress
from shorthorn.domain.image_bytes import LENGTH_PARAMETER, UploadState
from shorthorn.domain.models import Progress
from shorthorn.host import files
from shorthorn.images.rate import Rate, finish_reporting
from shorthorn.images.staged_writer import StagedWriter
from shorthorn.kit.threads import in_thread, wait_to_the_end

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping
    from pathlib import Path

    from shorthorn.domain.models import ImageKey, ImageRecord
    from shorthorn.domain.ports import ReportProgress
    from shorthorn.images.inspection import EarlyHead

JOURNAL_NAME = "upload.json"
_FORMAT_VERSION = 1
_ARTIFACT_NAME = "artifact"

PATIENCE: Final = timedelta(hours=24)
"""An upload that gets no byte for so long fails, and its bytes are removed."""

STALE_S: Final = 5.0
"""A connection that is silent for so long makes room for the next one of the same upload. The other
end of one that broke without a word (a laptop that was closed) would be waited for otherwise."""

_TICK_S = 1.0
#: Progress is told at most once a second; what was said last needs a second look to be heard.
_QUIET_TICKS = 2


class _Journal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was durable, and when a byte was last heard of."""

    length_bytes: int
    heard_at: datetime
    durable_bytes: int = 0
    format_version: int = _FORMAT_VERSION


class Uploads:
    """The uploads of one pool. `now` tells the time, in UTC."""

    def __init__(
        self,
        pool_name: str,
        *,
        patience: timedelta = PATIENCE,
        stale_s: float = STALE_S,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`pool_name` is for messages: where there was no space."""
        self._pool_name = pool_name
        self._patience = patience
        self._stale_s = stale_s
        self._now = now
        self._open: dict[ImageKey, _Upload] = {}

    async def fetch(
        self,
        key: ImageKey,
        parameters: Mapping[str, str],
        expected_checksum: str,
        staging: Path,
        report: ReportProgress,
    ) -> ImageRecord:
        """Wait for all bytes, then judge them and make the base. See ports.ImageFetcher.

        `parameters["length"]` says how many will come. Also raises ImageFailed where the upload was
        given up, or nothing came for `patience`.
        State after failure: as ports.ImageFetcher says; connections have ended.
        """
        await in_thread(importlib.import_module, "shorthorn.images.upload_end")
        from shorthorn.images import upload_end

        length_bytes = _length(parameters)
        with upload_end.translated(key.name, self._pool_name, staging):
            upload = await _open_upload(self, key, length_bytes, staging)
        self._open[key] = upload
        try:
            with upload_end.translated(key.name, self._pool_name, staging):
                checksum = await self._receive(upload, report)
                return await upload_end.judge(key, staging, checksum, expected_checksum, report)
        finally:
            del self._open[key]
            await upload.close()

    async def _receive(self, upload: _Upload, report: ReportProgress) -> str:
        await self._await_bytes(upload, report)
        writer = await upload.ensure_writer()
        checksum = await finish_reporting(writer, Rate(report, "received"))
        await upload.close_writer()
        return checksum

    async def _await_bytes(self, upload: _Upload, report: ReportProgress) -> None:
        """Return when all bytes are durable, telling of each second in which some come."""
        quiet_ticks = 0
        while not upload.state.is_complete or upload.is_sending:
            if upload.failure is not None:
                raise upload.failure
            report(upload.progress())
            quiet_ticks = 0 if upload.is_sending else quiet_ticks + 1
            left_s = (upload.heard_at + self._patience - self._now()).total_seconds()
            if left_s <= 0:
                hours = self._patience.total_seconds() / 3600
                problem = f"nothing was sent for {hours:g} hours; it was given up"
                raise errors.ImageFailed(upload.name, problem)
            wait_s = _TICK_S if quiet_ticks < _QUIET_TICKS else max(_TICK_S, left_s)
            await upload.wait_for_change(wait_s)

    # --- the other end

    def state(self, key: ImageKey) -> UploadState | None:
        """Return how far the upload is; None: nothing awaits bytes."""
        upload = self._open.get(key)
        return None if upload is None else upload.state

    def staged_file(self, key: ImageKey) -> Path | None:
        """Return where the bytes of an upload that is awaited arrive; it may not be there yet."""
        upload = self._open.get(key)
        return None if upload is None else upload.artifact

    async def append(
        self, key: ImageKey, offset_bytes: int, chunks: AsyncIterator[bytes]
    ) -> UploadState:
        """See domain.image_bytes.ImageBytes."""
        upload = self._get(key)
        self._make_room(upload)
        async with upload.turn:
            if self._open.get(key) is not upload:
                raise errors.NotFound("upload", key.name)
            return await upload.send(offset_bytes, chunks)

    def _make_room(self, upload: _Upload) -> None:
        """End a connection that is silent. Raises InUse: there is one that is not."""
        if not upload.turn.locked():
            return
        if not upload.end_silent(self._stale_s):
            raise errors.InUse("upload", upload.name, "another connection, which is sending")

    def abandon(self, key: ImageKey) -> None:
        """See domain.image_bytes.ImageBytes."""
        upload = self._get(key)
        if upload.state.is_complete:
            raise errors.NotFound("upload", key.name, "all of its bytes are here")
        upload.fail(errors.ImageFailed(key.name, "the upload was given up"))

    def _get(self, key: ImageKey) -> _Upload:
        upload = self._open.get(key)
        if upload is None:
            raise errors.NotFound("upload", key.name, "nothing awaits bytes")
        return upload

    # --- for the uploads

    def now(self) -> datetime:
        """Return the time, in UTC."""
        return self._now()

    @property
    def pool_name(self) -> str:
        """What messages call the pool."""
        return self._pool_name


async def _open_upload(
    uploads: Uploads, key: ImageKey, length_bytes: int, staging: Path
) -> _Upload:
    """Go on with what an earlier process left in `staging`, or begin."""
    journal = await in_thread(_read_journal, staging, length_bytes)
    if journal is None:
        journal = _Journal(length_bytes, uploads.now())
        await _write_journal(staging, journal)
    return _Upload(uploads, key, staging, journal)


class _Upload:
    """One upload that awaits bytes. `turn` is held by the connection that sends."""

    def __init__(self, uploads: Uploads, key: ImageKey, staging: Path, journal: _Journal) -> None:
        self.name = key.name
        self.turn = asyncio.Lock()
        self.failure: errors.DomainError | None = None
        self._uploads = uploads
        self._staging = staging
        self._journal = journal
        self._writer: StagedWriter | None = None
        self._head: EarlyHead | None = None
        self._changed = asyncio.Event()
        #: The sending connection's; expires when it is to end, for `_why`.
        self._connection: asyncio.Timeout | None = None
        self._why: errors.DomainError = errors.Unavailable("upload", "ended")
        #: Since when that connection is waited for; None: it is not.
        self._silent_since: float | None = None
        self._told = (0.0, 0)

    @property
    def artifact(self) -> Path:
        return self._staging / _ARTIFACT_NAME

    @property
    def state(self) -> UploadState:
        return UploadState(self._journal.durable_bytes, self._journal.length_bytes)

    @property
    def heard_at(self) -> datetime:
        return self._journal.heard_at

    @property
    def is_sending(self) -> bool:
        return self._connection is not None

    def progress(self) -> Progress:
        """Return how far it is, in words that count the durable bytes while nobody sends."""
        done, total = self.state.offset_bytes, self.state.length_bytes
        if not self.is_sending:
            return Progress(done, total, f"waiting for bytes, {format_progress(done, total)}")
        position = self._writer.position if self._writer is not None else done
        now = asyncio.get_running_loop().time()
        then, before = self._told
        speed = max(0, position - before) / max(now - then, 1e-6)
        self._told = (now, position)
        return Progress(position, total, f"receiving, {speed / (1 << 20):.1f} MiB/s")

    async def wait_for_change(self, timeout_s: float) -> None:
        """Return when a connection came or went, the upload failed, or the time is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        self._changed.clear()

    def fail(self, failure: errors.DomainError) -> None:
        """End it, and the connection that sends."""
        self.failure = self.failure or failure
        self._end_connection(failure)
        self._changed.set()

    def end_silent(self, stale_s: float) -> bool:
        """End the connection if nothing came from it for `stale_s`; return whether it ends now."""
        if self._connection is None or self._connection.when() is not None:
            return False  # somebody is about to take its place
        since = self._silent_since
        if since is None or asyncio.get_running_loop().time() - since < stale_s:
            return False
        why = "another connection took over, since this one was silent"
        self._end_connection(errors.Unavailable("upload", why))
        return True

    def _end_connection(self, why: errors.DomainError) -> None:
        if self._connection is not None and not self._connection.expired():
            self._why = why
            self._connection.reschedule(asyncio.get_running_loop().time())

    # --- one connection, under `turn`

    async def send(self, offset_bytes: int, chunks: AsyncIterator[bytes]) -> UploadState:
        """Take what comes. See domain.image_bytes.ImageBytes.append."""
        if self.failure is not None:
            raise self.failure
        if offset_bytes != self.state.offset_bytes:
            raise errors.OffsetMismatch(self.name, self.state.offset_bytes, offset_bytes)
        loop = asyncio.get_running_loop()
        self._told = (loop.time(), offset_bytes)
        connection = asyncio.timeout(None)
        try:
            async with connection:
                self._connection = connection
                self._changed.set()
                await self._take(chunks)
        except TimeoutError:
            if connection.expired():
                raise self._why from None
            raise
        finally:
            self._connection = None
            self._silent_since = None
            self._changed.set()
        return self.state

    async def _take(self, chunks: AsyncIterator[bytes]) -> None:
        """The last piece is held until nothing follows it: who sends more than was promised has
        not sent what was promised, and that must not become an image.
        """
        clock = asyncio.get_running_loop().time
        length, position = self.state.length_bytes, self.state.offset_bytes
        held = b""
        try:
            self._silent_since = clock()
            async for chunk in chunks:
                self._silent_since = None
                position += len(chunk)
                if position > length:
                    held = b""
                    raise errors.SizeOutOfRange(
                        f"upload of {self.name}", position, maximum_bytes=length
                    )
                if position < length:
                    await self._write(chunk)
                else:
                    held = held or chunk
                self._silent_since = clock()
        finally:
            self._silent_since = None
            await wait_to_the_end(asyncio.ensure_future(self._settle(held)))

    async def _settle(self, held: bytes) -> None:
        """Make durable what was taken, unless the disk has failed already."""
        if self.failure is not None:
            return
        if held:
            await self._write(held)
        if self._writer is not None:
            with self._failing():
                await self._writer.flush()

    async def _write(self, chunk: bytes) -> None:
        with self._failing():
            writer = await self.ensure_writer()
            assert self._head is not None
            self._head.see(chunk)
            await writer.write(chunk)

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """Let an error of the disk, or of the first bytes, be the end of the whole upload."""
        from shorthorn.images import upload_end

        try:
            with upload_end.translated(self.name, self._uploads.pool_name, self._staging):
                yield
        except errors.DomainError as exc:
            self.failure = self.failure or exc
            raise

    # --- the staged file

    async def ensure_writer(self) -> StagedWriter:
        """Return what writes the file: kept between connections, so nothing is hashed twice."""
        if self._writer is None:
            from shorthorn.images import upload_end

            offset = self._journal.durable_bytes
            writer = StagedWriter(self.artifact, offset, self._on_durable)
            await writer.__aenter__()
            self._writer = writer
            self._head = upload_end.EarlyHead(None, skip=offset > 0)
        return self._writer

    async def close_writer(self) -> None:
        """Close the file. Only while nobody sends."""
        writer, self._writer = self._writer, None
        if writer is not None:
            await writer.__aexit__(None, None, None)

    async def close(self) -> None:
        """End the connection, when what it sent is durable, and close the file."""
        self._end_connection(errors.NotFound("upload", self.name, "it has ended"))
        async with self.turn:
            await self.close_writer()

    async def _on_durable(self, durable_bytes: int) -> None:
        journal = _Journal(self._journal.length_bytes, self._uploads.now(), durable_bytes)
        await _write_journal(self._staging, journal)
        self._journal = journal


def _length(parameters: Mapping[str, str]) -> int:
    text = parameters.get(LENGTH_PARAMETER, "")
    if not (text.isascii() and text.isdecimal() and 0 < len(text) < 20 and int(text) > 0):
        raise errors.InvalidArgument("length", f"{text!r} is not a number of bytes above 0")
    return int(text)


async def _write_journal(staging: Path, journal: _Journal) -> None:
    await files.write_json_atomic(staging / JOURNAL_NAME, msgspec.to_builtins(journal))


def _read_journal(staging: Path, length_bytes: int) -> _Journal | None:
    """Return the journal if it is of an upload of this length and its bytes are there."""
    try:
        journal = msgspec.json.decode((staging / JOURNAL_NAME).read_bytes(), type=_Journal)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None
    if (journal.length_bytes, journal.format_version) != (length_bytes, _FORMAT_VERSION):
        return None
    artifact = staging / _ARTIFACT_NAME
    there = artifact.stat().st_size if artifact.exists() else 0
    return journal if there >= journal.durable_bytes else None
