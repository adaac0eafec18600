"""What is on the disks that are measured: much data in one piece, or little in many.

Owns writing it into existing files, and warming the page cache before somebody is timed who reads.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
BLOCK_BYTES = 4 * KIB
_STAMP_BYTES = 8


@dataclass(frozen=True, slots=True)
class Disk:
    """A volume of `size_bytes`, with data in `extents` pieces of `extent_bytes`."""

    name: str
    size_bytes: int
    extents: int
    extent_bytes: int

    @property
    def data_bytes(self) -> int:
        return self.extents * self.extent_bytes

    def write(self, path: Path) -> None:
        """Fill the existing file `path`, durably. No two pieces are equal; none is zero."""
        with path.open("r+b", buffering=0) as file:
            if self.extents == 1:
                _write_contiguous(file.fileno(), self.extent_bytes)
            else:
                _write_scattered(file.fileno(), self)
            os.fsync(file.fileno())


def contiguous(name: str, data_bytes: int, size_bytes: int) -> Disk:
    """Return a disk with all its data at the start."""
    return Disk(name, size_bytes, 1, data_bytes)


def scattered(name: str, blocks: int, size_bytes: int) -> Disk:
    """Return a disk with single blocks of 4 KiB at random places, no two of them neighbours."""
    return Disk(name, size_bytes, blocks, BLOCK_BYTES)


def _write_contiguous(descriptor: int, data_bytes: int) -> None:
    noise = random.Random(1).randbytes(MIB)[_STAMP_BYTES:]
    for number in range(data_bytes // MIB):
        stamp = number.to_bytes(_STAMP_BYTES, "big")
        os.pwrite(descriptor, stamp + noise, number * MIB)


def _write_scattered(descriptor: int, disk: Disk) -> None:
    rng = random.Random(2)
    # Every other block only: neighbours would be one extent.
    for place in rng.sample(range(disk.size_bytes // BLOCK_BYTES // 2), disk.extents):
        os.pwrite(descriptor, rng.randbytes(BLOCK_BYTES), 2 * place * BLOCK_BYTES)


def chill(path: Path) -> None:
    """Take a file out of the page cache; it has to be clean."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def warm(path: Path) -> None:
    """Read all data of a file, so that it is in the page cache if it fits there."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        end, size_bytes = 0, os.fstat(descriptor).st_size
        while end < size_bytes:
            try:
                start = os.lseek(descriptor, end, os.SEEK_DATA)
            except OSError:  # ENXIO: only a hole up to the end
                return
            end = os.lseek(descriptor, start, os.SEEK_HOLE)
            for offset in range(start, end, 8 * MIB):
                os.pread(descriptor, min(8 * MIB, end - offset), offset)
    finally:
        os.close(descriptor)
