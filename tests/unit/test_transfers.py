"""Long work beside the reconcilers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from tests.fakes import virtual_time

from shorthorn.controllers.transfers import Transfers
from shorthorn.domain.errors import Unavailable
from shorthorn.domain.models import Progress

if TYPE_CHECKING:
    from shorthorn.domain.ports import ReportProgress


class Changes:
    """The names that were told of, in order."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._some = asyncio.Event()

    def __call__(self, name: str) -> None:
        self.names.append(name)
        self._some.set()

    async def next(self) -> None:
        async with asyncio.timeout(60):
            await self._some.wait()
        self._some.clear()


async def test_the_end_is_told_and_stays_known_until_it_is_forgotten() -> None:
    changes = Changes()
    transfers: Transfers[int] = Transfers(changes)

    async def work(_: ReportProgress) -> int:
        return 7

    transfers.start("a", work)
    assert transfers.is_known("a")
    assert transfers.find_ended("a") is None
    await changes.next()
    for _ in range(2):
        ended = transfers.find_ended("a")
        assert ended is not None
        assert ended.result() == 7
    transfers.forget("a")
    assert not transfers.is_known("a")
    assert transfers.find_ended("a") is None
    transfers.start("a", work)
    await transfers.close()


async def test_a_failure_that_nobody_asks_for_makes_no_noise() -> None:
    changes = Changes()
    transfers: Transfers[int] = Transfers(changes)

    async def work(_: ReportProgress) -> int:
        raise Unavailable("source", "away")

    transfers.start("a", work)
    await changes.next()
    transfers.forget("a")


def test_progress_is_told_at_intervals_and_the_last_is_kept() -> None:
    async def main() -> None:
        changes = Changes()
        transfers: Transfers[None] = Transfers(changes, interval_s=0.5)
        go_on = asyncio.Event()

        async def work(report: ReportProgress) -> None:
            for number in range(100):
                report(Progress(number, 100))
                if number == 50:
                    await asyncio.sleep(0.6)
            await go_on.wait()

        transfers.start("a", work)
        await changes.next()
        assert transfers.progress("a") == Progress(99, 100)
        assert changes.names == ["a"]
        go_on.set()
        await changes.next()
        assert changes.names == ["a", "a"]
        assert transfers.progress("nobody") == Progress(0, 0)

    virtual_time.run(main())


async def test_work_that_ends_soon_tells_of_its_end_alone() -> None:
    changes = Changes()
    transfers: Transfers[None] = Transfers(changes, interval_s=60)

    async def work(report: ReportProgress) -> None:
        report(Progress(1, 2))

    transfers.start("a", work)
    await changes.next()
    assert changes.names == ["a"]
    assert transfers.find_ended("a") is not None


async def test_a_word_that_comes_after_the_end_is_not_heard() -> None:
    changes = Changes()
    transfers: Transfers[None] = Transfers(changes, interval_s=0)
    kept: list[ReportProgress] = []

    async def work(report: ReportProgress) -> None:
        kept.append(report)

    transfers.start("a", work)
    await changes.next()
    transfers.forget("a")
    kept[0](Progress(5, 10))
    assert transfers.progress("a") == Progress(0, 0)
    assert changes.names == ["a"]


async def test_cancelling_waits_until_the_work_has_stopped() -> None:
    transfers: Transfers[None] = Transfers(Changes())
    began, stopped = asyncio.Event(), asyncio.Event()

    async def work(_: ReportProgress) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            stopped.set()

    transfers.start("a", work)
    await began.wait()
    await transfers.cancel("a")
    assert stopped.is_set()
    assert not transfers.is_known("a")
    await transfers.cancel("a")


async def test_closing_stops_everything() -> None:
    transfers: Transfers[None] = Transfers(Changes())
    running = 0

    async def work(_: ReportProgress) -> None:
        nonlocal running
        running += 1
        try:
            await asyncio.Event().wait()
        finally:
            running -= 1

    for name in "abc":
        transfers.start(name, work)
    await asyncio.sleep(0)
    assert running == 3
    await transfers.close()
    assert running == 0


async def test_what_runs_cannot_be_forgotten_or_started_twice() -> None:
    transfers: Transfers[None] = Transfers(Changes())

    async def work(_: ReportProgress) -> None:
        await asyncio.Event().wait()

    transfers.start("a", work)
    with pytest.raises(AssertionError):
        transfers.start("a", work)
    with pytest.raises(AssertionError):
        transfers.forget("a")
    await transfers.close()
