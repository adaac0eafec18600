"""A file of the pool as an iterator of bytes, read in threads.

Owns the descriptor, which keeps a deleted file readable to its end. Must never read past the range
that was asked for. Called by `images.local_bytes` and `images.conversions`.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from shorthorn.domain.errors import SizeOutOfRange
from shorthorn.host.sparse_copy import next_data_range
from shorthorn.kit.threads import in_thread

if TYPE_CHECKING:
    from pathlib import Path

CHUNK_BYTES = 1 << 20
_ZEROS = bytes(CHUNK_BYTES)


class FileChunks:
    """Bytes [start, stop) of a file, in chunks of CHUNK_BYTES; iterate once, then `close`."""

    def __init__(self, descriptor: int, offset: int, stop: int, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._descriptor = descriptor
        self._offset = offset
        self._stop = stop

    @classmethod
    async def open(cls, path: Path, start: int, stop: int | None) -> FileChunks:
        """Raises: FileNotFoundError. SizeOutOfRange: the range is not within the file."""
        return await in_thread(cls._open, path, start, stop)

    @classmethod
    def _open(cls, path: Path, start: int, stop: int | None) -> FileChunks:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size_bytes = os.fstat(descriptor).st_size
            end = size_bytes if stop is None else stop
            _check(start, end, size_bytes)
            os.posix_fadvise(descriptor, start, end - start, os.POSIX_FADV_SEQUENTIAL)
        except BaseException:
            os.close(descriptor)
            raise
        return cls(descriptor, start, end, size_bytes)

    def __aiter__(self) -> FileChunks:
        return self

    async def __anext__(self) -> bytes:
        """Raises: OSError: the disk fails, or the file became shorter."""
        if self._offset >= self._stop:
            raise StopAsyncIteration
        return await in_thread(self.read_now)

    def read_now(self) -> bytes:
        """Read the next chunk on the calling thread; empty at the end."""
        length = min(CHUNK_BYTES, self._stop - self._offset)
        if length <= 0:
            return b""
        end = self._offset + length
        if next_data_range(self._descriptor, self._offset, end)[0] >= end:
            # Not read: the page cache would fill with zeros.
            chunk = _ZEROS if length == CHUNK_BYTES else bytes(length)
        else:
            chunk = os.pread(self._descriptor, length, self._offset)
            if not chunk:
                raise OSError(errno.EIO, "the file became shorter while it was read")
        self._offset += len(chunk)
        return chunk

    async def close(self) -> None:
        """Close the file; again is fine. No chunk may be on its way."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def _check(start: int, end: int, size_bytes: int) -> None:
    if not 0 <= start <= end <= size_bytes:
        asked = end if 0 <= start <= size_bytes else start
        raise SizeOutOfRange(
            f"bytes {start} to {end}", asked, minimum_bytes=0, maximum_bytes=size_bytes
        )
