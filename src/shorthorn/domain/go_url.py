"""URLs as Go's `net/url` reads them: the grammar every `bi://` handle is parsed by elsewhere.

Owns: which strings Go's `url.Parse` refuses, and what `URL.Query()` finds in the ones it accepts.
Python's own `urllib.parse` differs in both (it refuses almost nothing, splits on other rules and
keeps broken escapes), and a handle must mean the same to every driver that sees it.
Must never: know what the pairs mean, or do I/O. Called by `domain.handles` and its traps.

Behaviour is that of Go 1.26, checked against its output: tests/unit/data/go_url_vectors.json.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
_SCHEME = re.compile(rb"([A-Za-z][A-Za-z0-9+.-]*):")
_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})")
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_STRAY = re.compile("[\udc80-\udcff]")
_PORT = re.compile(rb"(:[0-9]*)?")
_USERINFO = re.compile(rb"[A-Za-z0-9._:~!$&'()*+,;=%@-]*")
#: ASCII bytes that may stand unescaped in a host (Go is laxer than RFC 3986 here: < > " pass).
_HOST_BYTES: Final = frozenset(
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.~!$&'()*+,;=:[]<>\""
)

#: Go's default bound on pairs in one query; above it the whole query reads as empty.
PAIRS_MAX: Final = 10_000


class MalformedUrl(ValueError):
    """Go's `url.Parse` would return an error for this string; `args[0]` says why."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One `key=value` of a query, in the order written; `key` and `value` are decoded.

    `raw` is the text between two `&`. `value` is empty for a pair without `=`.
    """

    key: str
    value: str
    raw: str


@dataclass(frozen=True, slots=True)
class Query:
    """The pairs Go keeps, and the raw text of those it drops silently (`;`, broken escapes)."""

    pairs: tuple[Pair, ...]
    dropped: tuple[str, ...]

    def first_values(self) -> dict[str, str]:
        """Map each key to its first value, in order of first appearance (`Values.Get`)."""
        values: dict[str, str] = {}
        for pair in self.pairs:
            values.setdefault(pair.key, pair.value)
        return values


def query_of(url: str) -> Query:
    """Return what `url.Parse(url)` followed by `.Query()` yields.

    Bytes that are not UTF-8 after decoding become U+FFFD, as Go's JSON encoder writes them.

    Raises: MalformedUrl: Go refuses the URL as a whole.
    """
    try:
        raw = url.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise MalformedUrl("it is not valid Unicode") from None
    return _parse_query(_split_query(raw))


def _split_query(raw: bytes) -> bytes:
    """Return the raw query of a URL that Go accepts; every other part is only checked."""
    url, _, fragment = raw.partition(b"#")
    if _CONTROL.search(url):
        raise MalformedUrl("it contains a control character")
    if url.startswith(b":"):
        raise MalformedUrl("its scheme is missing")
    matched = _SCHEME.match(url)
    scheme = matched[1].lower() if matched else b""
    rest, _, query = url[matched.end() if matched else 0 :].partition(b"?")
    _check_hierarchy(scheme, rest)
    _check_escapes(fragment, "fragment")
    return query


def _check_hierarchy(scheme: bytes, rest: bytes) -> None:
    """Check authority and path: what stands between scheme and query."""
    if not rest.startswith(b"/"):
        if scheme:
            return  # opaque, as in mailto:x; Go looks no closer
        if b":" in rest.partition(b"/")[0]:
            raise MalformedUrl("its first path segment contains a colon")
    path = rest
    if rest.startswith(b"//") and (scheme or not rest.startswith(b"///")):
        authority, slash, tail = rest[2:].partition(b"/")
        _check_authority(scheme, authority)
        path = slash + tail
    _check_escapes(path, "path")


def _check_authority(scheme: bytes, authority: bytes) -> None:
    userinfo, at, host = authority.rpartition(b"@")
    _check_host(scheme, host)
    if at:
        if not _USERINFO.fullmatch(userinfo):
            raise MalformedUrl("its user information contains an invalid character")
        _check_escapes(userinfo, "user information")


def _check_host(scheme: bytes, host: bytes) -> None:
    bracket = host.rfind(b"[")
    if bracket > 0:
        raise MalformedUrl("its host has a '[' that does not begin it")
    if bracket == 0:
        inside, closed, port = host[1:].rpartition(b"]")
        if not closed:
            raise MalformedUrl("its host lacks the closing ']'")
        _check_port(port)
        _check_ipv6(inside)
        return
    # Only the last colon begins a port, so that lists of hosts (a:1,b:2) pass; not in web URLs.
    split = host.partition if scheme in (b"http", b"https") else host.rpartition
    _, colon, port = split(b":")
    if colon:
        _check_port(colon + port)
    _unescape_host(host)


def _check_port(port: bytes) -> None:
    if not _PORT.fullmatch(port):
        raise MalformedUrl(f"its port {_shown(port)} is not a number")


def _check_ipv6(inside: bytes) -> None:
    """Between brackets only an IPv6 address may stand, with an optional %25zone."""
    zone_at = inside.find(b"%25")
    if zone_at < 0:
        address = _unescape_host(inside)
    else:
        address = _unescape_host(inside[:zone_at]) + _unescape_zone(inside[zone_at:])
    bare, percent, zone = address.partition(b"%")
    if percent and not zone:
        raise MalformedUrl("its IPv6 zone is empty")
    try:
        ipaddress.IPv6Address(bare.decode("ascii"))
    except ValueError:
        raise MalformedUrl(f"{_shown(inside)} between brackets is no IPv6 address") from None


def _unescape_host(host: bytes) -> bytes:
    """Decode a host, in which only bytes outside ASCII and the percent sign may be escaped."""
    _check_escapes(host, "host")
    for matched in _ESCAPE.finditer(host):
        if int(matched[1], 16) < 0x80 and matched[0] != b"%25":
            raise MalformedUrl(f"its host has the invalid escape {_shown(matched[0])}")
    _check_host_bytes(host)
    return _unescape(host)


def _unescape_zone(zone: bytes) -> bytes:
    """Decode a zone, in which an escape may stand only for what a host could hold, or a space."""
    _check_escapes(zone, "IPv6 zone")
    for matched in _ESCAPE.finditer(zone):
        byte = int(matched[1], 16)
        if matched[0] != b"%25" and byte != 0x20 and byte not in _HOST_BYTES:
            raise MalformedUrl(f"its IPv6 zone has the invalid escape {_shown(matched[0])}")
    _check_host_bytes(zone)
    return _unescape(zone)


def _check_host_bytes(host: bytes) -> None:
    for byte in host.replace(b"%", b""):
        if byte < 0x80 and byte not in _HOST_BYTES:
            raise MalformedUrl(f"its host contains {chr(byte)!r}")


def _check_escapes(text: bytes, part: str) -> None:
    broken = _BAD_ESCAPE.search(text)
    if broken:
        escape = text[broken.start() : broken.start() + 3]
        raise MalformedUrl(f"its {part} has the broken escape {_shown(escape)}")


def _parse_query(query: bytes) -> Query:
    if query.count(b"&") + 1 > PAIRS_MAX:
        return Query((), ())
    pairs: list[Pair] = []
    dropped: list[str] = []
    for raw in query.split(b"&"):
        if not raw:
            continue
        if b";" in raw or _BAD_ESCAPE.search(raw):
            dropped.append(_text(raw))
            continue
        key, _, value = raw.replace(b"+", b" ").partition(b"=")
        pairs.append(Pair(_text(_unescape(key)), _text(_unescape(value)), _text(raw)))
    return Query(tuple(pairs), tuple(dropped))


def _unescape(text: bytes) -> bytes:
    return _ESCAPE.sub(lambda matched: bytes((int(matched[1], 16),)), text)


def _text(raw: bytes) -> str:
    # One U+FFFD for every stray byte, as Go has it; "replace" would merge neighbours.
    return _STRAY.sub("\ufffd", raw.decode("utf-8", "surrogateescape"))


def _shown(raw: bytes) -> str:
    return repr(_text(raw))
