"""Lists: selection, paging and resource versions of a read of many objects.

Owns the continue token and the list semantics. Reading and rendering happen in a reader thread, so
that thousands of objects never hold up the event loop. Called by `handlers`; `watch_stream` takes
its initial state from here.

Pages are read live, in (namespace, name) order, and all carry the first page's version: a watch
from that version repeats what may have been missed between two pages, so nothing is lost.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from shorthorn.standalone.apiserver import status
from shorthorn.standalone.apiserver.rendering import ListMetadata
from shorthorn.standalone.apiserver.requests import parse_version

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shorthorn.standalone.apiserver.kinds import Kind
    from shorthorn.standalone.apiserver.rendering import Renderer
    from shorthorn.standalone.apiserver.requests import ListOptions
    from shorthorn.standalone.apiserver.selectors import Selection
    from shorthorn.standalone.apiserver.transactions import Row, Snapshot

_MATCHES = ("", "NotOlderThan", "Exact")


@dataclass(frozen=True, slots=True)
class Scope:
    """What a list or watch looks at: a kind, in one namespace or in all (None)."""

    kind: Kind
    namespace: str | None
    selection: Selection


class _Token(msgspec.Struct):
    version: int
    namespace: str
    name: str


def read_list(snapshot: Snapshot, scope: Scope, options: ListOptions, renderer: Renderer) -> bytes:
    """Return the list as response bytes. Raises: StatusError 400, 410, 504."""
    version, after = snapshot.resource_version, None
    if options.continue_token:
        if options.resource_version not in ("", "0"):
            raise status.bad_request(
                "specifying resource version is not allowed when using continue"
            )
        token = _decode_token(options.continue_token)
        version, after = token.version, (token.namespace, token.name)
    else:
        check_version(options, snapshot.resource_version)
    rows: list[Row] = []
    has_more = False
    for row in matching(snapshot, scope, after):
        if options.limit and len(rows) == options.limit:
            has_more = True
            break
        rows.append(row)
    metadata = ListMetadata(version)
    if has_more:
        last = (rows[-1].namespace, rows[-1].name)
        remaining = None
        if scope.selection.is_everything:
            remaining = snapshot.count(scope.kind.resource, scope.namespace, last)
        metadata = ListMetadata(version, _encode_token(_Token(version, *last)), remaining)
    return renderer.list((row.data for row in rows), metadata)


def matching(
    snapshot: Snapshot, scope: Scope, after: tuple[str, str] | None = None
) -> Iterator[Row]:
    """Yield the objects of a scope in order, beyond `after`."""
    name, resource = scope.selection.name, scope.kind.resource
    is_namespace_known = scope.namespace is not None or not scope.kind.namespaced
    if name is not None and is_namespace_known and after is None:
        row = snapshot.find(resource, scope.namespace or "", name)
        if row is not None and scope.selection.matches(row.namespace, row.name, row.data):
            yield row
        return
    is_everything = scope.selection.is_everything
    for row in snapshot.iterate(resource, scope.namespace, after):
        if is_everything or scope.selection.matches(row.namespace, row.name, row.data):
            yield row


def check_version(options: ListOptions, current: int) -> None:
    """Judge the asked resource version of a list.

    Raises: StatusError 504: not reached yet; 410: an exact version that is gone; 400.
    """
    match = options.resource_version_match
    if match not in _MATCHES:
        raise status.bad_request(f'resourceVersionMatch: Unsupported value: "{match}"')
    asked = parse_version(options.resource_version)
    if match and not options.resource_version:
        raise status.bad_request(
            "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless "
            "resourceVersion is provided"
        )
    if match == "Exact" and asked == 0:
        raise status.bad_request(
            'resourceVersionMatch: Forbidden: resourceVersionMatch "Exact" is forbidden for '
            'resourceVersion "0"'
        )
    if asked > current:
        raise status.version_too_large(asked, current)
    if match == "Exact" and asked < current:
        raise status.expired(
            f"The provided resource version is no longer available: {asked} (now {current})"
        )


def _encode_token(token: _Token) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(token)).decode().rstrip("=")


def _decode_token(text: str) -> _Token:
    try:
        padded = text + "=" * (-len(text) % 4)
        return msgspec.json.decode(base64.urlsafe_b64decode(padded), type=_Token)
    except (binascii.Error, ValueError, msgspec.DecodeError) as exc:
        raise status.bad_request(f"continue key is not valid: {exc}") from exc
