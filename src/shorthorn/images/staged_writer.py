"""Bytes that arrive in order become a sparse, hashed file that survives the end of its writer.

Owns the half-made artifact while it grows: three lanes that run beside the network. One writes
(zero runs stay holes), one computes the SHA-512 of what is written, one makes it durable and then
says how far it is. Must never say that a byte is durable before it is, and never hold more than a
few blocks in memory. Called by `images.download`, `images.peer_transfer` and `images.uploads`.

The hash lane reads what was written from the page cache. After a restart it begins at the first
byte, which is on disk, while the network goes on behind it; so neither ever waits for the other,
and no state of a hash needs to be kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shorthorn.host.sparse_copy import next_data_range
from shorthorn.kit.threads import in_thread, in_thread_that_gives_way

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

#: One write, and one look for zeros. Large enough to stay contiguous and to make a thread's switch
#: (some 50 µs) cheap; the queue of them bounds our memory.
BLOCK_BYTES = 2 << 20
_QUEUED_BLOCKS = 4
#: A block of scattered pieces is handed on at this many of them, or this far into the file.
_RUNS_MAX = 512
_SPAN_BYTES_MAX = 64 << 20
_PAGE_BYTES = 4096
#: One pwrite. The page cache takes as large a folio as one call fills; copying into those of 2 MiB
#: took half of an upload's processor time in a virtual machine. See docs/performance.md for what
#: this one was compared with.
_WRITE_BYTES = 64 << 10
#: Shorter runs of zeros are written: a hole costs two extents, 40 µs in every clone ever made.
HOLE_MIN_BYTES = 64 << 10
#: The file grows by so much at once: growing it block by block, XFS may write out and wait at each
#: step. A step is a hole, so it takes no room.
_GROWTH_BYTES = 64 << 20
#: What a kill can cost at most, in bytes and in seconds of a slow line.
CHECKPOINT_BYTES = 64 << 20
CHECKPOINT_INTERVAL_S = 5.0

_ZERO_PAGE = bytes(_PAGE_BYTES)
_ZERO_BLOCK = bytes(BLOCK_BYTES)


@dataclass(slots=True)
class _Block:
    """What lies between `start` and `end` of the file: runs of bytes in order, holes elsewhere."""

    start: int
    end: int
    runs: list[tuple[int, bytearray]] = field(default_factory=list)
    data_bytes: int = 0

    @property
    def is_full(self) -> bool:
        return (
            self.data_bytes >= BLOCK_BYTES
            or len(self.runs) >= _RUNS_MAX
            or self.end - self.start >= _SPAN_BYTES_MAX
        )

    def append(self, data: memoryview) -> None:
        if self.runs and self.runs[-1][0] + len(self.runs[-1][1]) == self.end:
            self.runs[-1][1].extend(data)
        else:
            self.runs.append((self.end, bytearray(data)))
        self.end += len(data)
        self.data_bytes += len(data)


class StagedWriter:
    """Writes one file from `offset` on. `async with` it; leaving without `finish` abandons the
    rest.

    `position` counts all bytes taken, durable or not. After an error of the disk (ENOSPC, say) the
    next call raises it.
    """

    def __init__(
        self, path: Path, offset_bytes: int, on_durable: Callable[[int], Awaitable[None]]
    ) -> None:
        self.position = offset_bytes
        self._path = path
        self._on_durable = on_durable
        self._block = _Block(offset_bytes, offset_bytes)
        self._queue: asyncio.Queue[_Block | None] = asyncio.Queue(_QUEUED_BLOCKS)
        self._length = offset_bytes
        self._written = offset_bytes
        self._durable = offset_bytes
        self._hashed = 0
        self._sha512 = hashlib.sha512()
        self._flush_to = 0
        self._progressed = asyncio.Event()
        self._settled = asyncio.Event()
        self._ended = False
        self._error: BaseException | None = None
        self._lanes: list[asyncio.Task[None]] = []
        self._descriptor = -1

    @property
    def hashed_bytes(self) -> int:
        """How far the hash is; it may lag behind `position`, after a restart above all."""
        return self._hashed

    async def __aenter__(self) -> StagedWriter:
        """Open or make the file, cut to the offset (what lies beyond was never known durable)."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self._descriptor = os.open(self._path, flags, 0o600)
        try:
            await in_thread(os.ftruncate, self._descriptor, self.position)
        except BaseException:
            os.close(self._descriptor)
            raise
        for lane in (self._write_lane, self._hash_lane, self._durable_lane):
            self._lanes.append(asyncio.create_task(self._guard(lane), name=lane.__name__))
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop the lanes and close; not before their threads are done with the file."""
        for lane in self._lanes:
            lane.cancel()
        cancelled: asyncio.CancelledError | None = None
        while not all(lane.done() for lane in self._lanes):
            try:
                await asyncio.wait(self._lanes)
            except asyncio.CancelledError as exc:
                cancelled = exc
        os.close(self._descriptor)
        if cancelled is not None:
            raise cancelled

    async def write(self, data: bytes | memoryview) -> None:
        """Take the next bytes; waits while the disk is behind. Raises: OSError of earlier bytes."""
        self._raise_error()
        rest = memoryview(data)
        while rest:
            piece = rest[: BLOCK_BYTES - self._block.data_bytes]
            rest = rest[len(piece) :]
            self._block.append(piece)
            self.position += len(piece)
            await self._hand_on_if_full()

    async def write_hole(self, length_bytes: int) -> None:
        """Take so many zeros that are to be a hole, however short. Waits and raises as `write`."""
        self._raise_error()
        self._block.end += length_bytes
        self.position += length_bytes
        await self._hand_on_if_full()

    async def _hand_on_if_full(self) -> None:
        if self._block.is_full:
            block, self._block = self._block, _Block(self.position, self.position)
            await self._queue.put(block)

    async def finish(self) -> str:
        """Make everything durable; return the SHA-512 of the whole file, lower-case hex.

        Raises: OSError. State: the file is complete, synced, and exactly `position` bytes long.
        """
        await self._end_input()
        await asyncio.gather(*self._lanes)
        self._raise_error()
        return self._sha512.hexdigest()

    async def flush(self) -> None:
        """Make durable what was taken so far, and go on; one caller at a time.

        Raises: OSError.
        """
        if self._block.end > self._block.start:
            block, self._block = self._block, _Block(self.position, self.position)
            await self._queue.put(block)
        self._flush_to = self.position
        while self._durable < self._flush_to and self._error is None:
            self._settled.clear()
            self._progressed.set()
            await self._settled.wait()
        self._raise_error()

    async def suspend(self) -> None:
        """Make everything durable that was taken so far, without waiting for the hash.

        Raises: OSError.
        """
        await self._end_input()
        writing, _, syncing = self._lanes
        await asyncio.gather(writing, syncing)
        self._raise_error()

    async def _end_input(self) -> None:
        if self._block.end > self._block.start:
            block, self._block = self._block, _Block(self.position, self.position)
            await self._queue.put(block)
        await self._queue.put(None)

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    async def _guard(self, lane: Callable[[], Awaitable[None]]) -> None:
        """Run a lane; keep its first error for the caller and let the others come to their end."""
        try:
            await lane()
        except Exception as exc:
            self._error = self._error or exc
            self._ended = True
            self._progressed.set()
            self._settled.set()
            if lane == self._write_lane:
                while await self._queue.get() is not None:
                    pass

    async def _write_lane(self) -> None:
        while (block := await self._queue.get()) is not None:
            assert block.start == self._written
            await in_thread(self._write_block, block)
            self._written = block.end
            self._progressed.set()
        await in_thread(os.ftruncate, self._descriptor, self._written)
        self._ended = True
        self._progressed.set()

    def _write_block(self, block: _Block) -> None:
        """Write a block's data; leave its holes.

        The file is made longer first: for writes behind the end, XFS allocates ahead, and what lies
        in a hole then stays allocated. So it is longer than what is written until the lane ends;
        after a kill, the next writer cuts it.
        """
        if block.end > self._length:
            length = -(-block.end // _GROWTH_BYTES) * _GROWTH_BYTES
            os.ftruncate(self._descriptor, length)
            self._length = length
        _write_sparse(self._descriptor, block)

    async def _hash_lane(self) -> None:
        while True:
            while self._hashed < self._written:
                length = min(BLOCK_BYTES, self._written - self._hashed)
                hash_in = in_thread if self._ended else in_thread_that_gives_way
                await hash_in(self._hash_range, self._hashed, length)
                self._hashed += length
            if self._ended:
                return
            await self._wait_for_progress()

    def _hash_range(self, offset: int, length: int) -> None:
        end = offset + length
        if os.fstat(self._descriptor).st_size < end:
            raise self._was_cut()
        while offset < end:
            # Not read: the page cache would fill with zeros.
            data_start, data_end = next_data_range(self._descriptor, offset, end)
            self._sha512.update(memoryview(_ZERO_BLOCK)[: data_start - offset])
            offset = data_start
            while offset < data_end:
                data = os.pread(self._descriptor, data_end - offset, offset)
                if not data:
                    raise self._was_cut()
                self._sha512.update(data)
                offset += len(data)

    def _was_cut(self) -> OSError:
        return OSError(errno.EIO, "the file was cut while it was written", str(self._path))

    async def _durable_lane(self) -> None:
        due = time.monotonic() + CHECKPOINT_INTERVAL_S
        while not self._ended:
            # Looked at before every wait: what was written during a sync has set no event for us.
            if self._is_due(due):
                await self._checkpoint()
                due = time.monotonic() + CHECKPOINT_INTERVAL_S
            else:
                await self._wait_for_progress()
        if self._error is None:
            await self._checkpoint()

    def _is_due(self, due: float) -> bool:
        pending = self._written - self._durable
        if pending >= CHECKPOINT_BYTES or self._durable < self._flush_to <= self._written:
            return True
        return pending > 0 and time.monotonic() >= due

    async def _checkpoint(self) -> None:
        """Sync, then report: what is said to be durable was written before the sync began."""
        written = self._written
        await in_thread(os.fdatasync, self._descriptor)
        await self._on_durable(written)
        self._durable = written
        self._settled.set()

    async def _wait_for_progress(self) -> None:
        """Sleep until something was written or ended; also wakes up when a checkpoint is due."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CHECKPOINT_INTERVAL_S):
                await self._progressed.wait()
        self._progressed.clear()


def _write_sparse(descriptor: int, block: _Block) -> None:
    """Write a block into its place, leaving out holes and long runs of zero pages."""
    for offset, data in block.runs:
        view = memoryview(data)
        for start, end in _runs_of_data(data):
            done = start
            while done < end:
                piece = view[done : min(end, done + _WRITE_BYTES)]
                done += os.pwrite(descriptor, piece, offset + done)


def _runs_of_data(block: bytearray) -> list[tuple[int, int]]:
    """Return [start, end) of what to write: pages with data, and the short gaps between them."""
    runs: list[tuple[int, int]] = []
    if block == (_ZERO_BLOCK if len(block) == BLOCK_BYTES else bytes(len(block))):
        return runs
    for start in range(0, len(block), _PAGE_BYTES):
        page = block[start : start + _PAGE_BYTES]
        if page == (_ZERO_PAGE if len(page) == _PAGE_BYTES else bytes(len(page))):
            continue
        if runs and start - runs[-1][1] < HOLE_MIN_BYTES:
            runs[-1] = (runs[-1][0], start + len(page))
        else:
            runs.append((start, start + len(page)))
    return runs
