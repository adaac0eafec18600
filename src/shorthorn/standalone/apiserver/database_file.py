"""The database file: whether this program may use it, decided before it is opened.

Owns the format version, the mark of our databases and the lock beside the file. It must never
change a file that it refuses. Called by `store`.
Source: sqlite.org/fileformat.html (the header's user version and application id).
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

#: Format of the database; raised by one with every change of `_TABLES`.
SCHEMA_VERSION = 1
#: "SHRN" in the SQLite header, so that a foreign database is never taken for ours.
APPLICATION_ID = 0x5348524E
_HEADER_BYTES = 100


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
    if wal.exists() and wal.stat().st_size:
        version = max(version, _version_in_wal(path))
    if application != struct.pack(">I", APPLICATION_ID):
        raise StoreRefused(f"{path} is not a database of this API server")
    if version > SCHEMA_VERSION:
        raise StoreRefused(
            f"{path} has format {version}; this program knows formats up to {SCHEMA_VERSION}. "
            "It was written by a newer version and is left untouched"
        )


def _version_in_wal(path: Path) -> int:
    """Read the version through an unfinished log; a read-only connection never checkpoints it."""
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        version: int = db.execute("PRAGMA user_version").fetchone()[0]
        return version
    finally:
        db.close()
