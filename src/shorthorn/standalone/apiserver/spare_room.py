"""Room that the database has for itself: on a full disk, objects can still be deleted.

Where the pool and the database share a file system, volumes in use may take its last block; then
nothing could be deleted any more, since a deletion is written down first. So blocks are taken while
there are plenty, and nobody else can have them:

- a spare file beside the database. At a start it becomes the log (WAL), which SQLite writes again
  and again in place, and a new one is made. On a full disk a start cuts some of it off, for the
  small files that a start writes;
- free pages in the database itself, for what a checkpoint adds to it.

Never reads or changes an object; all of it is best effort, and nothing fails for want of it. Called
by `store` and, before anything else is written, at the start of the service.
Source: sqlite.org/walformat.html: a log whose header is no header is an empty one.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sqlite3
import struct
import time
from typing import TYPE_CHECKING

from shorthorn.host import syscalls

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_log = logging.getLogger(__name__)

#: SQLite begins its log anew after 4 MiB (1000 pages), unless readers are in the way.
LOG_BYTES = 8 << 20
#: A deletion needs a few pages, and gives back more.
_PAGES_BYTES = 2 << 20
#: For lock, addresses and the service's log, and for what btrfs takes to bring the database up to
#: date: it writes even what has a place elsewhere.
_START_BYTES = 8 << 20
#: Below this a file system is called full. XFS and btrfs never quite reach zero.
_FULL_BYTES = 1 << 20
#: Nothing is set aside on a disk so small that it would be missed.
_PLENTY_BYTES = 16 * (LOG_BYTES + _START_BYTES)
_AGAIN_S = 60.0

#: ioctl_iflags(2); the size in the numbers is that of a long, whatever is written.
_FS_IOC_GETFLAGS = 0x80086601
_FS_IOC_SETFLAGS = 0x40086602
_FS_NOCOW_FL = 0x00800000


class SpareRoom:
    """The spare file of one database, `<database>.spare`. Functions block; for one thread."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self._file = database.with_name(database.name + ".spare")
        self._log_file = database.with_name(database.name + "-wal")
        self._looked_at = float("-inf")

    def make_way(self) -> None:
        """On a full disk, cut off what a start needs; the rest can still be a log."""
        with contextlib.suppress(OSError):
            if self._free_bytes() < _FULL_BYTES and _size_of(self._file) > LOG_BYTES:
                os.truncate(self._file, LOG_BYTES)
                self._sync()  # else btrfs gives nothing back yet
                _log.warning("the disk of %s is full: room set aside is used", self._database)

    def lend(self) -> None:
        """Make the spare file the log, if there is none. The database is not open, and not new."""
        self.keep()
        if self._file.exists() and not self._log_file.exists():
            with contextlib.suppress(OSError):
                os.truncate(self._file, LOG_BYTES)
                self._file.rename(self._log_file)
                self._looked_at = float("-inf")
        self.keep()

    def keep(self) -> None:
        """Make the spare file if it is missing or was cut, and there is room; once a minute."""
        if time.monotonic() - self._looked_at < _AGAIN_S:
            return
        self._looked_at = time.monotonic()
        with contextlib.suppress(OSError):
            if not self._is_whole() and self._free_bytes() > _PLENTY_BYTES:
                self._make()

    @contextlib.contextmanager
    def kept_from_log(self) -> Iterator[None]:
        """Inside, the database is closed for the last time, and SQLite removes the log.

        Its blocks become the spare file again, before somebody else takes them.
        """
        had_room = _size_of(self._log_file) >= LOG_BYTES
        yield
        if had_room and not self._is_whole():
            with contextlib.suppress(OSError):
                self._make()

    def stock(self, db: sqlite3.Connection) -> None:
        """Let the database have free pages. State: on any error it is as it was."""
        try:
            db.execute("DROP TABLE IF EXISTS spare_pages")  # of a process that died in here
            free_bytes = _pragma(db, "freelist_count") * _pragma(db, "page_size")
            if free_bytes >= _PAGES_BYTES or self._free_bytes() < _PLENTY_BYTES:
                return
            db.execute("CREATE TABLE spare_pages (zeros BLOB)")
            db.execute("INSERT INTO spare_pages VALUES (zeroblob(?))", (_PAGES_BYTES,))
            # Else the pages are given back before they were ever written, and own no block.
            db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            db.execute("DROP TABLE spare_pages")
        except (sqlite3.Error, OSError) as exc:
            _log.warning("%s has no free pages set aside: %s", self._database, exc)

    def _is_whole(self) -> bool:
        return _size_of(self._file) >= LOG_BYTES + _START_BYTES

    def _make(self) -> None:
        new = self._file.with_name(f".{self._file.name}.new")
        new.unlink(missing_ok=True)
        descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            _write_in_place(descriptor)
            # Two extents: of one that is cut, btrfs frees nothing.
            os.posix_fallocate(descriptor, 0, LOG_BYTES)
            os.posix_fallocate(descriptor, LOG_BYTES, _START_BYTES)
            new.rename(self._file)
        except BaseException:
            new.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)

    def _sync(self) -> None:
        folder = os.open(self._database.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            syscalls.syncfs(folder)
        finally:
            os.close(folder)

    def _free_bytes(self) -> int:
        told = os.statvfs(self._database.parent)
        return told.f_bavail * told.f_frsize


def _size_of(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def _pragma(db: sqlite3.Connection, name: str) -> int:
    value: int = db.execute(f"PRAGMA {name}").fetchone()[0]
    return value


def _write_in_place(descriptor: int) -> None:
    """Have btrfs write an empty file's later contents in place: else each write wants new blocks.

    SQLite's log has checksums of its own.
    """
    with contextlib.suppress(OSError):  # no such flag: such a file system writes in place
        flags = fcntl.ioctl(descriptor, _FS_IOC_GETFLAGS, bytes(8))
        (value,) = struct.unpack_from("I", flags)
        fcntl.ioctl(descriptor, _FS_IOC_SETFLAGS, struct.pack("II", value | _FS_NOCOW_FL, 0))
