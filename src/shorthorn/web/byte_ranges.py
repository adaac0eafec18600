"""The Range header: which part of a file is asked for.

Owns: its grammar, and when a condition makes it count. Pure. Called by `web.api`.
Source: RFC 9110 sections 13.1.5, 14.1.2, 14.2. Several ranges at once are answered with the whole
file, which the RFC allows: nothing that downloads images asks for them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

_ONE: Final = re.compile(r"bytes=\s*(\d{0,18})-(\d{0,18})\s*", re.ASCII | re.IGNORECASE)


class NotSatisfiable(Exception):
    """Nothing of the file is in the range: 416."""


def find_range(headers: Mapping[str, str], size_bytes: int, etag: str) -> range | None:
    """Return the bytes asked for, None where that is the whole file.

    Args: etag: with its quotes; empty: none, so that no condition can hold.
    Raises: NotSatisfiable.
    """
    text = headers.get("range", "")
    condition = headers.get("if-range", "").strip()
    if not text or (condition and condition != etag):
        return None
    match = _ONE.fullmatch(text.strip())
    if match is None or match[1] == match[2] == "":
        return None  # another unit, several, or none: as if it were not there
    if not match[1]:
        start, stop = max(0, size_bytes - int(match[2])), size_bytes
        if not int(match[2]):
            raise NotSatisfiable
    else:
        start = int(match[1])
        stop = min(int(match[2]) + 1, size_bytes) if match[2] else size_bytes
        if match[2] and int(match[2]) < start:
            return None
    if start >= size_bytes:
        raise NotSatisfiable
    return range(start, stop)
