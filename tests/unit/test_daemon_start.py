"""How the service starts: what it loads, and what happens when a part dies meanwhile."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from shorthorn.daemon.program import StartFailed
from shorthorn.daemon.standalone import Daemon
from shorthorn.domain.errors import Unavailable
from shorthorn.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path


def test_a_start_does_not_load_what_only_downloads_and_clusters_need() -> None:
    loaded = (
        "import sys, shorthorn.daemon.standalone;"
        "print([m for m in ('aiohttp', 'prometheus_client') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", loaded], capture_output=True, check=True, text=True)
    assert ran.stdout.strip() == "[]"


class PartDies(Daemon):
    """A part that others wait for dies while the service starts."""

    async def _start(self) -> None:
        self._spawn(self._die())
        await asyncio.Event().wait()

    async def _die(self) -> None:
        raise Unavailable("disk", "gone")


async def test_a_part_that_dies_ends_a_start_that_waits_for_it(tmp_path: Path) -> None:
    with pytest.raises(StartFailed, match="disk: gone"):
        async with asyncio.timeout(60), PartDies(Settings(tmp_path)):
            pytest.fail("it is not up")


class PartDiesLater(Daemon):
    """A part dies when all is up."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.let_die = asyncio.Event()

    async def _start(self) -> None:
        self._spawn(self._die())

    async def _die(self) -> None:
        await self.let_die.wait()
        raise Unavailable("disk", "gone")


async def test_a_part_that_dies_later_shows_as_a_failure(tmp_path: Path) -> None:
    async with PartDiesLater(Settings(tmp_path)) as daemon:
        daemon.let_die.set()
        with pytest.raises(Unavailable):
            await daemon.failed


async def test_a_stop_is_no_failure(tmp_path: Path) -> None:
    async with PartDiesLater(Settings(tmp_path)) as daemon:
        failed = daemon.failed
    assert failed.cancelled()
