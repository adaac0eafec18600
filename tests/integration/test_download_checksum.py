"""Checksums of finished files: exact, fast over holes, stoppable, modest."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import threading
from pathlib import Path

import pytest

from shorthorn.domain.models import Progress
from shorthorn.images.checksum import Sha512Checksummer, sha512_now

MIB = 1 << 20


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param([], id="empty"),
        pytest.param([b"x"], id="one byte"),
        pytest.param([5 * MIB], id="only a hole"),
        pytest.param([b"a" * 5000, 9 * MIB + 1, b"b" * 70000, 3 * MIB], id="mixed"),
        pytest.param([4 * MIB, b"c" * (9 * MIB)], id="hole first"),
    ],
)
async def test_the_checksum_is_that_of_the_exact_bytes(
    tmp_path: Path, layout: list[bytes | int]
) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        for part in layout:
            if isinstance(part, int):
                file.truncate(file.tell() + part)
                file.seek(0, os.SEEK_END)
            else:
                file.write(part)
    seen: list[Progress] = []
    found = await Sha512Checksummer().sha512(path, seen.append)
    await asyncio.sleep(0)
    assert found == hashlib.sha512(path.read_bytes()).hexdigest()
    assert seen[-1].bytes_done == seen[-1].bytes_total == path.stat().st_size


async def test_cancelling_stops_long_before_the_end(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(64 << 30)
    work = asyncio.create_task(Sha512Checksummer().sha512(path, lambda progress: None))
    await asyncio.sleep(0.05)
    work.cancel()
    async with asyncio.timeout(20):  # all of it would take minutes
        with pytest.raises(asyncio.CancelledError):
            await work


async def test_the_event_loop_stays_free_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(random.Random(1).randbytes(64 * MIB))
    work = asyncio.create_task(Sha512Checksummer().sha512(path, lambda progress: None))
    turns = 0
    while not work.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns > 100


@pytest.mark.root
def test_it_runs_at_low_priority_and_gives_that_back(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(8 * MIB)
    own = threading.get_native_id()
    before = os.getpriority(os.PRIO_PROCESS, own)
    seen: list[int] = []
    sha512_now(path, lambda done, total: seen.append(os.getpriority(os.PRIO_PROCESS, own)))
    assert os.getpriority(os.PRIO_PROCESS, own) == before


async def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await Sha512Checksummer().sha512(tmp_path / "none", lambda progress: None)
