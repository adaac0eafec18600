"""A process that never stops writing, and what its files say about a point in time.

Owns: `python -m shorthorn.demo.writer DIR`, which numbers its writes and makes them in one order
over three files, without ever calling fsync; and reading such a directory back. A copy taken at one
point in time holds a prefix of those writes: all of the earlier ones, none of the later ones. Must
never: know how the copy was taken.

The order of write n: its line in `before.log`, its page in `pages.bin` (overwriting an older one in
place), its line in `after.log`.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

PAGE_BYTES = 4096
PAGE_COUNT = 256
_BEFORE, _PAGES, _AFTER = "before.log", "pages.bin", "after.log"
_LINE_BYTES = 12
#: Some thousand writes in a run, and a processor that is left to those who do the work.
_PAUSE_S = 0.0005


class TornCopy(Exception):
    """The files are no prefix of what was written; the message says where."""


@dataclass(frozen=True, slots=True)
class Position:
    """How many writes had begun, and how many had ended."""

    begun: int
    ended: int


def write_forever(directory: Path) -> None:
    """Write until killed."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
    before = os.open(directory / _BEFORE, flags | os.O_APPEND, 0o644)
    pages = os.open(directory / _PAGES, flags, 0o644)
    after = os.open(directory / _AFTER, flags | os.O_APPEND, 0o644)
    number = 0
    while True:
        line = _line(number)
        os.write(before, line)
        os.pwrite(pages, _page(number), number % PAGE_COUNT * PAGE_BYTES)
        os.write(after, line)
        number += 1
        time.sleep(_PAUSE_S)


def read_position(directory: Path) -> Position:
    """Return where the writer is, or where it was when a copy was taken; nothing is checked."""
    return Position(
        begun=_size(directory / _BEFORE) // _LINE_BYTES,
        ended=_size(directory / _AFTER) // _LINE_BYTES,
    )


def check_copy(directory: Path, *, earliest: Position, latest: Position) -> Position:
    """Check that a copy is one point in time between two positions. Returns its own position.

    Raises: TornCopy: a write is missing, torn, out of order, or from the wrong time.
    """
    begun = _count_lines(directory / _BEFORE)
    ended = _count_lines(directory / _AFTER)
    if not ended <= begun <= ended + 1:
        raise TornCopy(f"{begun} writes have begun and {ended} have ended: not one point in time")
    if ended < earliest.ended:
        raise TornCopy(f"write {earliest.ended - 1} was made before, and is missing")
    if begun > latest.begun:
        raise TornCopy(f"write {begun - 1} was made afterwards, and is there")
    _check_pages(directory / _PAGES, begun, ended)
    return Position(begun, ended)


def _check_pages(path: Path, begun: int, ended: int) -> None:
    raw = path.read_bytes() if path.exists() else b""
    for slot in range(PAGE_COUNT):
        found = raw[slot * PAGE_BYTES : (slot + 1) * PAGE_BYTES]
        # The write that has begun and not ended may or may not have reached its page.
        wanted = {_newest(slot, begun), _newest(slot, ended)}
        if found not in {b"" if number is None else _page(number) for number in wanted}:
            told = " or ".join(str(number) for number in wanted)
            raise TornCopy(f"page {slot} of {_PAGES} is not that of write {told}")


def _newest(slot: int, count: int) -> int | None:
    """Return the last of writes 0 … count-1 that went to a slot."""
    newest = count - 1 - (count - 1 - slot) % PAGE_COUNT
    return newest if count and newest >= 0 else None


def _count_lines(path: Path) -> int:
    raw = path.read_bytes() if path.exists() else b""
    count, rest = divmod(len(raw), _LINE_BYTES)
    if rest or raw != b"".join(_line(number) for number in range(count)):
        raise TornCopy(f"{path.name} is not the lines that were written")
    return count


def _line(number: int) -> bytes:
    return f"{number:011d}\n".encode()


def _page(number: int) -> bytes:
    """Return content that no other write has anywhere."""
    return hashlib.shake_128(str(number).encode()).digest(PAGE_BYTES)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


if __name__ == "__main__":
    write_forever(Path(sys.argv[1]))
