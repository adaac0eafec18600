"""The loop around every reconciler.

Owns: one queue of names, served by a few workers: one name at a time by one worker, different names
in parallel, bursts coalesced, failures tried again with back-off. Must never: know what is
reconciled. Wired by `daemon`.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable

from shorthorn.controllers.outcomes import reason_of
from shorthorn.domain import errors

log = logging.getLogger(__name__)

_BACK_OFF_S = 0.1
_BACK_OFF_S_MAX = 30.0
_CONFLICT_S = 0.02
"""A conflict means that the cache lags by one event; that event is on its way."""

Reconcile = Callable[[str], Awaitable[float | None]]
"""Bring one named object one step nearer; return seconds until the next look, None: when it
changes.
"""


Observe = Callable[[str, float, str], None]
"""Told after every reconcile: the controller's name, seconds, and `ok`, `conflict` or an error's
reason.
"""


class Controller:
    """Calls `reconcile` for every name that was enqueued, until cancelled."""

    def __init__(
        self,
        name: str,
        reconcile: Reconcile,
        *,
        workers: int = 8,
        observe: Observe = lambda name, seconds, outcome: None,
    ) -> None:
        self._name = name
        self._reconcile = reconcile
        self._workers = workers
        self._observe = observe
        self._ready: asyncio.Queue[str] = asyncio.Queue()
        self._queued: set[str] = set()
        self._active: set[str] = set()
        self._again: set[str] = set()
        self._failures: dict[str, int] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def enqueue(self, key: str) -> None:
        """Have `key` looked at soon; also while it is being looked at, then once more."""
        if key in self._active:
            self._again.add(key)
        elif key not in self._queued:
            self._queued.add(key)
            self._ready.put_nowait(key)

    def enqueue_later(self, key: str, delay_s: float) -> None:
        """Have `key` looked at after `delay_s`, or earlier if something else asks for it."""
        loop = asyncio.get_running_loop()
        pending = self._timers.get(key)
        if pending is not None and pending.when() <= loop.time() + delay_s:
            return
        if pending is not None:
            pending.cancel()
        self._timers[key] = loop.call_later(delay_s, self._due, key)

    def _due(self, key: str) -> None:
        del self._timers[key]
        self.enqueue(key)

    async def run(self) -> None:
        """Serve the queue until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(self._workers):
                    group.create_task(self._work(), name=f"{self._name}-{number}")
        finally:
            for timer in self._timers.values():
                timer.cancel()
            self._timers.clear()

    async def _work(self) -> None:
        while True:
            key = await self._ready.get()
            self._queued.discard(key)
            self._active.add(key)
            try:
                await self._once(key)
            finally:
                self._active.discard(key)
                if key in self._again:
                    self._again.discard(key)
                    self.enqueue(key)

    async def _once(self, key: str) -> None:
        started, outcome = time.monotonic(), "ok"
        try:
            delay_s = await self._reconcile(key)
        except errors.Conflict:
            delay_s, outcome = _CONFLICT_S, "conflict"
        except asyncio.CancelledError as exc:
            if _is_cancelled():
                raise
            # Something that was awaited was cancelled, not we: a worker must not end by that.
            delay_s, outcome = self._failed(key, exc), reason_of(exc)
        except Exception as exc:
            delay_s, outcome = self._failed(key, exc), reason_of(exc)
        else:
            self._failures.pop(key, None)
        self._observe(self._name, time.monotonic() - started, outcome)
        if delay_s is not None:
            self.enqueue_later(key, delay_s)

    def _failed(self, key: str, exc: BaseException) -> float:
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        delay_s = back_off_s(failures)
        known = isinstance(exc, errors.DomainError)
        log.log(
            logging.WARNING if known else logging.ERROR,
            "%s %s: %s; again in %.1f s",
            self._name,
            key,
            exc or type(exc).__name__,
            delay_s,
            exc_info=None if known else exc,
        )
        return delay_s


def back_off_s(failures: int) -> float:
    """Return how long to wait after so many failures in a row (1…), with jitter."""
    delay_s: float = min(_BACK_OFF_S_MAX, _BACK_OFF_S * 2 ** min(failures - 1, 16))
    return delay_s * random.uniform(0.8, 1.2)


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
