"""A thread that is there before it is needed.

Owns one thread while it is held, beside the pool of `kit.threads`: for work that must not wait in a
queue once it may begin, because others wait for it (the writers of a frozen file system). Not a
place in the pool: holders who still need another place there would wait for each other. Called by
the engines.
"""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

from shorthorn.kit.threads import wait_to_the_end

if TYPE_CHECKING:
    from collections.abc import Callable


class ReadyThread:
    """`async with` it: inside, a started thread waits for `run`, which may be called once."""

    def __init__(self) -> None:
        self._go = threading.Event()
        self._work: Callable[[], None] | None = None

    async def __aenter__(self) -> ReadyThread:
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        threading.Thread(target=self._stand_by, name="shorthorn-ready", daemon=True).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._go.set()

    async def run(self, work: Callable[[], None]) -> None:
        """Run `work` at once; raise what it raises.

        Cancel: delivered when `work` has ended, as for `kit.threads.in_thread`.
        """
        assert not self._go.is_set(), "one thread does one piece of work"
        self._work = work
        self._go.set()
        await wait_to_the_end(self._ended)

    def _stand_by(self) -> None:
        self._go.wait()
        if self._work is None:
            return
        try:
            self._work()
        except BaseException as exc:
            self._loop.call_soon_threadsafe(self._ended.set_exception, exc)
        else:
            self._loop.call_soon_threadsafe(self._ended.set_result, None)
