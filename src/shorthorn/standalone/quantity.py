"""Kubernetes quantities ("5Gi", "1.5e9", "100M") as bytes, and back.

Owns: that one format. Must never: round in favour of less space than asked for. Source:
apimachinery's `resource.Quantity` grammar, as documented in the Kubernetes API reference.
"""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, Decimal

from shorthorn.domain import errors

_FORM = re.compile(
    r"([+-]?(?:\d+\.?\d*|\.\d+))(?:([eE][+-]?\d+)|(Ki|Mi|Gi|Ti|Pi|Ei|n|u|m|k|M|G|T|P|E))?"
)
_CHARS_MAX = 64
_EXPONENT_MAX = 30
"""2^63 has 19 digits; an exponent of a thousand millions would fill the memory with zeros."""
_BYTES_MAX = 2**63 - 1
"""What a CSI call can carry."""

_BINARY = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}
_DECIMAL = {"n": -9, "u": -6, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}


def parse_quantity(text: str) -> int:
    """Return whole bytes, fractions rounded up. Raises InvalidArgument: also beyond 64 bits."""
    match = _FORM.fullmatch(text.strip())
    if match is None or len(text) > _CHARS_MAX:
        raise errors.InvalidArgument("quantity", f"{text!r} is not a quantity such as 5Gi or 500M")
    number, exponent, unit = match.groups()
    if exponent and abs(int(exponent[1:])) > _EXPONENT_MAX:
        raise errors.InvalidArgument("quantity", f"{text!r} is out of range")
    value = Decimal(number + (exponent or ""))
    if unit in _BINARY:
        value *= 1 << _BINARY[unit]
    elif unit in _DECIMAL:
        value = value.scaleb(_DECIMAL[unit])
    whole = int(value.to_integral_value(ROUND_CEILING))
    if abs(whole) > _BYTES_MAX:
        raise errors.InvalidArgument("quantity", f"{text!r} is out of range")
    return whole


def format_quantity(size_bytes: int) -> str:
    """Return the shortest exact binary form: `5Gi`, `1536Mi`, `513`."""
    for unit, shift in reversed(_BINARY.items()):
        if size_bytes and size_bytes % (1 << shift) == 0:
            return f"{size_bytes >> shift}{unit}"
    return str(size_bytes)
