"""The loop around reconcilers: one name at a time, bursts once, failures later."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from tests.fakes import virtual_time

from shorthorn.controllers.controller import Controller, back_off_s
from shorthorn.domain.errors import Conflict, Unavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Reconciler:
    """Notes every look; `ends` are what the next looks at a name return or raise."""

    def __init__(self) -> None:
        self.looks: list[str] = []
        self.at: list[float] = []
        self.active: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.gate = asyncio.Event()
        self.gate.set()
        self.ends: dict[str, list[float | BaseException | None]] = {}
        self._changed = asyncio.Condition()

    async def __call__(self, key: str) -> float | None:
        self.looks.append(key)
        self.at.append(asyncio.get_running_loop().time())
        self.active[key] += 1
        self.most[key] = max(self.most[key], self.active[key])
        async with self._changed:
            self._changed.notify_all()
        try:
            await self.gate.wait()
            end = self.ends[key].pop(0) if self.ends.get(key) else None
            if isinstance(end, BaseException):
                raise end
            return end
        finally:
            self.active[key] -= 1

    async def seen(self, *keys: str) -> None:
        """Return when every name was looked at as often as it is given."""
        wanted = Counter(keys)
        async with self._changed, asyncio.timeout(60):
            await self._changed.wait_for(lambda: Counter(self.looks) >= wanted)


@contextlib.asynccontextmanager
async def running(reconcile: Reconciler, *, workers: int = 4) -> AsyncIterator[Controller]:
    controller = Controller("test", reconcile, workers=workers)
    task = asyncio.create_task(controller.run())
    try:
        yield controller
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()


async def settle() -> None:
    """Let everything run that can."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_name_that_changes_often_is_looked_at_once() -> None:
    reconcile = Reconciler()
    async with running(reconcile) as controller:
        for _ in range(100):
            controller.enqueue("a")
        await reconcile.seen("a")
        await settle()
    assert reconcile.looks == ["a"]


async def test_a_change_during_a_look_is_followed_by_exactly_one_more() -> None:
    reconcile = Reconciler()
    reconcile.gate.clear()
    async with running(reconcile) as controller:
        controller.enqueue("a")
        await reconcile.seen("a")
        for _ in range(10):
            controller.enqueue("a")
        await settle()
        assert reconcile.looks == ["a"]
        reconcile.gate.set()
        await reconcile.seen("a", "a")
        await settle()
    assert reconcile.looks == ["a", "a"]
    assert reconcile.most["a"] == 1


async def test_names_are_looked_at_in_parallel_by_all_workers() -> None:
    reconcile = Reconciler()
    reconcile.gate.clear()
    names = [f"n{number}" for number in range(6)]
    async with running(reconcile, workers=4) as controller:
        for name in names:
            controller.enqueue(name)
        await reconcile.seen(*names[:4])
        await settle()
        assert reconcile.looks == names[:4]
        reconcile.gate.set()
        await reconcile.seen(*names)
    assert max(reconcile.most.values()) == 1


async def test_a_result_asks_for_another_look() -> None:
    reconcile = Reconciler()
    reconcile.ends["a"] = [0, 0.01, None]
    async with running(reconcile) as controller:
        controller.enqueue("a")
        await reconcile.seen("a", "a", "a")
        await settle()
    assert reconcile.looks == ["a", "a", "a"]


async def test_the_earlier_of_two_times_counts() -> None:
    reconcile = Reconciler()
    async with running(reconcile) as controller:
        controller.enqueue_later("late then early", 60)
        controller.enqueue_later("late then early", 0.01)
        controller.enqueue_later("early then late", 0.01)
        controller.enqueue_later("early then late", 60)
        await reconcile.seen("late then early", "early then late")
        await settle()
    assert sorted(reconcile.looks) == ["early then late", "late then early"]


async def test_failures_are_tried_again_ever_later(caplog: pytest.LogCaptureFixture) -> None:
    reconcile = Reconciler()
    reconcile.ends["a"] = [Unavailable("disk", "away"), ValueError("a bug"), Unavailable("x", "y")]
    async with running(reconcile) as controller:
        controller.enqueue("a")
        await reconcile.seen("a", "a", "a", "a")
    pauses = [after - before for before, after in zip(reconcile.at, reconcile.at[1:], strict=False)]
    assert pauses[0] >= 0.08
    assert pauses[1] >= 0.16
    assert pauses[2] >= 0.32
    levels = [record.levelno for record in caplog.records]
    assert levels == [logging.WARNING, logging.ERROR, logging.WARNING]
    assert [bool(record.exc_info) for record in caplog.records] == [False, True, False]


async def test_a_success_starts_the_back_off_anew(caplog: pytest.LogCaptureFixture) -> None:
    reconcile = Reconciler()
    away = Unavailable("disk", "away")
    reconcile.ends["a"] = [away, away, 0, away, None]
    async with running(reconcile) as controller:
        controller.enqueue("a")
        await reconcile.seen(*"aaaaa")
    told = [record.getMessage().rpartition(" in ")[2] for record in caplog.records]
    assert told == ["0.1 s", "0.2 s", "0.1 s"]


async def test_one_name_that_fails_does_not_hold_up_another() -> None:
    reconcile = Reconciler()
    reconcile.ends["a"] = [Unavailable("disk", "away")] * 10
    async with running(reconcile, workers=1) as controller:
        controller.enqueue("a")
        controller.enqueue("b")
        await reconcile.seen("a", "b")
    assert reconcile.looks[:2] == ["a", "b"]


def test_a_conflict_is_tried_again_at_once_and_in_silence(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        reconcile = Reconciler()
        reconcile.ends["a"] = [Conflict("thing", "a")] * 3
        async with running(reconcile) as controller:
            controller.enqueue("a")
            await reconcile.seen(*"aaaa")
        assert reconcile.at[3] - reconcile.at[0] < 0.5

    virtual_time.run(main())
    assert caplog.records == []


async def test_a_worker_survives_that_what_it_awaits_is_cancelled() -> None:
    reconcile = Reconciler()
    reconcile.ends["a"] = [asyncio.CancelledError()]
    async with running(reconcile, workers=1) as controller:
        controller.enqueue("a")
        await reconcile.seen("a", "a")


async def test_at_its_end_nothing_is_looked_at_any_more() -> None:
    reconcile = Reconciler()
    async with running(reconcile) as controller:
        controller.enqueue_later("a", 0.01)
    await asyncio.sleep(0.03)
    assert reconcile.looks == []


def test_the_back_off_doubles_up_to_half_a_minute() -> None:
    delays = [back_off_s(failures) for failures in range(1, 40)]
    assert 0.08 <= delays[0] <= 0.12
    assert all(24 <= delay <= 36 for delay in delays[9:])
