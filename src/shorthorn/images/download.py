"""A file from a web server, in one pass: hashed and written sparse while it arrives, resumed after
any interruption.

Owns the conversation with a bad network: what is tried again, from where, and when it is given up.
Must never answer with bytes of two versions of a file, and never trust a length or a name. Called
by `images.fetcher`.

An interruption of the line goes on at the very next byte; one of our process, at the last
checkpoint. Both need a server with ranges and a validator (strong ETag or Last-Modified); without,
or when the file has changed, it starts over.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shorthorn.images import http_source
from shorthorn.images.download_journal import DownloadJournal, read_journal, write_journal
from shorthorn.images.http_source import AlreadyComplete, FileChanged, Part, SourceTroubled
from shorthorn.images.inspection import EarlyHead, promised_format
from shorthorn.images.rate import Rate, finish_reporting
from shorthorn.images.staged_writer import StagedWriter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import aiohttp
    from yarl import URL

    from shorthorn.domain.ports import ReportProgress

ARTIFACT_NAME = "artifact"


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When a download is given up; times double from `delay_s` to `delay_s_max`, with jitter.

    `attempts` without one new byte in between, or `restarts` from the first byte (a server without
    ranges that always breaks off): then it is the caller's turn to wait longer.
    """

    attempts: int = 5
    restarts: int = 3
    delay_s: float = 1.0
    delay_s_max: float = 30.0


@dataclass(frozen=True, slots=True)
class DownloadRequest:
    """What to get. The file becomes `artifact` in `staging`, its journal lies beside it."""

    url: str
    staging: Path
    retry: RetryPolicy = field(default_factory=RetryPolicy)


@dataclass(frozen=True, slots=True)
class Downloaded:
    """A complete, durable file with its SHA-512 (lower-case hex)."""

    path: Path
    size_bytes: int
    checksum: str


async def download(request: DownloadRequest, report: ReportProgress) -> Downloaded:
    """Get the whole file, or go on with what an earlier call or process left.

    Raises: SourceRefused: final. SourceTroubled: the retry policy is used up; may be called again.
        NotAcceptable: the first bytes are no image. OSError: ENOSPC and others of the disk.
    State:  what is durable stays for the next call, also after a cancellation or kill.
    """
    url = http_source.parse_url(request.url)
    path = request.staging / ARTIFACT_NAME
    journal = read_journal(request.staging, request.url)
    size_bytes = path.stat().st_size if path.exists() else 0
    if journal is None or size_bytes < journal.durable_bytes:
        journal = DownloadJournal(request.url)
    if journal.checksum and size_bytes == journal.durable_bytes:
        return Downloaded(path, size_bytes, journal.checksum)
    transfer = _Transfer(request, url, journal, report)
    return await transfer.run()


class _Transfer:
    """One call of `download`: a file, its journal, and as many requests as it takes."""

    def __init__(
        self, request: DownloadRequest, url: URL, journal: DownloadJournal, report: ReportProgress
    ) -> None:
        self._request = request
        self._url = url
        self._promised = promised_format(url.path)
        self._report = report
        self._path = request.staging / ARTIFACT_NAME
        self._journal = journal
        self._restarts = 0
        self._rate = Rate(report, "downloading")

    async def run(self) -> Downloaded:
        async with http_source.open_session() as session:
            while True:
                try:
                    return await self._run_from(session, self._resumable_bytes())
                except FileChanged as again:
                    self._count_restart(again)

    def _resumable_bytes(self) -> int:
        return self._journal.durable_bytes if self._journal.validator else 0

    def _count_restart(self, again: FileChanged) -> None:
        self._restarts += 1
        self._journal = DownloadJournal(self._request.url)
        if self._restarts > self._request.retry.restarts:
            raise SourceTroubled(f"{again.problem}; started over {self._restarts - 1} times")

    async def _run_from(self, session: aiohttp.ClientSession, offset_bytes: int) -> Downloaded:
        """Write one version of the file. Raises: FileChanged: there is another version now."""
        if offset_bytes == 0:
            await write_journal(self._request.staging, DownloadJournal(self._request.url))
        async with StagedWriter(self._path, offset_bytes, self._on_durable) as writer:
            head = EarlyHead(self._promised, skip=offset_bytes > 0)
            try:
                await self._fill(session, writer, head)
            except SourceTroubled:
                await writer.suspend()
                raise
            head.judge()
            checksum = await finish_reporting(writer, self._rate)
        self._journal = _changed(self._journal, durable_bytes=writer.position, checksum=checksum)
        await write_journal(self._request.staging, self._journal)
        return Downloaded(self._path, writer.position, checksum)

    async def _on_durable(self, durable_bytes: int) -> None:
        self._journal = _changed(self._journal, durable_bytes=durable_bytes)
        await write_journal(self._request.staging, self._journal)

    async def _fill(
        self, session: aiohttp.ClientSession, writer: StagedWriter, head: EarlyHead
    ) -> None:
        """Request after request until the file is complete."""
        failures = 0
        policy = self._request.retry
        while True:
            before = writer.position
            try:
                async with self._next_part(session, writer) as part:
                    await self._take(part, writer, head)
            except AlreadyComplete:
                total = self._journal.total_bytes
                if total not in (0, writer.position):
                    raise FileChanged("the file on the server is shorter now") from None
                return
            except SourceTroubled as exc:
                failures = 1 if writer.position > before else failures + 1
                if failures >= policy.attempts:
                    raise
                delay_s = max(exc.retry_after_s, policy.delay_s * 2 ** (failures - 1))
                delay_s = min(delay_s, policy.delay_s_max) * random.uniform(0.75, 1.25)
                self._rate.say(
                    writer.position, self._journal.total_bytes, f"waiting: {exc.problem}"
                )
                await asyncio.sleep(delay_s)
            else:
                return

    @contextlib.asynccontextmanager
    async def _next_part(
        self, session: aiohttp.ClientSession, writer: StagedWriter
    ) -> AsyncIterator[Part]:
        """Ask for what is missing; note which version of the file answers."""
        position = writer.position
        if position and not self._journal.validator:
            raise FileChanged("the server names no version of its file, so it cannot be resumed")
        async with http_source.request_rest(
            session, self._url, offset_bytes=position, validator=self._journal.validator
        ) as part:
            known = self._journal.total_bytes
            if part.offset_bytes != position:
                raise FileChanged("the file on the server has changed, or cannot be had in parts")
            if position and part.total_bytes and known and part.total_bytes != known:
                raise FileChanged("the file on the server has another size now")
            if position and part.etag and part.etag != (self._journal.etag or part.etag):
                raise FileChanged("the file on the server has another ETag now")
            if position == 0:
                self._journal = DownloadJournal(
                    self._request.url, part.etag, part.last_modified, part.total_bytes
                )
            yield part

    async def _take(self, part: Part, writer: StagedWriter, head: EarlyHead) -> None:
        total = self._journal.total_bytes
        async for chunk in part.chunks():
            head.see(chunk)
            if total and writer.position + len(chunk) > total:
                raise FileChanged(f"the server sends more than the {total} bytes that it promised")
            await writer.write(chunk)
            self._rate.say(writer.position, total)
        if total and writer.position < total:
            raise SourceTroubled(
                f"the server ended after {writer.position} of {total} promised bytes"
            )


def _changed(
    journal: DownloadJournal, *, durable_bytes: int, checksum: str = ""
) -> DownloadJournal:
    return DownloadJournal(
        url=journal.url,
        etag=journal.etag,
        last_modified=journal.last_modified,
        total_bytes=journal.total_bytes,
        durable_bytes=durable_bytes,
        checksum=checksum,
    )
