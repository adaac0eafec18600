"""One owner of a directory.

Owns the file `lock` in it, locked with flock(2): the kernel frees it when its holder dies, however.
Must never guess from a process id alone whether an owner lives. Called by the daemon for the data
directory, and by commands that look for it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shorthorn.host.errors import HostError

if TYPE_CHECKING:
    from pathlib import Path

LOCK_NAME = "lock"
#: A new owner writes its name some microseconds after it has the lock.
_NAME_WAIT_S = 1.0


@dataclass(frozen=True, slots=True)
class Owner:
    """Who holds a directory."""

    pid: int
    name: str


class DirectoryOwned(HostError):
    """Another process owns the directory."""

    def __init__(self, directory: Path, owner: Owner | None) -> None:
        self.directory = directory
        self.owner = owner
        who = f"{owner.name} (process {owner.pid})" if owner else "a process that is just starting"
        super().__init__(
            f"{directory} is in use by {who}; only one may use it at a time: "
            "end that one first, or choose another directory"
        )


class DirectoryLock:
    """Exclusive ownership of a directory, from `acquire` until `release` or the process's end."""

    def __init__(self, directory: Path, *, owner: str) -> None:
        self._directory = directory
        self._owner = owner
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock. An owner that does not say its name yet is waited for, a second at most.

        Raises: DirectoryOwned: naming the owner. OSError: the directory is not writable.
        """
        assert self._descriptor is None, "taken already"
        path = self._directory / LOCK_NAME
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._lock(descriptor)
            _write_owner(descriptor, f"{os.getpid()} {self._owner}\n".encode())
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor

    def _lock(self, descriptor: int) -> None:
        deadline = time.monotonic() + _NAME_WAIT_S
        while not _try_lock(descriptor, fcntl.LOCK_EX):
            # Without a name it is a starting owner, or `find_owner` looking for a moment.
            # The latter shares its lock, and the name in the file is then a dead predecessor's.
            is_owned = not _try_lock(descriptor, fcntl.LOCK_SH)
            owner = _read_owner(descriptor) if is_owned else None
            if owner is not None or time.monotonic() > deadline:
                raise DirectoryOwned(self._directory, owner)
            if not is_owned:
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            time.sleep(0.01)

    def release(self) -> None:
        """Give the lock back. The file stays: to remove it would let two hold "the" lock."""
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> DirectoryLock:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def find_owner(directory: Path) -> Owner | None:
    """Return who holds the directory, or None. Blocks for a second at most.

    Raises: DirectoryOwned: somebody does, who does not say its name.
    """
    try:
        descriptor = os.open(directory / LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        deadline = time.monotonic() + _NAME_WAIT_S
        while not _try_lock(descriptor, fcntl.LOCK_SH):
            if (owner := _read_owner(descriptor)) is not None:
                return owner
            if time.monotonic() > deadline:
                raise DirectoryOwned(directory, None)
            time.sleep(0.01)
        return None
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write_owner(descriptor: int, text: bytes) -> None:
    """Say who holds the lock; on a full disk nobody is told, but the lock is held all the same."""
    os.ftruncate(descriptor, 0)
    try:
        os.pwrite(descriptor, text, 0)
    except OSError as exc:
        if exc.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise


def _read_owner(descriptor: int) -> Owner | None:
    """Read the owner's line; None: not written yet, or that of a dead predecessor."""
    pid, _, name = os.pread(descriptor, 4096, 0).decode(errors="replace").partition(" ")
    if not pid.isdecimal() or not os.path.exists(f"/proc/{pid}"):
        return None
    return Owner(int(pid), name.strip())
