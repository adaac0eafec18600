"""Lists in pages.

Owns continuation tokens: a token names the last item that was given out, so pages stay right while
items come and go, and nothing is remembered between calls. Called by the services that list.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

from shorthorn.domain.errors import InvalidArgument, InvalidPageToken

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

Item = TypeVar("Item")
#: Tells our tokens from any other text, and this form from a later one.
_PREFIX: Final = "after-1"


def page(
    items: Iterable[Item], key: Callable[[Item], str], *, max_entries: int, token: str
) -> tuple[Sequence[Item], str]:
    """Return the next items in order of `key`, and the token of the page after them (empty: none).

    Args: max_entries: 0 means all.
    Raises: InvalidPageToken. InvalidArgument: `max_entries` is negative.
    """
    if max_entries < 0:
        raise InvalidArgument("max_entries", f"{max_entries} is negative")
    rest = sorted(items, key=key)
    if token:
        last = _decode(token)
        rest = [item for item in rest if key(item) > last]
    if not max_entries or len(rest) <= max_entries:
        return rest, ""
    chosen = rest[:max_entries]
    return chosen, f"{_PREFIX}.{key(chosen[-1]).encode().hex()}"


def _decode(token: str) -> str:
    prefix, _, encoded = token.partition(".")
    try:
        last = bytes.fromhex(encoded).decode()
    except ValueError:
        last = ""
    if prefix != _PREFIX or not last:
        raise InvalidPageToken("starting_token", "not a token of this driver; list again")
    return last
