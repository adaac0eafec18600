"""One operation per key, joined by retries, outliving its callers; locks by key."""

from __future__ import annotations

import asyncio
import gc

import pytest

from shorthorn.domain.errors import OperationPending, Unavailable
from shorthorn.kit.keyed import KeyedLocks, KeyedOperations


async def test_equal_requests_at_the_same_time_are_one_operation() -> None:
    operations, runs, go_on = KeyedOperations(), 0, asyncio.Event()

    async def work() -> int:
        nonlocal runs
        runs += 1
        await go_on.wait()
        return runs

    callers = [asyncio.create_task(operations.run("v1", "create", work)) for _ in range(10)]
    await asyncio.sleep(0)
    assert operations.keys == ("v1",)
    go_on.set()

    assert await asyncio.gather(*callers) == [1] * 10
    assert not operations.keys
    assert await operations.run("v1", "create", work) == 2  # nothing is remembered


async def test_another_request_for_the_key_is_refused_and_other_keys_run() -> None:
    operations, go_on = KeyedOperations(), asyncio.Event()
    first = asyncio.create_task(operations.run("v1", "create", go_on.wait))
    await asyncio.sleep(0)

    with pytest.raises(OperationPending, match="v1"):
        await operations.run("v1", "delete", go_on.wait)
    other = asyncio.create_task(operations.run("v2", "delete", go_on.wait))

    go_on.set()
    assert await first
    assert await other


async def test_work_goes_on_when_its_caller_is_cancelled_and_a_retry_joins_it() -> None:
    operations, go_on, ended = KeyedOperations(), asyncio.Event(), False

    async def work() -> str:
        nonlocal ended
        await go_on.wait()
        ended = True
        return "made"

    caller = asyncio.create_task(operations.run("v1", "create", work))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert operations.keys == ("v1",)

    retry = asyncio.create_task(operations.run("v1", "create", work))
    await asyncio.sleep(0)
    go_on.set()
    assert await retry == "made"
    assert ended


async def test_an_error_reaches_every_caller_and_frees_the_key() -> None:
    operations = KeyedOperations()

    async def work() -> None:
        await asyncio.sleep(0)
        raise LookupError("gone")

    callers = [asyncio.create_task(operations.run("v1", "create", work)) for _ in range(3)]
    results = await asyncio.gather(*callers, return_exceptions=True)

    assert [type(result) for result in results] == [LookupError] * 3
    assert not operations.keys


async def test_an_error_that_nobody_waits_for_makes_no_noise() -> None:
    operations, complaints = KeyedOperations(), []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    go_on = asyncio.Event()

    async def work() -> None:
        await go_on.wait()
        raise LookupError("gone")

    caller = asyncio.create_task(operations.run("v1", "create", work))
    await asyncio.sleep(0)
    caller.cancel()
    await asyncio.wait({caller})
    go_on.set()
    await operations.drain(timeout_s=5)
    gc.collect()

    assert complaints == []


async def test_draining_waits_then_cancels_and_refuses_what_is_new() -> None:
    operations, quick_done = KeyedOperations(), False

    async def quick() -> None:
        nonlocal quick_done
        await asyncio.sleep(0.01)
        quick_done = True

    callers = [
        asyncio.create_task(operations.run("quick", "create", quick)),
        asyncio.create_task(operations.run("endless", "create", asyncio.Event().wait)),
    ]
    await asyncio.sleep(0)

    assert await operations.drain(timeout_s=0.5) == ("endless",)

    assert quick_done
    assert not operations.keys
    assert await operations.drain(timeout_s=0.5) == ()
    with pytest.raises(Unavailable, match="shutting down"):
        await operations.run("new", "create", quick)
    results = await asyncio.gather(*callers, return_exceptions=True)
    assert results[0] is None
    assert isinstance(results[1], asyncio.CancelledError)


async def test_draining_lets_a_retry_join_what_still_runs() -> None:
    operations, go_on = KeyedOperations(), asyncio.Event()
    first = asyncio.create_task(operations.run("v1", "create", go_on.wait))
    await asyncio.sleep(0)
    draining = asyncio.create_task(operations.drain(timeout_s=10))
    await asyncio.sleep(0)

    retry = asyncio.create_task(operations.run("v1", "create", go_on.wait))
    await asyncio.sleep(0)
    go_on.set()

    assert await first
    assert await retry
    assert await draining == ()


async def test_locks_of_several_keys_never_deadlock_and_leave_nothing() -> None:
    locks: KeyedLocks[str] = KeyedLocks()
    inside: set[str] = set()

    async def hold(keys: list[str]) -> None:
        async with locks.hold(keys):
            assert not inside & set(keys)
            inside.update(keys)
            await asyncio.sleep(0)
            inside.difference_update(keys)

    pairs = [["a", "b"], ["b", "a"], ["b", "c"], ["c", "a", "a"], ["a"]] * 10
    async with asyncio.timeout(5):
        await asyncio.gather(*(hold(keys) for keys in pairs))

    assert locks._locks == {}


async def test_a_cancelled_waiter_gives_its_place_up() -> None:
    locks: KeyedLocks[str] = KeyedLocks()

    async def hold() -> None:
        async with locks.hold(["a"]):
            pass

    async with locks.hold(["a"]):
        waiter = asyncio.create_task(hold())
        await asyncio.sleep(0)
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
    async with asyncio.timeout(5):
        await hold()
    assert locks._locks == {}
