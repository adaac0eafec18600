"""Long work that reconcilers start, watch and cancel, but never await.

Owns: one background task per key with its progress and its end. Must never: know what is
transferred. Used by `controllers.image_copies` and `controllers.contents`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from shorthorn.domain import errors
from shorthorn.domain.models import Progress
from shorthorn.domain.ports import ReportProgress

Result = TypeVar("Result")


def failure_of(ended: asyncio.Task[Result]) -> BaseException | None:
    """Return what an ended piece of work failed of, None where it did not."""
    if ended.cancelled():
        return errors.Unavailable("transfer", "it was cancelled")
    return ended.exception()


class Transfers(Generic[Result]):
    """Tasks by key. `on_change(key)` is called when one ends, and at most once per `interval_s`
    while one moves, the first time not before `interval_s`: who is quick tells only the end.
    """

    def __init__(self, on_change: Callable[[str], None], *, interval_s: float = 1.0) -> None:
        self._on_change = on_change
        self._interval_s = interval_s
        self._tasks: dict[str, asyncio.Task[Result]] = {}
        self._progress: dict[str, Progress] = {}
        self._told_at: dict[str, float] = {}

    def start(self, key: str, work: Callable[[ReportProgress], Awaitable[Result]]) -> None:
        """Begin `work` for `key`. There must be none yet."""
        assert key not in self._tasks, f"{key} is already being worked upon"
        self._progress[key] = Progress(0, 0)
        self._told_at[key] = asyncio.get_running_loop().time()

        async def run() -> Result:
            return await work(lambda progress: self._moved(key, progress))

        task = asyncio.create_task(run(), name=f"transfer:{key}")
        self._tasks[key] = task
        task.add_done_callback(lambda _: self._on_change(key))

    def is_known(self, key: str) -> bool:
        """Whether `key` is being worked upon, or has ended and was not forgotten yet."""
        return key in self._tasks

    def progress(self, key: str) -> Progress:
        return self._progress.get(key, Progress(0, 0))

    def find_ended(self, key: str) -> asyncio.Task[Result] | None:
        """Return the task of `key` once it has ended. It stays known until `forget`, so that its
        end can be looked at again where it could not be written down.
        """
        task = self._tasks.get(key)
        return task if task is not None and task.done() else None

    def forget(self, key: str) -> None:
        """Make room for the next piece of work of `key`; the last one must have ended."""
        task = self._tasks.get(key)
        assert task is None or task.done(), f"{key} is still being worked upon"
        self._forget(key)

    async def cancel(self, key: str) -> None:
        """Stop the work of `key` and return when it has stopped; none is success."""
        task = self._tasks.get(key)
        if task is None:
            return
        task.cancel()
        await asyncio.wait([task])
        self._forget(key)

    async def close(self) -> None:
        """Stop everything. What can be resumed stays on disk."""
        for key in list(self._tasks):
            await self.cancel(key)

    def _forget(self, key: str) -> None:
        task = self._tasks.pop(key, None)
        self._progress.pop(key, None)
        self._told_at.pop(key, None)
        if task is not None and task.done() and not task.cancelled():
            task.exception()  # retrieved: nobody may be left to ask

    def _moved(self, key: str, progress: Progress) -> None:
        if key not in self._tasks:
            return  # said by another thread before the end, heard after it
        self._progress[key] = progress
        now = asyncio.get_running_loop().time()
        if now - self._told_at[key] >= self._interval_s:
            self._told_at[key] = now
            self._on_change(key)
