"""Where a file's blocks lie, and with whom they are shared.

Owns FS_IOC_FIEMAP. Must never judge: how many extents are too many is the engine's matter. Called
by the engines for usage and budgets, and by tests to prove that nothing was copied.
"""

from __future__ import annotations

import fcntl
import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shorthorn.domain.models import FileUsage
from shorthorn.kit.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

# linux/fs.h: _IOWR('f', 11, struct fiemap); linux/fiemap.h
_FS_IOC_FIEMAP = 0xC020660B
_FIEMAP_FLAG_SYNC = 0x01
_HEADER = struct.Struct("=QQLLLL")
_EXTENT = struct.Struct("=QQQQQLLLL")
_EXTENT_LAST = 0x0001
_EXTENT_UNKNOWN = 0x0002
_EXTENT_DELALLOC = 0x0004
_EXTENT_INLINE = 0x0200
_EXTENT_SHARED = 0x2000
#: No place on the device that could be compared with another file's.
_PLACELESS = _EXTENT_UNKNOWN | _EXTENT_DELALLOC | _EXTENT_INLINE
#: Extents asked for at once: 56 KiB of answers.
_BATCH = 1024


@dataclass(frozen=True, slots=True)
class Extent:
    """One run of blocks, in bytes: `logical` in the file, `physical` on the file system."""

    logical: int
    physical: int
    length: int
    flags: int

    @property
    def is_shared(self) -> bool:
        """Whether another file, or another place of this one, uses the same blocks."""
        return bool(self.flags & _EXTENT_SHARED)

    @property
    def has_place(self) -> bool:
        """Whether `physical` means anything."""
        return not self.flags & _PLACELESS


async def list_extents(path: Path) -> list[Extent]:
    """Return the extents in logical order, after writing dirty pages; holes have none.

    Raises: OSError: EOPNOTSUPP where the file system has no FIEMAP (tmpfs, say).
    """
    return await in_thread(_list_extents, path)


def _list_extents(path: Path) -> list[Extent]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return list(_iterate(descriptor))
    finally:
        os.close(descriptor)


def _iterate(descriptor: int) -> Iterator[Extent]:
    start = 0
    buffer = bytearray(_HEADER.size + _BATCH * _EXTENT.size)
    while True:
        _HEADER.pack_into(buffer, 0, start, (1 << 64) - 1 - start, _FIEMAP_FLAG_SYNC, 0, _BATCH, 0)
        fcntl.ioctl(descriptor, _FS_IOC_FIEMAP, buffer)
        mapped = _HEADER.unpack_from(buffer)[3]
        for index in range(mapped):
            logical, physical, length, _, _, flags, *_ = _EXTENT.unpack_from(
                buffer, _HEADER.size + index * _EXTENT.size
            )
            yield Extent(logical, physical, length, flags)
            start = logical + length
            if flags & _EXTENT_LAST:
                return
        if mapped == 0:
            return


async def usage(path: Path) -> FileUsage:
    """Measure a file: bytes allocated, bytes of them that others use too, number of extents."""
    return await in_thread(usage_now, path)


def usage_now(path: Path) -> FileUsage:
    """`usage` on the calling thread."""
    extents = _list_extents(path)
    return FileUsage(
        allocated_bytes=sum(extent.length for extent in extents),
        shared_bytes=sum(extent.length for extent in extents if extent.is_shared),
        extent_count=len(extents),
    )


async def shared_with(first: Path, second: Path) -> int:
    """Return how many bytes on the device belong to both files (of one file system)."""
    one, other = await list_extents(first), await list_extents(second)
    return overlap_bytes(one, other)


def overlap_bytes(first: Sequence[Extent], second: Sequence[Extent]) -> int:
    """Return the size of the common part of two sets of physical ranges."""
    one, other = _places(first), _places(second)
    total = i = j = 0
    while i < len(one) and j < len(other):
        start, end = max(one[i][0], other[j][0]), min(one[i][1], other[j][1])
        total += max(0, end - start)
        if one[i][1] <= other[j][1]:
            i += 1
        else:
            j += 1
    return total


def _places(extents: Sequence[Extent]) -> list[tuple[int, int]]:
    """Merge physical ranges into sorted ones that do not touch."""
    ranges = sorted((e.physical, e.physical + e.length) for e in extents if e.has_place)
    merged: list[tuple[int, int]] = []
    for start, end in ranges:
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged
