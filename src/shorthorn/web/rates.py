"""How fast running transfers are, seen from outside.

Owns: a few samples of each copy's progress, rate and remaining time from them, and telling when one
has stalled: of that no object tells. Must never: keep anything of a copy that is not moving. `run`
is spawned by `daemon`; read by pages and event streams.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from shorthorn.domain.models import CopyState, ImageCopy
from shorthorn.domain.ports import Registry

MOVING: Final = frozenset({CopyState.STARTING, CopyState.IN_PROGRESS, CopyState.READY_FOR_TRANSFER})
#: Progress is told each second; what has not moved for so long has no speed to speak of.
STALE_S: Final = 5.0
_WINDOW_S: Final = 15.0
_SAMPLES_MAX: Final = 64
#: Timers may fire a clock's tick early, when the newest sample is not old enough yet.
_MARGIN_S: Final = 0.01

Listener = Callable[[str], None]
"""Called with the name of a copy."""


@dataclass(frozen=True, slots=True)
class Speed:
    """Bytes per second over the last seconds, and what is left; None where nobody knows.

    `is_stalled`: some bytes came, some are missing, and none has come for `STALE_S`.
    """

    rate: float | None = None
    remaining_s: float | None = None
    is_stalled: bool = False


class Rates:
    """Follows all copies. `stale_s`: the age at which the newest sample says nothing any more."""

    def __init__(
        self,
        copies: Registry[ImageCopy],
        *,
        clock: Callable[[], float] = time.monotonic,
        stale_s: float = STALE_S,
    ) -> None:
        self._copies = copies
        self._clock = clock
        self._stale_s = stale_s
        self._samples: dict[str, deque[tuple[float, int]]] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._listeners: set[Listener] = set()

    async def run(self) -> None:
        """Take samples until cancelled."""
        try:
            async with self._copies.subscribe() as names:
                async for name in names:
                    if self.observe(name, self._copies.find_cached(name)):
                        self._expect_more(name)
        finally:
            for timer in self._timers.values():
                timer.cancel()

    @contextlib.contextmanager
    def hearing(self, listener: Listener) -> Iterator[None]:
        """Have `listener` called, on the event loop of `run`, with each copy that stalls."""
        self._listeners.add(listener)
        try:
            yield
        finally:
            self._listeners.discard(listener)

    def observe(self, name: str, copy: ImageCopy | None) -> bool:
        """Take a sample of one copy; return whether it is another one than the last."""
        if copy is None or copy.status.state not in MOVING:
            self._samples.pop(name, None)
            if name in self._timers:
                self._timers.pop(name).cancel()
            return False
        samples = self._samples.setdefault(name, deque(maxlen=_SAMPLES_MAX))
        done = copy.status.bytes_done
        if samples and done == samples[-1][1]:
            return False  # something else changed, and what is not moving shall be seen to age
        if samples and done < samples[-1][1]:  # it began anew
            samples.clear()
        now = self._clock()
        samples.append((now, done))
        while len(samples) > 2 and now - samples[0][0] > _WINDOW_S:
            samples.popleft()
        return True

    def speed_of(self, copy: ImageCopy) -> Speed:
        """Return how fast a copy is now."""
        samples = self._samples.get(copy.meta.name)
        if not samples:
            return Speed()
        (first_at, first), (last_at, last) = samples[0], samples[-1]
        total = copy.status.bytes_total
        if self._clock() - last_at >= self._stale_s:
            return Speed(is_stalled=0 < last < total)
        if last_at <= first_at:
            return Speed()
        rate = (last - first) / (last_at - first_at)
        left = total - copy.status.bytes_done
        return Speed(rate, left / rate if rate > 0 and total > 0 else None)

    def _expect_more(self, name: str) -> None:
        if name in self._timers:
            self._timers[name].cancel()
        loop = asyncio.get_running_loop()
        self._timers[name] = loop.call_later(self._stale_s + _MARGIN_S, self._stalled, name)

    def _stalled(self, name: str) -> None:
        del self._timers[name]
        for listener in list(self._listeners):
            listener(name)
