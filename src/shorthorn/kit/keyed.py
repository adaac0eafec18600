"""Operations and locks by key.

Owns the rule that at most one operation runs per object, that a repeated request joins it, and
that it outlives the call that began it: an RPC server cancels the handler at the caller's deadline,
and work that stopped there would leave things half made. Must never know what a key names. Called
by the services, who make the keys.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from shorthorn.domain.errors import OperationPending, Unavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterable

Result = TypeVar("Result")
Key = TypeVar("Key", bound=str)


class KeyedOperations:
    """Runs at most one operation per key; see `run`."""

    def __init__(self) -> None:
        self._running: dict[str, tuple[Hashable, asyncio.Task[Any]]] = {}
        self._is_draining = False

    async def run(
        self, key: str, request: Hashable, work: Callable[[], Awaitable[Result]]
    ) -> Result:
        """Run `work` in a task of its own, or join the one that runs for the same request.

        Args: key: the object worked upon; the same for its creation and its deletion.
            request: what is asked for, compared by equality.
        Returns: what `work` returns, to every caller that joined.
        Raises: OperationPending: something else is being done to `key`. Unavailable: shutting down.
            Whatever `work` raises, to every caller that joined.
        Cancel: only the waiting ends; `work` goes on, and asking again joins it.
        State: when `work` has ended its key is free; results are not remembered.
        """
        if key not in self._running:
            if self._is_draining:
                raise Unavailable("shorthorn", "shutting down")
            task = asyncio.create_task(_await(work), name=f"op:{key}")
            self._running[key] = (request, task)
            task.add_done_callback(lambda done: self._finished(key, done))
        started_for, task = self._running[key]
        if started_for != request:
            raise OperationPending(key)
        result: Result = await asyncio.shield(task)
        return result

    def _finished(self, key: str, task: asyncio.Task[Any]) -> None:
        del self._running[key]
        if not task.cancelled():
            task.exception()  # retrieved: all callers may have gone

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys that are worked upon now."""
        return tuple(self._running)

    async def drain(self, *, timeout_s: float) -> tuple[str, ...]:
        """Refuse new operations and wait for the running ones; cancel those that outlast the time.

        Returns: the keys that were cancelled. May be called again.
        """
        self._is_draining = True
        tasks = {task: key for key, (_, task) in self._running.items()}
        if not tasks:
            return ()
        _, late = await asyncio.wait(tasks, timeout=timeout_s)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late)
        return tuple(sorted(tasks[task] for task in late))


async def _await(work: Callable[[], Awaitable[Result]]) -> Result:
    return await work()


class KeyedLocks(Generic[Key]):
    """A lock for every key that is held or waited for; no other key takes memory."""

    def __init__(self) -> None:
        self._locks: dict[Key, tuple[asyncio.Lock, int]] = {}

    @contextlib.asynccontextmanager
    async def hold(self, keys: Iterable[Key]) -> AsyncIterator[None]:
        """Hold the locks of all `keys`, taken in sorted order so that two holders cannot deadlock.

        Waiters are served first come, first served. A key may not be taken twice by one task.
        """
        async with contextlib.AsyncExitStack() as stack:
            for key in sorted(set(keys)):
                await stack.enter_async_context(self._hold_one(key))
            yield

    @contextlib.asynccontextmanager
    async def _hold_one(self, key: Key) -> AsyncIterator[None]:
        lock, users = self._locks.get(key, (asyncio.Lock(), 0))
        self._locks[key] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks.pop(key)
            if users > 1:
                self._locks[key] = (lock, users - 1)
