"""`shorthorn image download` against an edge that cuts, holds and lies."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import resource
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.fakes.byte_edge import Trouble
from tests.integration.daemon_process import poll
from tests.integration.image_shell import ended, killed, shell

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.integration.image_shell import Shell

MIB = 1 << 20
CONTENT = random.Random(1).randbytes(3 * MIB)


@pytest.fixture
async def user(tmp_path: Path) -> AsyncIterator[Shell]:
    async with shell(tmp_path) as made:
        await made.make_image("golden", CONTENT)
        yield made


def files(user: Shell) -> set[str]:
    """The names of what downloads left."""
    return {path.name for path in user.folder.glob("golden*")}


async def test_an_artifact_arrives_with_its_checksum_under_the_name_of_its_format(
    user: Shell,
) -> None:
    ran = await user.does("download", "golden")
    assert (user.folder / "golden.qcow2").read_bytes() == CONTENT
    assert files(user) == {"golden.qcow2"}
    checksum = hashlib.sha512(CONTENT).hexdigest()
    assert ran.out == f"golden.qcow2: 3MiB, SHA-512 {checksum} as it should be\n"
    assert "golden: 3MiB of 3MiB (100 %)" in ran.err


@pytest.mark.parametrize("form", ["artifact", "raw"])
async def test_a_connection_that_is_cut_is_taken_up_by_range(user: Shell, form: str) -> None:
    user.edge.images["golden", "raw"] = CONTENT
    user.edge.troubles = [Trouble(cut_after=MIB), Trouble(cut_after=MIB)]
    await user.does("download", "golden", "golden.img", "--as", form)
    assert (user.folder / "golden.img").read_bytes() == CONTENT
    first, *later = user.edge.ranges
    assert first == ""
    assert later
    assert all(asked.startswith("bytes=") for asked in later)
    assert files(user) == {"golden.img"}


@pytest.mark.parametrize("form", ["qcow2", "raw.zst"])
async def test_what_cannot_be_resumed_begins_anew(user: Shell, form: str) -> None:
    user.edge.images["golden", form] = CONTENT
    user.edge.troubles = [Trouble(cut_after=MIB)]
    await user.does("download", "golden", "--as", form)
    assert user.edge.ranges == ["", ""]
    assert (user.folder / f"golden.{form}").read_bytes() == CONTENT


async def test_a_killed_download_goes_on_and_its_checksum_is_that_of_all(user: Shell) -> None:
    user.edge.troubles = [Trouble(hold_after=2 * MIB)]
    process = await user.start("download", "golden")
    part = user.folder / "golden.qcow2.part"
    await asyncio.wait_for(user.edge.held.wait(), 60)
    await asyncio.to_thread(poll, lambda: part.exists() and part.stat().st_size >= MIB)
    assert not (user.folder / "golden.qcow2").exists()
    await killed(process)
    user.edge.go_on.set()
    there = part.stat().st_size
    ran = await user.does("download", "golden")
    assert user.edge.ranges[-1] == f"bytes={there}-"
    assert "as it should be" in ran.out
    assert (user.folder / "golden.qcow2").read_bytes() == CONTENT
    assert files(user) == {"golden.qcow2"}


async def test_ctrl_c_says_that_the_same_command_goes_on(user: Shell) -> None:
    user.edge.troubles = [Trouble(hold_after=2 * MIB)]
    process = await user.start("download", "golden")
    await asyncio.wait_for(user.edge.held.wait(), 60)
    process.send_signal(signal.SIGINT)
    ran = await ended(process)
    user.edge.go_on.set()
    assert ran.code == 130
    assert "the same command goes on with the download" in ran.err
    await user.does("download", "golden")
    assert (user.folder / "golden.qcow2").read_bytes() == CONTENT


async def test_a_list_that_nobody_reads_ends_without_a_word(user: Shell) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = await user.start("ls", stdout=writing)
    os.close(writing)
    assert process.stderr is not None
    assert (await process.stderr.read(), await process.wait()) == (b"", 141)


async def test_a_download_without_a_byte_leaves_nothing(user: Shell) -> None:
    user.edge.troubles = [Trouble(status=403, message="not today")]
    assert "not today" in await user.is_refused("download", "golden")
    assert files(user) == set()


async def test_a_part_of_another_image_is_not_mixed_in(user: Shell) -> None:
    user.edge.troubles = [Trouble(cut_after=MIB), *[Trouble(status=403, message="not today")]]
    assert "not today" in await user.is_refused("download", "golden", "golden.img")
    assert files(user) == {"golden.img.part", "golden.img.part.json"}
    other = random.Random(2).randbytes(3 * MIB)
    await user.make_image("other", other)
    await user.does("download", "other", "golden.img")
    assert (user.folder / "golden.img").read_bytes() == other


async def test_bytes_that_changed_under_the_same_name_begin_anew(user: Shell) -> None:
    """The server's ETag tells, also where the image's own identity does not."""
    user.edge.images["golden", "raw"] = CONTENT
    user.edge.troubles = [Trouble(cut_after=MIB), *[Trouble(status=403, message="not today")]]
    await user.is_refused("download", "golden", "golden.img", "--as", "raw")
    user.edge.images["golden", "raw"] = CONTENT[::-1]
    await user.does("download", "golden", "golden.img", "--as", "raw")
    assert (user.folder / "golden.img").read_bytes() == CONTENT[::-1]


async def test_bytes_that_are_not_the_image_are_not_kept(user: Shell) -> None:
    user.edge.images["golden", "artifact"] = CONTENT[:-1] + b"?"
    said = await user.is_refused("download", "golden")
    assert "checksum mismatch" in said
    assert files(user) == set()


async def test_empty_space_of_a_raw_image_takes_no_room(user: Shell) -> None:
    disk = bytes(8 * MIB) + CONTENT[:MIB] + bytes(8 * MIB)
    user.edge.images["golden", "raw"] = disk
    user.edge.troubles = [Trouble(cut_after=MIB)]
    await user.does("download", "golden", "--as", "raw")
    target = user.folder / "golden.raw"
    assert target.read_bytes() == disk
    assert target.stat().st_blocks * 512 < 2 * MIB


async def test_a_download_goes_through_a_pipe_and_over_a_cut(user: Shell) -> None:
    user.edge.troubles = [Trouble(cut_after=MIB)]
    ran = await user.does("download", "golden", "-")
    assert ran.raw == CONTENT
    assert "as it should be" in ran.err
    assert files(user) == set()


async def test_what_went_through_a_pipe_cannot_begin_anew(user: Shell) -> None:
    user.edge.images["golden", "raw.zst"] = CONTENT
    user.edge.troubles = [Trouble(cut_after=MIB)]
    said = await user.is_refused("download", "golden", "-", "--as", "raw.zst")
    assert "cannot be taken back" in said


async def test_a_file_that_exists_is_replaced_only_by_force(user: Shell) -> None:
    target = user.folder / "golden.qcow2"
    target.write_text("mine")
    assert "--force replaces it" in await user.is_refused("download", "golden")
    assert target.read_text() == "mine"
    await user.does("download", "golden", "--force")
    assert target.read_bytes() == CONTENT


async def test_two_downloads_do_not_write_one_file(user: Shell) -> None:
    user.edge.troubles = [Trouble(hold_after=MIB)]
    process = await user.start("download", "golden")
    await asyncio.wait_for(user.edge.held.wait(), 60)
    assert "in use by another download" in await user.is_refused("download", "golden")
    user.edge.go_on.set()
    assert (await ended(process)).code == 0
    assert (user.folder / "golden.qcow2").read_bytes() == CONTENT


async def test_a_full_disk_keeps_what_came_and_says_so(user: Shell) -> None:
    def full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 * MIB, 2 * MIB))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    said = await user.is_refused("download", "golden", preexec_fn=full)
    assert "golden.qcow2: File too large; the same command goes on" in said
    assert files(user) == {"golden.qcow2.part", "golden.qcow2.part.json"}
    await user.does("download", "golden")
    assert user.edge.ranges[-1].startswith("bytes=")
    assert (user.folder / "golden.qcow2").read_bytes() == CONTENT


async def test_a_reader_that_goes_away_ends_it_quietly(user: Shell) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = await user.start("download", "golden", "-", stdout=writing)
    os.close(writing)
    assert process.stderr is not None
    said = await process.stderr.read()
    assert await process.wait() == 1
    assert b"Broken pipe" in said
    assert b"Traceback" not in said


async def test_an_image_that_is_not_ready_or_not_there_is_refused(user: Shell) -> None:
    await user.does("create", "coming", "--url", "http://example.org/golden.qcow2")
    assert "is not ready" in await user.is_refused("download", "coming")
    assert "not found" in await user.is_refused("download", "none")
    assert "golden has no qcow2" in await user.is_refused("download", "golden", "--as", "qcow2")
    assert "is a directory" in await user.is_refused("download", "golden", user.folder)
    assert "through a pipe" in await user.is_refused("download", "golden", "/dev/null")
