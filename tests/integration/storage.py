"""The storage that tests run on: small loop-mounted file systems, declared as data.

Owns making and removing them. Uses the machine's own tools and nothing of the package, so that the
code under test does not vouch for itself. Called by `tests/conftest.py`, whose fixtures are what
tests ask for.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import functools
import itertools
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MIB = 1 << 20
GIB = 1 << 30


@dataclass(frozen=True)
class Storage:
    """A kind of file system below a pool."""

    name: str
    mkfs: tuple[str, ...]
    size_bytes: int
    has_reflinks: bool


XFS = Storage("xfs", ("mkfs.xfs", "-q", "-K", "-m", "reflink=1"), GIB, has_reflinks=True)
BTRFS = Storage("btrfs", ("mkfs.btrfs", "-q", "-K"), GIB, has_reflinks=True)
#: Stands for every file system that cannot share blocks: a pool there must be refused or wrapped.
EXT4 = Storage("ext4", ("mkfs.ext4", "-q", "-E", "nodiscard"), GIB, has_reflinks=False)

STORAGES = {storage.name: storage for storage in (XFS, BTRFS, EXT4)}


def require(storage: Storage) -> None:
    """Skip where the machine cannot have `storage`; fail there if the run promises it."""
    missing = []
    if os.geteuid() != 0:
        missing.append("root")
    if shutil.which(storage.mkfs[0], path="/usr/sbin:/sbin:/usr/bin") is None:
        missing.append(storage.mkfs[0])
    if missing:
        reason = f"{storage.name} needs {' and '.join(missing)}"
        if os.environ.get("SHORTHORN_TEST_STORAGE") == "required":
            pytest.fail(reason)
        pytest.skip(reason)


@contextlib.contextmanager
def attached(file: Path) -> Iterator[Path]:
    """Attach a file to a loop device by losetup; detach at the end."""
    device = _run("losetup", "--find", "--show", "--direct-io=on", str(file)).strip()
    try:
        yield Path(device)
    finally:
        _run("losetup", "--detach", device)


@contextlib.contextmanager
def mounted(
    storage: Storage, scratch: Path, *, size_bytes: int | None = None, name: str = ""
) -> Iterator[Path]:
    """Mount a new file system of `storage`'s kind in `scratch`; take everything away at the end.

    Args: name: of the directory in `scratch`; empty: that of the kind.

    What tests have left mounted below it is unmounted as well, and loop devices of its files are
    detached: one failing test shall not fail the next.
    """
    file = scratch / f"{storage.name}.img"
    target = scratch / (name or storage.name)
    target.mkdir()
    with file.open("wb") as image:
        image.truncate(size_bytes or storage.size_bytes)
    with attached(file) as device:
        _run(*storage.mkfs, str(device))
        _run("mount", "-o", "noatime", str(device), str(target))
        try:
            yield target
        finally:
            clear(target)
            _run("umount", str(target))
    file.unlink()
    target.rmdir()


def clear(directory: Path) -> None:
    """Empty `directory`, after unmounting all below it and detaching the loops of its files."""
    loops = _loops_of_files_below(directory)
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
        target, source = line.split(" ")[4], line.partition(" - ")[2].split(" ")[1]
        if target.startswith(f"{directory}/") or source in loops:
            _try("umount", target)
    for device in loops:
        _try("losetup", "--detach", device)
    for entry in directory.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _loops_of_files_below(directory: Path) -> list[str]:
    listing = _run("losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE")
    # A device that somebody else is detaching right now is listed without its file.
    pairs = (line.partition(" ") for line in listing.splitlines())
    return [device for device, _, file in pairs if file.strip().startswith(f"{directory}/")]


def fill_up(directory: Path) -> None:
    """Take every block, then every block that an inode or a directory could still have."""
    directory.mkdir()
    with (directory / "large").open("wb", buffering=0) as file:
        for size in (MIB, 4096):
            until_full(functools.partial(file.write, b"x" * size))
    subprocess.run(["sync", "--file-system", directory], check=False)
    names = (directory / f"{number}-{'x' * 200}" for number in itertools.count())
    until_full(lambda: next(names).write_bytes(b"y" * 64))


def until_full(write: Callable[[], object]) -> None:
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        collections.deque(iter(write, None), maxlen=0)


def allocated_bytes(path: Path) -> int:
    """Return the bytes that a file takes on its file system."""
    return path.stat().st_blocks * 512


def _try(*argv: str) -> None:
    subprocess.run(argv, check=False, capture_output=True)


def _run(*argv: str) -> str:
    result = subprocess.run(argv, check=False, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(argv)}: {result.stderr}")
    return result.stdout
