"""One owner of a directory, told by name."""

from __future__ import annotations

import asyncio
import fcntl
import os
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from shorthorn.host.locks import LOCK_NAME, DirectoryLock, DirectoryOwned, Owner, find_owner

if TYPE_CHECKING:
    from pathlib import Path

HOLDER = """
import pathlib, sys
from shorthorn.host.locks import DirectoryLock
DirectoryLock(pathlib.Path(sys.argv[1]), owner="other daemon").acquire()
print("held", flush=True)
sys.stdin.read()
"""


async def start_holder(directory: Path) -> asyncio.subprocess.Process:
    """Start a process that holds the directory until it is killed."""
    holder = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", HOLDER, directory),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert holder.stdout is not None
    assert await holder.stdout.readline() == b"held\n"
    return holder


async def test_a_second_owner_is_refused_by_the_name_of_the_first(tmp_path: Path) -> None:
    holder = await start_holder(tmp_path)
    lock = DirectoryLock(tmp_path, owner="shorthorn")

    with pytest.raises(DirectoryOwned, match=rf"other daemon \(process {holder.pid}\)") as caught:
        lock.acquire()

    assert caught.value.owner == Owner(holder.pid, "other daemon") == find_owner(tmp_path)
    holder.kill()
    await holder.wait()
    lock.acquire()  # the kernel frees what the dead held
    lock.release()


def test_the_owner_is_found_while_it_holds_and_not_afterwards(tmp_path: Path) -> None:
    assert find_owner(tmp_path) is None
    with DirectoryLock(tmp_path, owner="shorthorn"):
        assert find_owner(tmp_path) == Owner(os.getpid(), "shorthorn")
        with pytest.raises(DirectoryOwned):
            DirectoryLock(tmp_path, owner="again").acquire()
    assert find_owner(tmp_path) is None
    with DirectoryLock(tmp_path, owner="second"):
        assert find_owner(tmp_path) == Owner(os.getpid(), "second")


def test_the_name_of_a_dead_predecessor_is_not_given_for_the_owner(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("99999999 dead daemon\n")
    assert find_owner(tmp_path) is None
    with DirectoryLock(tmp_path, owner="shorthorn"):
        (tmp_path / "lock").write_text("99999999 dead daemon\n")  # between lock and name
        with pytest.raises(DirectoryOwned, match="just starting"):
            find_owner(tmp_path)


def test_a_released_lock_may_be_released_again(tmp_path: Path) -> None:
    lock = DirectoryLock(tmp_path, owner="shorthorn")
    lock.release()
    lock.acquire()
    lock.release()
    lock.release()
    assert find_owner(tmp_path) is None


def test_who_looks_for_the_owner_is_not_taken_for_one(tmp_path: Path) -> None:
    # The line of a dead owner, whose number is another process's by now.
    (tmp_path / LOCK_NAME).write_text(f"{os.getpid()} shorthorn\n")
    looking = os.open(tmp_path / LOCK_NAME, os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    ends = threading.Timer(0.1, os.close, [looking])
    ends.start()
    DirectoryLock(tmp_path, owner="me").acquire()
    ends.join()
