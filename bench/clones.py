"""What a clone costs by the number of its extents.

Owns files of one block of data and one of hole in turn, and FICLONE on them.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from bench.disks import BLOCK_BYTES
from bench.figures import Section, median
from bench.workspace import settle
from shorthorn.host.extents import usage_now
from shorthorn.host.reflink import clone_file_now

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def by_extents(pool: Path, counts: Sequence[int], *, rounds: int) -> Section:
    """Measure clones of files with each of `counts` extents."""
    section = Section("FICLONE by extents")
    for count in counts:
        source, target = pool / "bench" / "fragmented", pool / "bench" / "clone"
        _write_fragmented(source, count)
        settle(pool)
        what = f"{usage_now(source).extent_count:,} extents"
        for _ in range(rounds):
            begun = time.perf_counter()
            clone_file_now(source, target)
            section.took(what, time.perf_counter() - begun)
            target.unlink()
            settle(pool)
        each_us = median(section.seconds[what]) / count * 1e6
        section.figures[what] = f"{each_us:.1f} µs for each extent"
        source.unlink()
    return section


def _write_fragmented(path: Path, count: int) -> None:
    block = os.urandom(BLOCK_BYTES)
    with path.open("wb", buffering=0) as file:
        # At once: XFS would allocate ahead of a growing file, into the holes.
        file.truncate(count * 2 * BLOCK_BYTES)
        for number in range(count):
            os.pwrite(file.fileno(), block, number * 2 * BLOCK_BYTES)
        os.fsync(file.fileno())
