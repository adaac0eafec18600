"""The sparse, hashing, journalled writer: its bytes, its holes, its promises of durability."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shorthorn.host import extents
from shorthorn.images import staged_writer
from shorthorn.images.staged_writer import BLOCK_BYTES, HOLE_MIN_BYTES, StagedWriter
from shorthorn.kit import process
from shorthorn.kit.threads import in_thread

MIB = 1 << 20
#: Allocated only, reads as zeros (linux/fiemap.h, FIEMAP_EXTENT_UNWRITTEN).
UNWRITTEN = 0x0800


async def _ignore(durable_bytes: int) -> None:
    pass


def _collect(into: list[int]) -> Callable[[int], Awaitable[None]]:
    async def on_durable(durable_bytes: int) -> None:
        into.append(durable_bytes)

    return on_durable


async def _write_all(path: Path, pieces: list[bytes], offset: int = 0) -> str:
    async with StagedWriter(path, offset, _ignore) as writer:
        for piece in pieces:
            await writer.write(piece)
        return await writer.finish()


PIECE = st.one_of(
    st.binary(max_size=300),
    st.integers(0, 3 * HOLE_MIN_BYTES).map(bytes),
    st.integers(0, 200_000).map(lambda length: random.Random(length).randbytes(length)),
)


@settings(max_examples=60)
@given(
    pieces=st.lists(PIECE, max_size=12),
    cut=st.floats(0, 1),
    growth=st.sampled_from([4096, 100_000, 64 * MIB]),
)
def test_any_pieces_make_the_file_and_its_hash_also_after_a_resume(
    pieces: list[bytes], cut: float, growth: int
) -> None:
    content = b"".join(pieces)
    durable = int(len(content) * cut)
    path = Path(os.environ.get("TMPDIR", "/tmp"), f"shorthorn-test-{os.getpid()}")
    try:
        with mock.patch.object(staged_writer, "_GROWTH_BYTES", growth):
            first = asyncio.run(_write_all(path, pieces))
        assert path.read_bytes() == content
        assert first == hashlib.sha512(content).hexdigest()
        with path.open("r+b") as file:  # what lies behind the last checkpoint may be anything
            file.truncate(durable)
            file.seek(durable)
            file.write(b"garbage")
            file.truncate(max(file.tell(), len(content)) + growth)  # as a killed writer leaves it
        assert asyncio.run(_write_all(path, [content[durable:]], durable)) == first
        assert path.read_bytes() == content
    finally:
        path.unlink(missing_ok=True)


async def test_long_runs_of_zeros_are_holes_and_short_ones_are_not(xfs_dir: Path) -> None:
    data = random.Random(1).randbytes(MIB)
    content = data + bytes(9 * MIB) + data + bytes(HOLE_MIN_BYTES // 2) + data + bytes(MIB)
    path = xfs_dir / "file"
    await _write_all(path, [content])
    assert path.read_bytes() == content
    found = await extents.list_extents(path)
    assert sum(extent.length for extent in found) <= 3 * MIB + HOLE_MIN_BYTES
    data_extents = [extent for extent in found if not extent.flags & UNWRITTEN]
    ends = [extent.logical + extent.length for extent in data_extents]
    starts = [extent.logical for extent in data_extents]
    gaps = [start for start, end in zip(starts[1:], ends, strict=False) if start != end]
    assert gaps == [10 * MIB]


async def test_what_is_said_to_be_durable_grows_and_ends_with_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staged_writer, "CHECKPOINT_BYTES", 2 * BLOCK_BYTES)
    monkeypatch.setattr(staged_writer, "CHECKPOINT_INTERVAL_S", 3600)  # not by time as well
    said: list[int] = []
    spoken = asyncio.Event()

    async def on_durable(durable_bytes: int) -> None:
        said.append(durable_bytes)
        spoken.set()

    data = random.Random(2).randbytes(BLOCK_BYTES)
    async with StagedWriter(tmp_path / "file", 0, on_durable) as writer:
        for _ in range(3):
            spoken.clear()
            await writer.write(data)
            await writer.write(data)
            await asyncio.wait_for(spoken.wait(), 30)
        await writer.write(data)
        await writer.finish()
    assert said == [2 * BLOCK_BYTES, 4 * BLOCK_BYTES, 6 * BLOCK_BYTES, 7 * BLOCK_BYTES]


async def test_a_slow_line_is_checkpointed_by_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staged_writer, "CHECKPOINT_INTERVAL_S", 0.05)
    said: list[int] = []
    spoken = asyncio.Event()

    async def on_durable(durable_bytes: int) -> None:
        said.append(durable_bytes)
        spoken.set()

    async with StagedWriter(tmp_path / "file", 0, on_durable) as writer:
        await writer.write(bytes(BLOCK_BYTES))
        await asyncio.wait_for(spoken.wait(), 30)
    assert said == [BLOCK_BYTES]


async def test_suspending_keeps_bytes_that_fill_no_block(tmp_path: Path) -> None:
    said: list[int] = []
    async with StagedWriter(tmp_path / "file", 0, _collect(said)) as writer:
        await writer.write(b"a few bytes")
        await writer.suspend()
    assert said == [11]
    assert (tmp_path / "file").read_bytes() == b"a few bytes"


async def test_leaving_without_finish_abandons_what_was_not_durable(tmp_path: Path) -> None:
    said: list[int] = []
    async with StagedWriter(tmp_path / "file", 0, _collect(said)) as writer:
        await writer.write(b"lost")
    assert said == []


@pytest.mark.root
async def test_a_full_disk_is_raised_by_a_later_write_and_by_finish(tmp_path: Path) -> None:
    directory = tmp_path / "small"
    directory.mkdir()
    await process.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", directory], timeout_s=10)
    data = random.Random(3).randbytes(BLOCK_BYTES)
    try:
        async with StagedWriter(directory / "file", 0, _ignore) as writer:
            with pytest.raises(OSError, match="No space left") as raised:  # noqa: PT012
                for _ in range(40):
                    await writer.write(data)
            assert raised.value.errno == errno.ENOSPC
            with pytest.raises(OSError, match="No space left"):
                await writer.finish()
    finally:
        await process.run(["umount", directory], timeout_s=10)


async def test_a_journal_that_cannot_be_written_fails_the_file(tmp_path: Path) -> None:
    async def refuse(durable_bytes: int) -> None:
        raise OSError(errno.EIO, "journal")

    async with StagedWriter(tmp_path / "file", 0, refuse) as writer:
        await writer.write(b"x" * BLOCK_BYTES)
        with pytest.raises(OSError, match="journal"):
            await writer.finish()


async def test_memory_stays_bounded_when_the_disk_is_slower_than_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer makes its caller wait instead of queueing."""
    gate = asyncio.Event()

    async def slow(work: Callable[..., object], *args: object) -> object:
        if getattr(work, "__name__", "") == "_write_block":
            await gate.wait()
        return await in_thread(work, *args)

    monkeypatch.setattr(staged_writer, "in_thread", slow)
    async with StagedWriter(tmp_path / "file", 0, _ignore) as writer:

        async def feed() -> None:
            for _ in range(20):
                await writer.write(b"x" * BLOCK_BYTES)

        feeding = asyncio.create_task(feed())
        await asyncio.wait({feeding}, timeout=0.2)
        assert not feeding.done()
        assert writer.position <= 8 * BLOCK_BYTES
        gate.set()
        await feeding
        await writer.finish()
    assert (tmp_path / "file").stat().st_size == 20 * BLOCK_BYTES
