"""String and number formats of OpenAPI v3 that Kubernetes checks.

Owns one predicate per format. A schema with another format is refused at start, so that no
format is silently unchecked. Called by `value_validation`.

`quantity` marks what Go reads as a resource.Quantity; a pattern beside it says how it looks.

Source: k8s.io/kube-openapi/pkg/validation/strfmt; RFC 3339 for times.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
import uuid
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime
from typing import Any
from urllib.parse import urlsplit

from jsonschema import FormatChecker

_RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")


def _is_date_time(text: str) -> bool:
    if not _RFC3339.fullmatch(text):
        return False
    datetime.fromisoformat(text)
    return True


def _is_date(text: str) -> bool:
    date.fromisoformat(text)
    return re.fullmatch(r"\d{4}-\d\d-\d\d", text) is not None


def _is_bytes(text: str) -> bool:
    base64.b64decode(text, validate=True)
    return True


def _is_uri(text: str) -> bool:
    parts = urlsplit(text)
    return bool(parts.scheme and (parts.netloc or parts.path)) or text.startswith("/")


def _always(_text: str) -> bool:
    return True


_STRINGS: Mapping[str, Callable[[str], object]] = {
    "date-time": _is_date_time,
    "date": _is_date,
    "byte": _is_bytes,
    "uuid": uuid.UUID,
    "ipv4": ipaddress.IPv4Address,
    "ipv6": ipaddress.IPv6Address,
    "cidr": ipaddress.ip_interface,
    "uri": _is_uri,
    "password": _always,
    "quantity": _always,
}
_INTEGER_BITS: Mapping[str, int] = {"int32": 32, "int64": 64}
_UNBOUNDED = frozenset({"float", "double"})

KNOWN = frozenset(_STRINGS) | frozenset(_INTEGER_BITS) | _UNBOUNDED


def _string_check(check: Callable[[str], object]) -> Callable[[object], bool]:
    def holds(value: object) -> bool:
        # Formats say nothing about values of another type; `type` judges those.
        return not isinstance(value, str) or check(value) is not False

    return holds


def _integer_check(bits: int) -> Callable[[object], bool]:
    limit = 1 << (bits - 1)

    def holds(value: object) -> bool:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return not is_number or -limit <= _number(value) < limit

    return holds


def _number(value: Any) -> int | float:
    assert isinstance(value, int | float)
    return value


def checker(names: Iterable[str]) -> FormatChecker:
    """A checker of exactly these formats, which must be `KNOWN`."""
    result = FormatChecker(formats=())
    for name in names:
        if name in _STRINGS:
            check = _string_check(_STRINGS[name])
        elif name in _INTEGER_BITS:
            check = _integer_check(_INTEGER_BITS[name])
        else:
            continue
        result.checks(name, raises=(ValueError, binascii.Error))(check)
    return result
