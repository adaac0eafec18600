"""Blocking work in threads: results, errors, and what a cancellation means."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading

import pytest

from shorthorn.kit.threads import (
    MAX_WORKERS,
    in_stoppable_thread,
    in_thread,
    in_thread_that_gives_way,
)


async def test_results_and_errors_come_back() -> None:
    assert await in_thread(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await in_thread(divmod, 7, 0)


async def test_context_variables_are_seen() -> None:
    trace: contextvars.ContextVar[str] = contextvars.ContextVar("trace")
    trace.set("abc")
    assert await in_thread(trace.get) == "abc"


async def test_the_number_of_threads_is_bounded() -> None:
    running, most, lock = 0, 0, threading.Lock()
    full = threading.Barrier(MAX_WORKERS)

    def work() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        full.wait(timeout=60)
        with lock:
            running -= 1

    await asyncio.gather(*(in_thread(work) for _ in range(MAX_WORKERS * 3)))
    assert most == MAX_WORKERS


async def test_computation_gives_way_and_other_work_does_not() -> None:
    def nice() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    ours = nice()
    assert await in_thread_that_gives_way(nice) == min(ours + 5, 19)
    assert await in_thread(nice) == ours == nice()


async def test_a_cancellation_is_delivered_when_the_work_has_ended() -> None:
    started, go_on = threading.Event(), threading.Event()
    ended = False

    def work() -> None:
        nonlocal ended
        started.set()
        go_on.wait(timeout=60)
        ended = True

    task = asyncio.create_task(in_thread(work))
    await asyncio.to_thread(started.wait, 60)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done()

    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended


async def test_stoppable_work_is_told_to_stop() -> None:
    started = threading.Event()

    def work(stop: threading.Event) -> None:
        started.set()
        assert stop.wait(timeout=60)
        raise InterruptedError

    task = asyncio.create_task(in_stoppable_thread(work))
    await asyncio.to_thread(started.wait, 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_stop_iteration_in_a_thread_reaches_its_caller() -> None:
    with pytest.raises(RuntimeError, match="StopIteration"):
        async with asyncio.timeout(60):
            await in_thread(next, iter(()))
