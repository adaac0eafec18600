"""How long to leave an object alone after it failed.

Owns: one count of failures for each key, doubling the wait up to a bound. Must never: wait itself.
Used by the reconcilers of this package, each with its own, for failures that they report on the
object; those that nobody foresaw are for `controllers.controller`.
"""

from __future__ import annotations

RETRY_S = 1.0
"""The first wait; also how soon to look again at work that goes on elsewhere."""

_RETRY_S_MAX = 30.0
_DOUBLINGS_MAX = 8


class BackOff:
    """Failures in a row, by key. One key costs memory until `forget`."""

    def __init__(self) -> None:
        self._failures: dict[str, int] = {}

    def is_failing(self, key: str) -> bool:
        return key in self._failures

    def failed(self, key: str) -> float:
        """Count one more failure; return the seconds until the next try."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        delay_s: float = min(_RETRY_S_MAX, RETRY_S * 2 ** min(failures - 1, _DOUBLINGS_MAX))
        return delay_s

    def forget(self, key: str) -> None:
        """Begin anew: it succeeded, or it is gone."""
        self._failures.pop(key, None)
