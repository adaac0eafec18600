"""Watches that tell when an object got where it was wanted, so that nobody is asked in a loop.

Owns: following one kind of the service's objects. Must never: change any.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

from bench.workspace import BenchFailed
from shorthorn.kube.informer import as_mapping

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from lightkube import AsyncClient

_WAIT_S = 300.0


class Watch:
    """Remembers when each object first was as wanted, and hears of deletions.

    `on_change` is told of every object that comes or changes, and when (`time.perf_counter`).
    """

    def __init__(self, is_wanted: Callable[[Any], bool]) -> None:
        self._is_wanted = is_wanted
        self._changed = asyncio.Event()
        self.on_change: Callable[[Any, float], None] = lambda obj, when: None
        self.seen: dict[str, float] = {}
        self.reached: dict[str, float] = {}

    async def follow(self, client: AsyncClient, resource: Any) -> None:
        """Take note of every change, until cancelled."""
        async for change, found in client.watch(resource):
            obj, now = as_mapping(found), time.perf_counter()
            name = obj["metadata"]["name"]
            if change == "DELETED":
                self.seen.pop(name, None)
            else:
                self.seen.setdefault(name, now)
                if self._is_wanted(obj):
                    self.reached.setdefault(name, now)
                self.on_change(obj, now)
            self._changed.set()

    async def until(self, is_met: Callable[[], bool]) -> None:
        """Wait for it. Raises BenchFailed after a long time."""
        try:
            async with asyncio.timeout(_WAIT_S):
                while not is_met():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise BenchFailed(f"not all objects got there within {_WAIT_S:.0f} s") from None


@contextlib.asynccontextmanager
async def watching(
    client: AsyncClient, resource: Any, is_wanted: Callable[[Any], bool]
) -> AsyncIterator[Watch]:
    """Follow a kind, in the client's namespace, until the end."""
    watch = Watch(is_wanted)
    task = asyncio.create_task(watch.follow(client, resource))
    try:
        yield watch
    finally:
        task.cancel()
        await asyncio.wait([task])
