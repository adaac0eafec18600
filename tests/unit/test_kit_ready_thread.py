"""A thread that is ready works at once, whatever the pool does."""

from __future__ import annotations

import asyncio
import threading

import pytest

from shorthorn.kit.ready_thread import ReadyThread
from shorthorn.kit.threads import MAX_WORKERS, in_thread


async def test_it_works_while_every_place_in_the_pool_is_taken() -> None:
    release, done = threading.Event(), threading.Event()
    busy = [asyncio.ensure_future(in_thread(release.wait)) for _ in range(MAX_WORKERS * 2)]
    try:
        async with ReadyThread() as thread:
            await thread.run(done.set)
        assert done.is_set()
    finally:
        release.set()
        await asyncio.gather(*busy)


async def test_what_the_work_raises_is_raised() -> None:
    def fail() -> None:
        raise OSError(5, "disk")

    with pytest.raises(OSError, match="disk"):
        async with ReadyThread() as thread:
            await thread.run(fail)


async def test_a_cancellation_comes_when_the_work_has_ended() -> None:
    entered, release, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        entered.set()
        release.wait()
        ended.set()

    async def hold() -> None:
        async with ReadyThread() as thread:
            await thread.run(work)

    task = asyncio.ensure_future(hold())
    await in_thread(entered.wait)
    task.cancel()
    done, _ = await asyncio.wait({task}, timeout=0.05)
    assert not done
    release.set()
    await asyncio.wait({task})
    assert task.cancelled()
    assert ended.is_set()


async def test_a_thread_that_got_no_work_ends() -> None:
    before = ready_threads()
    async with ReadyThread():
        (thread,) = ready_threads() - before
    await in_thread(thread.join, 60)
    assert not thread.is_alive()


def ready_threads() -> set[threading.Thread]:
    """By name: threads of earlier tests' pools come to their end in between."""
    return {thread for thread in threading.enumerate() if thread.name == "shorthorn-ready"}
