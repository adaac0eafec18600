"""What tells two files apart before one is sent on where the other stopped.

Owns: which bytes before an offset are compared, and how. Pure. A sample is the SHA-256 (lower-case
hex) of 65 pieces one after another: 64 of up to 64 KiB, the i-th from i * (offset // 64) on, and
one of up to 1 MiB before the offset; at most 5 MiB are read, however much has arrived. It finds out
another disk, not one changed byte: a whole checksum does that, at the end. Called by
`images.local_bytes` for what has arrived, and by who sends, for the file; in a browser,
`web/static/upload_file.js` does the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Final

PIECES: Final = 64
PIECE_BYTES: Final = 64 << 10
LAST_BYTES: Final = 1 << 20


def sample_of(read: Callable[[int, int], bytes], offset_bytes: int) -> str:
    """Return the sample of the bytes before `offset_bytes`; empty where there are none.

    Args: read: returns `count` bytes from `start` on: read(count, start), as os.pread does.
    Raises: what `read` raises. A file that is shorter has the sample of no other.
    """
    if not offset_bytes:
        return ""
    digest = hashlib.sha256()
    for start, stop in _pieces(offset_bytes):
        while start < stop:
            block = read(stop - start, start)
            if not block:
                return ""
            digest.update(block)
            start += len(block)
    return digest.hexdigest()


def _pieces(offset_bytes: int) -> Iterator[tuple[int, int]]:
    step = offset_bytes // PIECES
    for i in range(PIECES):
        yield i * step, min(i * step + PIECE_BYTES, offset_bytes)
    yield max(0, offset_bytes - LAST_BYTES), offset_bytes
