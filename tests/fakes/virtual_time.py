"""An event loop whose time passes at once: whoever sleeps wakes next, and no second is waited.

Only for what awaits timers and nothing outside of the process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Goes to the time of the next timer whenever nothing else is to be done."""

    def __init__(self) -> None:
        super().__init__()
        self._virtual_s = 0.0

    def time(self) -> float:
        return self._virtual_s

    def _run_once(self) -> None:
        inside: Any = self
        if not inside._ready and inside._scheduled:
            self._virtual_s = max(self._virtual_s, inside._scheduled[0].when())
        inside_of: Any = super()
        inside_of._run_once()


def run(main: Coroutine[Any, Any, Result]) -> Result:
    """Run `main` in virtual time, as `asyncio.run` does in real time."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)
