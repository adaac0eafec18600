"""The writer's journal tells a point in time from a torn, early or late copy."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shorthorn.demo import writer
from shorthorn.demo.writer import PAGE_BYTES, PAGE_COUNT, Position, TornCopy, check_copy

WRITES = 700  # every page was overwritten at least once


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the real writer leaves when it is killed somewhere."""
    directory = tmp_path_factory.mktemp("journal")
    with subprocess.Popen([sys.executable, "-m", "shorthorn.demo.writer", directory]) as process:
        deadline = time.monotonic() + 200
        while writer.read_position(directory).ended < WRITES:
            assert process.poll() is None
            assert time.monotonic() < deadline
        process.kill()
    return directory


@pytest.fixture
def journal(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "journal"))


def check(journal: Path, *, earliest: int = 0, latest: int = 10**9) -> Position:
    return check_copy(
        journal, earliest=Position(earliest, earliest), latest=Position(latest, latest)
    )


def drop(path: Path, count_bytes: int) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - count_bytes)


def test_what_a_killed_writer_leaves_is_one_point_in_time(journal):
    found = check(journal, earliest=WRITES)
    assert found.ended >= WRITES
    assert found == writer.read_position(journal)


def test_an_empty_journal_is_the_time_before_the_first_write(tmp_path):
    assert check(tmp_path) == Position(0, 0)


def test_a_write_that_was_made_before_and_is_missing_is_told(journal):
    ended = writer.read_position(journal).ended
    with pytest.raises(TornCopy, match="was made before, and is missing"):
        check(journal, earliest=ended + 1)


def test_a_write_from_afterwards_is_told(journal):
    begun = writer.read_position(journal).begun
    with pytest.raises(TornCopy, match="was made afterwards, and is there"):
        check(journal, latest=begun - 1)


def test_a_later_file_beside_an_earlier_one_is_told(journal):
    drop(journal / "after.log", 2 * 12)
    with pytest.raises(TornCopy, match="not one point in time"):
        check(journal)


def test_half_a_line_is_told(journal):
    drop(journal / "before.log", 5)
    with pytest.raises(TornCopy, match=r"before\.log is not the lines"):
        check(journal)


@pytest.mark.parametrize("slot", [0, 17, PAGE_COUNT - 1])
def test_a_torn_page_is_told(journal, slot):
    with (journal / "pages.bin").open("r+b") as file:
        file.seek(slot * PAGE_BYTES + PAGE_BYTES // 2)
        file.write(bytes(PAGE_BYTES // 2))
    with pytest.raises(TornCopy, match=f"page {slot} "):
        check(journal)


def test_a_page_from_an_earlier_time_is_told(journal, tmp_path):
    earlier = tmp_path / "earlier"
    shutil.copytree(journal, earlier)
    begun = writer.read_position(journal).begun
    stale = (begun - 3) % PAGE_COUNT
    with (earlier / "pages.bin").open("r+b") as file:
        file.seek(stale * PAGE_BYTES)
        file.write(writer._page(begun - 3 - PAGE_COUNT))
    with pytest.raises(TornCopy, match=f"page {stale} "):
        check(earlier)


def test_a_write_that_had_begun_may_have_reached_its_page_or_not(tmp_path):
    for pages in (1, 2):
        directory = tmp_path / str(pages)
        directory.mkdir()
        (directory / "before.log").write_bytes(b"00000000000\n00000000001\n")
        (directory / "pages.bin").write_bytes(b"".join(writer._page(n) for n in range(pages)))
        (directory / "after.log").write_bytes(b"00000000000\n")
        assert check(directory) == Position(2, 1)
