"""Blocking work in a bounded pool of threads.

Owns the one thread pool through which blocking system calls (mount, fsync, reflink, hashing) leave
the event loop, so that nothing holds the loop for more than a few milliseconds and a burst of
requests never starts a thousand threads. Must never know what the work is. Called by `host`, the
engines and everything else that touches a disk.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Args = ParamSpec("Args")
Result = TypeVar("Result")

#: Threads wait for disks, not for processors; more of them only lengthen the disk's queue.
MAX_WORKERS = 16
#: Of work that computes; more would only share the same processors.
_GIVING_WAY_WORKERS = 2
#: Added to the process's own: a third of the share of what competes with it, so that such work
#: ends also on a machine that is never idle. sched(7)
_GIVING_WAY_NICE = 5


@functools.cache
def _pool() -> ThreadPoolExecutor:
    """Make the pool when it is first needed; idle threads are reused before new ones start."""
    return ThreadPoolExecutor(max_workers=MAX_WORKERS, thread_name_prefix="shorthorn-io")


@functools.cache
def _giving_way_pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(
        max_workers=_GIVING_WAY_WORKERS,
        thread_name_prefix="shorthorn-compute",
        initializer=_give_way,
    )


def _give_way() -> None:
    """Lower this thread's priority: on Linux, nice is of a thread. setpriority(2), NOTES."""
    thread = threading.get_native_id()
    os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, 0) + _GIVING_WAY_NICE)


async def in_thread(
    work: Callable[Args, Result], /, *args: Args.args, **kwargs: Args.kwargs
) -> Result:
    """Run `work` in the pool and return or raise what it does.

    Cancel: a system call in a thread cannot be stopped, so the cancellation is delivered when
    `work` has ended; nothing of it runs on unseen. Its result is then dropped, so `work` must leave
    nothing that needs the caller. For work of over a second see `in_stoppable_thread`.
    """
    loop = asyncio.get_running_loop()
    call = functools.partial(contextvars.copy_context().run, _run, work, *args, **kwargs)
    return await wait_to_the_end(loop.run_in_executor(_pool(), call))


async def in_thread_that_gives_way(
    work: Callable[Args, Result], /, *args: Args.args, **kwargs: Args.kwargs
) -> Result:
    """Run computation at a lower priority, for whom nobody waits yet; else as `in_thread`."""
    loop = asyncio.get_running_loop()
    call = functools.partial(contextvars.copy_context().run, _run, work, *args, **kwargs)
    return await wait_to_the_end(loop.run_in_executor(_giving_way_pool(), call))


async def in_stoppable_thread(work: Callable[[threading.Event], Result]) -> Result:
    """Run `work(stop)` in the pool; on cancellation set `stop` and wait until `work` has ended.

    `work` looks at `stop.is_set()` at least every 100 ms or so and then cleans up and returns or
    raises anything at all: the caller sees `CancelledError`.
    """
    stop = threading.Event()
    loop = asyncio.get_running_loop()
    call = functools.partial(contextvars.copy_context().run, _run, work, stop)
    return await wait_to_the_end(loop.run_in_executor(_pool(), call), on_cancel=stop.set)


def _run(work: Callable[Args, Result], /, *args: Args.args, **kwargs: Args.kwargs) -> Result:
    """Call `work`. A future cannot carry StopIteration: its waiter would sleep for ever."""
    try:
        return work(*args, **kwargs)
    except StopIteration as exc:
        raise RuntimeError("work in a thread raised StopIteration") from exc


async def wait_to_the_end(
    future: asyncio.Future[Result], *, on_cancel: Callable[[], None] = lambda: None
) -> Result:
    """Return or raise what `future` does; a cancellation is delivered when it has ended."""
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait({future})
        except asyncio.CancelledError as exc:
            cancelled = exc
            on_cancel()
    if cancelled is not None:
        if not future.cancelled():
            future.exception()  # retrieved: the caller was cancelled and will not look
        raise cancelled
    return future.result()
