"""When failed background work may be tried again.

Owns: counting failures in a row by key, and the time before which nothing is tried. Must never:
know what is tried. Used by `controllers.image_copies` and `controllers.contents`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Retries:
    """Waits by key; `delay_s` gives the wait after so many failures in a row (1…)."""

    def __init__(self, delay_s: Callable[[int], float]) -> None:
        self._delay_s = delay_s
        self._waits: dict[str, tuple[int, float]] = {}

    def failed(self, key: str) -> float:
        """Count one more failure and return how long the next try has to wait."""
        failures = self._waits.get(key, (0, 0.0))[0] + 1
        delay_s = self._delay_s(failures)
        self._waits[key] = (failures, asyncio.get_running_loop().time() + delay_s)
        return delay_s

    def wait_s(self, key: str) -> float:
        """Return how long the next try has to wait: events come earlier than its time."""
        wait = self._waits.get(key)
        return wait[1] - asyncio.get_running_loop().time() if wait else 0

    def forget(self, key: str) -> None:
        """Begin to count anew."""
        self._waits.pop(key, None)
