"""How fast running transfers are, seen from outside.

Owns: a few samples of each copy's progress, and rate and remaining time from them. Must never: keep
anything of a copy that is not moving. `run` is spawned by `daemon`; read by the overview.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from shorthorn.domain.models import CopyState, ImageCopy
from shorthorn.domain.ports import Registry

MOVING: Final = frozenset({CopyState.STARTING, CopyState.IN_PROGRESS, CopyState.READY_FOR_TRANSFER})
_WINDOW_S: Final = 15.0
_SAMPLES_MAX: Final = 64


@dataclass(frozen=True, slots=True)
class Speed:
    """Bytes per second over the last seconds, and what is left; None where nobody knows."""

    rate: float | None = None
    remaining_s: float | None = None


class Rates:
    """Follows all copies."""

    def __init__(
        self, copies: Registry[ImageCopy], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._copies = copies
        self._clock = clock
        self._samples: dict[str, deque[tuple[float, int]]] = {}

    async def run(self) -> None:
        """Take samples until cancelled."""
        async with self._copies.subscribe() as names:
            async for name in names:
                self.observe(name, self._copies.find_cached(name))

    def observe(self, name: str, copy: ImageCopy | None) -> None:
        """Take a sample of one copy."""
        if copy is None or copy.status.state not in MOVING:
            self._samples.pop(name, None)
            return
        samples = self._samples.setdefault(name, deque(maxlen=_SAMPLES_MAX))
        done = copy.status.bytes_done
        if samples and done < samples[-1][1]:  # it began anew
            samples.clear()
        now = self._clock()
        samples.append((now, done))
        while len(samples) > 2 and now - samples[0][0] > _WINDOW_S:
            samples.popleft()

    def speed_of(self, copy: ImageCopy) -> Speed:
        """Return how fast a copy is."""
        samples = self._samples.get(copy.meta.name)
        if not samples or len(samples) < 2:
            return Speed()
        (first_at, first), (last_at, last) = samples[0], samples[-1]
        if last_at <= first_at:
            return Speed()
        rate = (last - first) / (last_at - first_at)
        left = copy.status.bytes_total - copy.status.bytes_done
        remaining_s = left / rate if rate > 0 and copy.status.bytes_total > 0 else None
        return Speed(rate, remaining_s)
