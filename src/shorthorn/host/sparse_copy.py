"""Copies of bytes, for where blocks cannot be shared.

Owns the copy that keeps holes as holes and refuses a source that somebody may be writing, since a
copy takes long and would mix several moments. Must never be chosen silently: the engine says `copy`
where it uses this. Called by the engines.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
from typing import TYPE_CHECKING

from shorthorn.host.errors import HostError
from shorthorn.kit.threads import in_stoppable_thread

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator
    from pathlib import Path

#: Between two looks at the stop flag and the lease; some 10 ms on a common disk.
_CHUNK_BYTES = 8 << 20
#: copy_file_range cannot serve this pair of files, though plain reads and writes can.
_NO_COPY_RANGE = frozenset({errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS})


class FileInUse(HostError):
    """A file is open for writing, or was opened while it was copied."""

    def __init__(self, path: Path, detail: str) -> None:
        self.path = path
        super().__init__(f"{path} {detail}; a copy would mix several moments")


async def copy_sparse(
    source: Path,
    target: Path,
    *,
    size_bytes: int | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> None:
    """Copy a file that nobody writes to the new file `target`, holes staying holes.

    Holds a read lease meanwhile: who opens `source` for writing waits until the copy has noticed
    (a chunk's time) and given up.

    Args: size_bytes: extend the copy to this; at least the size of `source`.
        on_progress: called with the bytes of data copied so far, on another thread.
    Raises: FileInUse: `source` is or was opened for writing. FileExistsError: `target` is there.
        OSError: ENOSPC and others.
    State: on an error or cancellation no new `target` is left. Nothing is synced.
    """
    report = on_progress or (lambda copied: None)
    await in_stoppable_thread(lambda stop: _copy_file(source, target, size_bytes, report, stop))


def _copy_file(
    source: Path,
    target: Path,
    size_bytes: int | None,
    report: Callable[[int], None],
    stop: threading.Event,
) -> None:
    with contextlib.ExitStack() as stack:
        reading = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, reading)
        stack.enter_context(_read_lease(reading, source))
        source_bytes = os.fstat(reading).st_size
        if size_bytes is not None and size_bytes < source_bytes:
            raise ValueError(f"{source} has {source_bytes} bytes, more than {size_bytes}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        writing = os.open(target, flags, 0o600)
        stack.callback(os.close, writing)
        try:
            _copy_data(source, reading, writing, report, stop)
            os.ftruncate(writing, max(source_bytes, size_bytes or 0))
        except BaseException:
            target.unlink()
            raise


def _copy_data(
    source: Path, reading: int, writing: int, report: Callable[[int], None], stop: threading.Event
) -> None:
    copied = 0
    for start, end in data_ranges(reading):
        offset = start
        while offset < end:
            if stop.is_set():
                raise InterruptedError(errno.EINTR, "the copy was stopped", str(source))
            if fcntl.fcntl(reading, fcntl.F_GETLEASE) != fcntl.F_RDLCK:
                raise FileInUse(source, "was opened for writing while it was copied")
            done = _copy_chunk(reading, writing, offset, min(_CHUNK_BYTES, end - offset))
            if done == 0:
                return
            offset += done
            copied += done
            report(copied)


def _copy_chunk(reading: int, writing: int, offset: int, length: int) -> int:
    """Copy up to `length` bytes at `offset` to the same place; returns how many (0: the end)."""
    try:
        return os.copy_file_range(reading, writing, length, offset, offset)
    except OSError as exc:
        if exc.errno not in _NO_COPY_RANGE:
            raise
    data = os.pread(reading, length, offset)
    written = 0
    while written < len(data):
        written += os.pwrite(writing, data[written:], offset + written)
    return len(data)


def data_ranges(descriptor: int) -> Iterator[tuple[int, int]]:
    """Yield [start, end) of what is not a hole, in order."""
    end = 0
    while True:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError as exc:
            if exc.errno == errno.ENXIO:  # only a hole up to the end
                return
            raise
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, end


def next_data_range(descriptor: int, offset: int, end: int) -> tuple[int, int]:
    """Return [start, end) of the next data at or after `offset`, cut at `end`; none: `end` twice.

    Moves the descriptor's position and nothing else.
    """
    try:
        start = os.lseek(descriptor, offset, os.SEEK_DATA)
    except OSError as exc:
        if exc.errno == errno.ENXIO:
            return end, end
        raise
    if start >= end:
        return end, end
    return start, min(os.lseek(descriptor, start, os.SEEK_HOLE), end)


@contextlib.contextmanager
def _read_lease(descriptor: int, path: Path) -> Iterator[None]:
    """Hold a lease that the kernel grants only while nobody has the file open for writing."""
    # The default notice, SIGIO, would end our process; SIGURG is ignored unless somebody asks.
    fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as exc:
        if exc.errno == errno.EAGAIN:
            raise FileInUse(path, "is open for writing") from exc
        raise
    try:
        yield
    finally:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
