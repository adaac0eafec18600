"""Progress of bytes that arrive, told a few times a second with their speed.

Owns how often and in which words. Must never slow the bytes down. Called by `images.download` and
`images.peer_transfer`.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from shorthorn.domain.models import Progress

if TYPE_CHECKING:
    from shorthorn.domain.ports import ReportProgress
    from shorthorn.images.staged_writer import StagedWriter

_REPORT_INTERVAL_S = 0.5


class Rate:
    """Reports for one transfer; `doing` is the verb before the speed."""

    def __init__(self, report: ReportProgress, doing: str) -> None:
        self.doing = doing
        self._report = report
        self._last_s = time.monotonic()
        self._last_bytes: int | None = None

    def say(self, done_bytes: int, total_bytes: int, message: str = "") -> None:
        """Report, if it is time or there is a message. `total_bytes` is 0 where unknown."""
        now = time.monotonic()
        if self._last_bytes is None:
            self._last_bytes = done_bytes
        elif not message and now - self._last_s < _REPORT_INTERVAL_S:
            return
        if not message:
            speed = (done_bytes - self._last_bytes) / max(now - self._last_s, 1e-6)
            message = f"{self.doing}, {speed / (1 << 20):.1f} MiB/s"
        self._last_s, self._last_bytes = now, done_bytes
        self._report(Progress(done_bytes, total_bytes, message))


async def finish_reporting(writer: StagedWriter, rate: Rate) -> str:
    """Wait for disk and hash, reporting the latter where it lags. Returns and raises as
    `StagedWriter.finish`.
    """
    total = writer.position
    ending = asyncio.create_task(writer.finish(), name="image-finish")
    try:
        while not ending.done():
            rate.say(total, total, f"verified {writer.hashed_bytes} of {total} bytes")
            await asyncio.wait({ending}, timeout=_REPORT_INTERVAL_S)
    finally:
        ending.cancel()
    return await ending
