"""How every program starts, is watched over and stops.

Owns: the order (what started last stops first), that a part which ends by itself ends the program,
and that what cannot start says so in one line. Must never: know any part. Base of the programs in
this package.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Coroutine
from typing import Any, ClassVar, Self

from shorthorn.domain.errors import DomainError
from shorthorn.host.errors import HostError
from shorthorn.kit.process import CommandFailed, CommandMissing


class StartFailed(Exception):
    """The program cannot start, or must not go on; the message says why and what to do."""


class Program:
    """`async with` starts and stops it. `failed` ends when a part dies."""

    start_errors: ClassVar[tuple[type[Exception], ...]] = (
        DomainError,
        HostError,
        CommandFailed,
        CommandMissing,
        OSError,
    )
    """What may go wrong at start without being a bug: it becomes StartFailed."""

    def __init__(self) -> None:
        self._stack = contextlib.AsyncExitStack()
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def __aenter__(self) -> Self:
        try:
            await self._start_or_fail()
        except self.start_errors as exc:
            await self._stop()
            raise StartFailed(_explained(exc)) from exc
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop()

    async def _start(self) -> None:
        """Start all parts, each with its end on the stack."""
        raise NotImplementedError

    async def _stop(self) -> None:
        await self._stack.aclose()
        if not self.failed.cancel() and not self.failed.cancelled():
            self.failed.exception()  # retrieved: it was raised, or came while we were stopping

    async def _start_or_fail(self) -> None:
        """Start; a part that dies meanwhile ends it, for the others may wait for that part."""
        starting = asyncio.create_task(self._start(), name="start")
        try:
            await asyncio.wait({starting, self.failed}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not starting.done():
                await _cancel(starting)
        if not starting.cancelled():
            starting.result()
        if self.failed.done():
            self.failed.result()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` until stop; its end before that is a failure of the program."""
        task = asyncio.create_task(work)
        task.add_done_callback(self._ended)
        self._stack.push_async_callback(_cancel, task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or self.failed.done():
            return
        exc = task.exception() or RuntimeError(f"{task.get_name()} ended by itself")
        self.failed.set_exception(exc)


def _explained(exc: Exception) -> str:
    if isinstance(exc, OSError) and exc.errno == errno.ENOSPC:
        return f"{exc}: the disk is full; make some MiB of room there and start again"
    return str(exc)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
