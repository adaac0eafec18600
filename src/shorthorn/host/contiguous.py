"""A file's data written anew, in as few pieces as it has holes.

Owns the copy that shares nothing on purpose. Must never be used where a clone would do: it moves
every byte. Called by the engines, for files that became so fragmented that cloning them is slow.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from shorthorn.host.sparse_copy import data_ranges
from shorthorn.kit.threads import in_stoppable_thread, in_thread

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable
    from pathlib import Path

#: Between two looks at the stop flag; some 10 ms on a common disk.
_CHUNK_BYTES = 8 << 20


async def count_data_ranges(path: Path) -> int:
    """Return the number of runs of data between holes: the fewest extents it can have, about."""
    return await in_thread(_count, path)


async def write_contiguous(
    source: Path, target: Path, *, on_progress: Callable[[int], None] | None = None
) -> None:
    """Copy `source`, which nobody changes, to the new file `target`, durably; holes stay holes.

    Args: on_progress: called with the bytes copied so far, on another thread.
    Raises: FileExistsError: `target` is there. OSError: ENOSPC and others.
    State: on an error or cancellation no new `target` is left.
    """
    report = on_progress or (lambda copied: None)
    await in_stoppable_thread(lambda stop: _write(source, target, report, stop))


def _count(path: Path) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return sum(1 for _ in data_ranges(descriptor))
    finally:
        os.close(descriptor)


def _write(
    source: Path, target: Path, report: Callable[[int], None], stop: threading.Event
) -> None:
    reading = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        writing = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(writing, os.fstat(reading).st_size)
            _copy(reading, writing, report, stop)
            os.fsync(writing)
        except BaseException:
            target.unlink()
            raise
        finally:
            os.close(writing)
    finally:
        os.close(reading)


def _copy(reading: int, writing: int, report: Callable[[int], None], stop: threading.Event) -> None:
    copied = 0
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    for start, end in data_ranges(reading):
        os.posix_fallocate(writing, start, end - start)
        offset = start
        while offset < end:
            if stop.is_set():
                raise InterruptedError(errno.EINTR, "the copy was stopped")
            # Plain reads and writes: copy_file_range(2) would share the scattered blocks.
            count = os.preadv(reading, [buffer[: min(_CHUNK_BYTES, end - offset)]], offset)
            written = 0
            while written < count:
                written += os.pwrite(writing, buffer[written:count], offset + written)
            offset += count
            copied += count
            report(copied)
