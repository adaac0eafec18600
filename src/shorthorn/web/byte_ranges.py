"""The Range header: which part of a file is asked for, and conditions on what it must be.

Owns: their grammar, and when a condition makes a range count. Pure. Called by `web.api`.
Source: RFC 9110 sections 13.1, 14.1.2, 14.2. Several ranges at once are answered with the whole
file, which the RFC allows: nothing that downloads images asks for them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

_ONE: Final = re.compile(r"bytes=\s*(\d*)-(\d*)\s*", re.ASCII | re.IGNORECASE)
#: Digits of numbers that are told apart: beyond the end of every file, one is as good as another.
_DIGITS_MAX: Final = 18


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
    first, last = _number(match[1]), _number(match[2])
    if first is None:
        assert last is not None, "one of both is there"
        start, stop = max(0, size_bytes - last), size_bytes
        if not last:
            raise NotSatisfiable
    else:
        start, stop = first, size_bytes
        if last is not None:
            if last < first:
                return None
            stop = min(last + 1, size_bytes)
    if start >= size_bytes:
        raise NotSatisfiable
    return range(start, stop)


def is_match(headers: Mapping[str, str], etag: str) -> bool:
    """Whether If-Match, where it is sent, names `etag` (with its quotes; empty: none is known).

    If-Unmodified-Since says nothing here: no file of ours has a date (RFC 9110 section 13.1.4).
    """
    told = headers.get("if-match", "").strip()
    return told in ("", "*") or bool(etag and etag in _tags(told))


def is_known(headers: Mapping[str, str], etag: str) -> bool:
    """Whether If-None-Match says that the client has these bytes already."""
    told = headers.get("if-none-match", "").strip()
    if not etag or not told:
        return False
    return told == "*" or etag in {tag.removeprefix("W/") for tag in _tags(told)}


def _tags(text: str) -> set[str]:
    return {tag.strip() for tag in text.split(",")}


def _number(digits: str) -> int | None:
    """Return a number, or a huge one in place of a greater one; None for no digits."""
    if not digits:
        return None
    significant = digits.lstrip("0") or "0"
    return int(significant) if len(significant) <= _DIGITS_MAX else 10**_DIGITS_MAX
