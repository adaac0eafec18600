"""A qcow2 file around the blocks of a raw one, with no QEMU at all.

Owns the layout of the files it writes: version 3, 64 KiB clusters, 16-bit refcounts, all tables
first, then every cluster that holds data, packed in order. Must never read the data:
copy_file_range(2) hands it over, and on one file system with reflinks the two files come to share
it (elsewhere the kernel copies). Called by `host.qcow2_conversion`. Format: QEMU
docs/interop/qcow2.

A cluster in which only some blocks hold data takes only those blocks; the rest of it stays a hole,
so scattered blocks cost no more space than in the source.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shorthorn.kit.threads import in_stoppable_thread

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator
    from pathlib import Path

CLUSTER_BYTES = 64 << 10
_CLUSTER_BITS = 16
_ENTRIES = CLUSTER_BYTES // 8
#: 16-bit refcounts per refcount block.
_REFCOUNTS = CLUSTER_BYTES // 2
_COPIED = 1 << 63
#: QEMU opens no image with a longer L1 table (block/qcow2.h): 2 PiB at this cluster size.
_L1_BYTES_MAX = 32 << 20
#: Between two looks at the stop flag; below the 2 GiB that one call takes, and a multiple of any
#: block.
_CHUNK_BYTES = 256 << 20
_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII8x")


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where things are, in clusters from the start of the file."""

    virtual_size_bytes: int
    refcount_table: int
    refcount_blocks: int
    l1: int
    l2: int
    data: int
    end: int

    @property
    def refcount_block_count(self) -> int:
        return self.l1 - self.refcount_blocks


async def write_qcow2(
    source: Path,
    target: Path,
    *,
    virtual_size_bytes: int,
    on_bytes: Callable[[int, int], None] | None = None,
) -> None:
    """Write the raw disk `source` into the existing empty file `target` as qcow2 (version 3).

    Both lie on one file system. Costs by extents, not bytes, where that has reflinks. Nobody may
    change `source` meanwhile. Nothing is synced: the caller does that.

    Args:   virtual_size_bytes: length of `source`; a multiple of 512.
        on_bytes: told (done, total) of the data, from another thread.
    Raises: OSError: ENOSPC and others of the file system. ValueError: the disk is too large for
        qcow2, or not as long as was said.
    State:  after an error or cancellation `target` is to be thrown away.
    """
    report = on_bytes or (lambda done, total: None)
    await in_stoppable_thread(lambda stop: _write(source, target, virtual_size_bytes, report, stop))


def _write(
    source: Path,
    target: Path,
    virtual_size_bytes: int,
    report: Callable[[int, int], None],
    stop: threading.Event,
) -> None:
    reading = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        length = os.fstat(reading).st_size
        if length != virtual_size_bytes:
            raise ValueError(f"{source} has {length} bytes, not {virtual_size_bytes}")
        writing = os.open(target, os.O_WRONLY | os.O_CLOEXEC)
        try:
            ranges = list(_data_ranges(reading))
            runs = list(_cluster_runs(ranges))
            layout = _lay_out(virtual_size_bytes, runs)
            os.ftruncate(writing, layout.end * CLUSTER_BYTES)
            _write_tables(writing, layout, runs)
            _hand_over(reading, writing, layout, ranges, runs, report, stop)
        finally:
            os.close(writing)
    finally:
        os.close(reading)


def _data_ranges(descriptor: int) -> Iterator[tuple[int, int]]:
    """Yield [start, end) of what is not a hole, in order; ends lie on file system blocks."""
    end = 0
    while True:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError as exc:
            if exc.errno == errno.ENXIO:  # nothing but a hole up to the end
                return
            raise
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, end


