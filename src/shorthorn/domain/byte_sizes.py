"""Numbers of bytes, as messages write them for people.

Owns: units and rounding. Must never: know what is measured. Called by errors, by whoever says how
far something is, and by the web page.
"""

from __future__ import annotations

from typing import Final

_UNITS: Final = ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_WHOLE_EIB: Final = 1 << 70
"""From here on a fraction says nothing, and a float may not hold it: a peer sends any number."""


def format_bytes(value: float) -> str:
    """Return 1536 as `1.5 KiB`: three digits or so, of what is at hand."""
    if value < 1024:
        return f"{int(value)} B"
    if value >= _WHOLE_EIB:
        return f"{int(value) >> 60} EiB"
    size, power = value / 1024, 0
    while size >= 1023.95 and power < len(_UNITS) - 1:
        size, power = size / 1024, power + 1
    text = f"{size:.1f}" if size < 100 else f"{size:.0f}"
    return f"{text.removesuffix('.0')} {_UNITS[power]}"


def exact_bytes(value: int) -> str:
    """Return 1536 as `1.5 KiB (1536 bytes)`, and 512 as `512 bytes`."""
    if value < 1024:
        return f"{value} bytes"
    return f"{format_bytes(value)} ({value} bytes)"


def format_progress(done: int, total: int) -> str:
    """Return `1.5 MiB of 700 MiB`, and `0 of 700 MiB` before the first byte."""
    return f"{format_bytes(done) if done else '0'} of {format_bytes(total)}"
