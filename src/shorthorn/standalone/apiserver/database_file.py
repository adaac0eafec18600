"""The database file: whether this program may use it, decided before it is opened.

Owns the format version, the mark of our databases and the lock beside the file. It must never
change a file that it refuses. Called by `store`.
Source: sqlite.org/fileformat.html (the header's user version and application id).
"""

from __future__ import annotations

import fcntl
import os
import struct
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from shorthorn.host.file_systems import BTRFS
from shorthorn.host.mountinfo import mount_of_path

if TYPE_CHECKING:
    from pathlib import Path

#: Format of the database; raised by one with every change of `transactions.TABLES`.
SCHEMA_VERSION = 1
#: "SHRN" in the SQLite header, so that a foreign database is never taken for ours.
APPLICATION_ID = 0x5348524E
_HEADER_BYTES = 100
#: The header's write and read version of a database that has a log.
_WAL_MODE = b"\x02\x02"
_WAL_HEADER_BYTES, _FRAME_HEADER_BYTES = 32, 24
_WAL_MAGIC = (b"\x37\x7f\x06\x82", b"\x37\x7f\x06\x83")


class StoreRefused(Exception):
    """The database file is newer, foreign or owned by another; it is left untouched."""


def lock(path: Path) -> int:
    """Take the lock beside the database (closing the file itself would drop SQLite's locks)."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        os.close(descriptor)
        raise StoreRefused(f"{path}: another API server owns this database") from exc
    return descriptor


def refuse_foreign(path: Path) -> None:
    """Judge the file by its header, without opening it as a database."""
    try:
        with path.open("rb") as file:
            header = file.read(_HEADER_BYTES)
    except FileNotFoundError:
        return
    if not header:
        return
    if len(header) < _HEADER_BYTES or not header.startswith(b"SQLite format 3\0"):
        raise StoreRefused(f"{path} is not an SQLite database")
    version, application = struct.unpack_from(">I", header, 60)[0], header[68:72]
    wal = path.with_name(path.name + "-wal")
    if wal.exists():
        version = max(version, _version_in_wal(wal))
    if application != struct.pack(">I", APPLICATION_ID):
        raise StoreRefused(f"{path} is not a database of this API server")
    if version > SCHEMA_VERSION:
        raise StoreRefused(
            f"{path} has format {version}; this program knows formats up to {SCHEMA_VERSION}. "
            "It was written by a newer version and is left untouched"
        )


def uri(path: Path, **parameters: str) -> str:
    """Return what SQLite opens the file by. See sqlite.org/vfs.html.

    Where files are written elsewhere than where they were (btrfs), the index of the log may not be
    a mapped file: writing to memory for which a full disk has no block kills the process (SIGBUS).
    So it is kept in memory there, and no other process can open the database meanwhile.
    """
    if mount_of_path(path.parent).fs_type == BTRFS:
        parameters["vfs"] = "unix-excl"
    return f"{path.absolute().as_uri()}?{urlencode(parameters)}"


def is_unfinished(path: Path) -> bool:
    """Whether there are no tables yet, or somebody died making them."""
    journal = path.with_name(path.name + "-journal")
    if not path.exists() or journal.exists():
        return True
    with path.open("rb") as file:
        header = file.read(_HEADER_BYTES)
    return header[18:20] != _WAL_MODE


def _version_in_wal(wal: Path) -> int:
    """Return the newest version in an unfinished log; SQLite would write while it looked.

    Source: sqlite.org/fileformat.html, "The Write-Ahead Log". Frames that were not committed count,
    too: whoever wrote them is newer.
    """
    version = 0
    with wal.open("rb") as file:
        header = file.read(_WAL_HEADER_BYTES)
        if len(header) < _WAL_HEADER_BYTES or header[:4] not in _WAL_MAGIC:
            return version
        (page_bytes,) = struct.unpack_from(">I", header, 8)
        salts = header[16:24]
        while len(frame := file.read(_FRAME_HEADER_BYTES + page_bytes)) > _HEADER_BYTES:
            if frame[8:16] != salts:
                break
            if struct.unpack_from(">I", frame)[0] == 1:
                version = max(version, *struct.unpack_from(">I", frame, _FRAME_HEADER_BYTES + 60))
    return version
