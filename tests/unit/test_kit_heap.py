"""Memory goes back to the kernel after work."""

from __future__ import annotations

import asyncio
import ctypes
import os
from pathlib import Path

import pytest

from shorthorn.kit import heap

PIECE_BYTES = 8 << 10
PIECES = 4000


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def leave_free_memory_behind() -> ctypes._Pointer[ctypes.c_char]:
    """Fill pages, free all but the last of them, which keeps the heap's end where it is."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    pieces = [libc.malloc(PIECE_BYTES) for _ in range(PIECES)]
    for piece in pieces:
        ctypes.memset(piece, 1, PIECE_BYTES)
    for piece in pieces[:-1]:
        libc.free(piece)
    return ctypes.cast(pieces[-1], ctypes.POINTER(ctypes.c_char))


def test_trimming_gives_free_memory_back():
    leave_free_memory_behind()
    before = resident_bytes()
    assert heap.trim()
    assert resident_bytes() < before - PIECE_BYTES * PIECES // 2


async def test_the_heap_is_trimmed_again_and_again_until_cancelled(
    monkeypatch: pytest.MonkeyPatch,
):
    trims: asyncio.Queue[None] = asyncio.Queue()
    monkeypatch.setattr(heap, "trim", lambda: trims.put_nowait(None))
    task = asyncio.create_task(heap.keep_small(interval_s=0.001))
    async with asyncio.timeout(60):
        await trims.get()
        await trims.get()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
