"""SHA-512 of a finished file, in the background; and whether `base.raw` goes with it.

Owns the reading of large files for nothing but their hash: at low priority, without pushing what
volumes use out of the page cache. Must never hash anything but the file's exact bytes; holes count
as the zeros they read as, but are not read. It implements domain.ports.Checksummer. Called by the
image copy controller for exports and verifications; a download is hashed while it arrives.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import threading
import time
from typing import TYPE_CHECKING

from shorthorn.domain.models import Progress
from shorthorn.host.sparse_copy import next_data_range
from shorthorn.images.base_check import base_problem
from shorthorn.kit.threads import in_stoppable_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from shorthorn.domain.models import ImageRecord
    from shorthorn.domain.ports import ReportProgress

#: 10 ms of hashing: often enough to notice a stop, rarely enough to cost nothing.
_CHUNK_BYTES = 4 << 20
_ZEROS = bytes(_CHUNK_BYTES)
_NICENESS = 15
_REPORT_INTERVAL_S = 0.5


class Sha512Checksummer:
    """Computes checksums one after the other: a second one at a time would only take a core
    away.
    """

    def __init__(self) -> None:
        self._turn = asyncio.Semaphore(1)

    async def sha512(self, path: Path, report: ReportProgress, *, from_disk: bool = False) -> str:
        """See ports.Checksummer. Raises: OSError: the file cannot be read."""
        loop = asyncio.get_running_loop()

        def on_bytes(done: int, total: int) -> None:
            loop.call_soon_threadsafe(report, Progress(done, total, "computing the checksum"))

        async with self._turn:
            return await in_stoppable_thread(
                lambda stop: sha512_now(path, on_bytes, stop, from_disk=from_disk)
            )

    async def base_problem(self, record: ImageRecord, report: ReportProgress) -> str:
        """See ports.Checksummer."""
        async with self._turn:
            return await base_problem(record, report)


def sha512_now(
    path: Path,
    on_bytes: Callable[[int, int], None],
    stop: threading.Event | None = None,
    *,
    from_disk: bool = False,
) -> str:
    """Return lower-case hex of the file's bytes; reports (done, total) from the calling thread."""
    digest = hashlib.sha512()
    with path.open("rb", buffering=0) as file, _low_priority():
        descriptor = file.fileno()
        total = os.fstat(descriptor).st_size
        if from_disk:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        due = time.monotonic() + _REPORT_INTERVAL_S
        for done, chunk in _chunks(descriptor, total):
            if stop is not None and stop.is_set():
                raise InterruptedError(errno.EINTR, "the checksum was stopped", str(path))
            digest.update(chunk)
            if time.monotonic() >= due:
                on_bytes(done, total)
                due = time.monotonic() + _REPORT_INTERVAL_S
    on_bytes(total, total)
    return digest.hexdigest()


def _chunks(descriptor: int, total: int) -> Iterator[tuple[int, bytes | memoryview]]:
    """Yield (end, bytes) of the whole file; pieces of holes are the same zeros every time."""
    zeros = memoryview(_ZEROS)
    offset = 0
    while offset < total:
        data, hole = next_data_range(descriptor, offset, total)
        while offset < data:
            length = min(_CHUNK_BYTES, data - offset)
            offset += length
            yield offset, zeros[:length]
        while offset < hole:
            chunk = os.pread(descriptor, min(_CHUNK_BYTES, hole - offset), offset)
            if not chunk:
                raise OSError(errno.EIO, "the file became shorter while it was read")
            os.posix_fadvise(descriptor, offset, len(chunk), os.POSIX_FADV_DONTNEED)
            offset += len(chunk)
            yield offset, chunk


@contextlib.contextmanager
def _low_priority() -> Iterator[None]:
    """Let everybody else go first, on this thread; only where it can be taken back afterwards."""
    if os.geteuid() != 0:
        yield
        return
    thread = threading.get_native_id()
    before = os.getpriority(os.PRIO_PROCESS, thread)
    os.setpriority(os.PRIO_PROCESS, thread, max(before, _NICENESS))
    try:
        yield
    finally:
        os.setpriority(os.PRIO_PROCESS, thread, before)