def _cluster_runs(ranges: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield [first, end) of neighbouring clusters that hold data, in order."""
    first = end = 0
    for start_byte, end_byte in ranges:
        start, stop = start_byte // CLUSTER_BYTES, -(-end_byte // CLUSTER_BYTES)
        if start > end:
            if end > first:
                yield first, end
            first = start
        elif end == 0:
            first = start
        end = max(end, stop)
    if end > first:
        yield first, end


def _lay_out(virtual_size_bytes: int, runs: list[tuple[int, int]]) -> _Layout:
    l1_entries = -(-virtual_size_bytes // (CLUSTER_BYTES * _ENTRIES))
    if l1_entries * 8 > _L1_BYTES_MAX:
        raise ValueError(f"a disk of {virtual_size_bytes} bytes is too large for qcow2")
    l1_clusters = max(1, -(-l1_entries // _ENTRIES))
    l2_tables = len({index for run in runs for index in _tables_of(run)})
    data = sum(end - first for first, end in runs)
    blocks = 1
    while True:  # refcount blocks count themselves; two rounds settle it
        table = -(-blocks // _ENTRIES)
        end = 1 + table + blocks + l1_clusters + l2_tables + data
        needed = -(-end // _REFCOUNTS)
        if needed <= blocks:
            break
        blocks = needed
    first_block = 1 + table
    l1 = first_block + blocks
    l2 = l1 + l1_clusters
    return _Layout(virtual_size_bytes, 1, first_block, l1, l2, l2 + l2_tables, end)


def _tables_of(run: tuple[int, int]) -> range:
    """Return the indices of the L2 tables that a run of clusters touches."""
    first, end = run
    return range(first // _ENTRIES, (end - 1) // _ENTRIES + 1)


def _write_tables(writing: int, layout: _Layout, runs: list[tuple[int, int]]) -> None:
    """Write all metadata; zero parts of tables stay holes of the fresh file."""
    block = CLUSTER_BYTES
    table = [(layout.refcount_blocks + i) * block for i in range(layout.refcount_block_count)]
    _pwrite(writing, _big_endian("Q", table), layout.refcount_table * block)
    for i in range(layout.refcount_block_count):
        used = min(_REFCOUNTS, layout.end - i * _REFCOUNTS)
        counts = _big_endian("H", [1]) * used
        _pwrite(writing, counts, (layout.refcount_blocks + i) * block)
    l1: dict[int, int] = {}
    place = layout.l2
    for index, entries in _l2_tables(layout, runs):
        _pwrite(writing, entries, place * block)
        l1[index] = place * block | _COPIED
        place += 1
    if l1:
        entries_used = max(l1) + 1
        _pwrite(
            writing,
            _big_endian("Q", [l1.get(i, 0) for i in range(entries_used)]),
            layout.l1 * block,
        )
    _pwrite(writing, _header(layout), 0)


def _l2_tables(layout: _Layout, runs: list[tuple[int, int]]) -> Iterator[tuple[int, bytes]]:
    """Yield (index, bytes) of every L2 table that is needed, in order; one at a time in memory."""
    current = -1
    entries = array("Q")
    place = layout.data
    for first, end in runs:
        while first < end:
            index, slot = divmod(first, _ENTRIES)
            if index != current:
                if current >= 0:
                    yield current, _swapped(entries)
                current, entries = index, array("Q", bytes(CLUSTER_BYTES))
            count = min(end - first, _ENTRIES - slot)
            offset = place * CLUSTER_BYTES | _COPIED
            entries[slot : slot + count] = array(
                "Q", range(offset, offset + count * CLUSTER_BYTES, CLUSTER_BYTES)
            )
            place += count
            first += count
    if current >= 0:
        yield current, _swapped(entries)


def _header(layout: _Layout) -> bytes:
    l1_entries = -(-layout.virtual_size_bytes // (CLUSTER_BYTES * _ENTRIES))
    return _HEADER.pack(
        *(b"QFI\xfb", 3, 0, 0, _CLUSTER_BITS, layout.virtual_size_bytes, 0),
        *(l1_entries, layout.l1 * CLUSTER_BYTES),
        *(layout.refcount_table * CLUSTER_BYTES, layout.refcount_blocks - layout.refcount_table),
        *(0, 0),  # no internal snapshots
        *(0, 0, 0, 4, 104),  # no features; 2^4-bit refcounts; header length
    )


def _hand_over(
    reading: int,
    writing: int,
    layout: _Layout,
    ranges: list[tuple[int, int]],
    runs: list[tuple[int, int]],
    report: Callable[[int, int], None],
    stop: threading.Event,
) -> None:
    """Give every range of data its place in the packed clusters."""
    total = sum(end - start for start, end in ranges)
    done = 0
    places = iter(runs)
    first, run_end = next(places, (0, 0))
    place = layout.data
    for start, end in ranges:
        while start >= run_end * CLUSTER_BYTES:
            place += run_end - first
            first, run_end = next(places)
        shift = (place - first) * CLUSTER_BYTES
        offset = start
        while offset < end:
            if stop.is_set():
                raise InterruptedError(errno.EINTR, "the conversion was stopped")
            length = min(_CHUNK_BYTES, end - offset)
            moved = os.copy_file_range(reading, writing, length, offset, offset + shift)
            if moved == 0:
                raise OSError(errno.EIO, "the source became shorter while it was converted")
            offset += moved
            done += moved
        report(done, total)


def _pwrite(descriptor: int, data: bytes, offset: int) -> None:
    written = 0
    while written < len(data):
        written += os.pwrite(descriptor, data[written:], offset + written)


def _big_endian(code: str, values: list[int]) -> bytes:
    return _swapped(array(code, values))


def _swapped(values: array[int]) -> bytes:
    if sys.byteorder == "little":
        values.byteswap()
    return values.tobytes()
