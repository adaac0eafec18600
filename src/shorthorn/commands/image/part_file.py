"""Where a download goes: a file that is complete or has another name, or a stream.

Owns: FILE.part and what is known of it, sparse writing, the checksum, the rename. Must never: talk
to a server, or put a file of the final name there that is not durable. Called by `downloading`.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Protocol

from shorthorn.domain import errors

_HOLE_BYTES: Final = 64 << 10
"""Zeros are left out in pieces of this size: an extent of many small holes costs more than it saves
(arbitrary)."""
_ZEROS: Final = bytes(_HOLE_BYTES)
_HASH_BLOCK_BYTES: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class Origin:
    """What a part is of: the image's identity on disk, and its form."""

    uuid: str
    form: str


class Sink(Protocol):
    """Takes the bytes of one image, from the first to the last."""

    offset: int
    etag: str

    def begin(self, origin: Origin) -> None:
        """Say what comes. What is there of something else is dropped."""

    def set_etag(self, etag: str) -> None:
        """Say what the server calls these bytes."""

    def restart(self) -> None:
        """Drop what is there. Raises: InvalidArgument: it is on its way already."""

    def write(self, block: bytes) -> None:
        """Take the next bytes. May block."""

    def finish(self, total: int) -> None:
        """Say that all `total` bytes have been written."""

    def checksum(self) -> str:
        """Return the SHA-512 of all bytes. May take its time."""

    def commit(self) -> None:
        """Make them durable under the final name."""

    def discard(self) -> None:
        """Remove what is there."""


class PartFile:
    """`FILE.part`, with `FILE.part.json` beside it that says what it is of.

    One process at a time: the part is locked. Raises, when made: InUse.
    `hashed`: hash while writing, because the checksum will be asked for.
    """

    def __init__(self, target: Path, *, sparse: bool, replace: bool, hashed: bool) -> None:
        self._target = target
        self._part = target.with_name(f"{target.name}.part")
        self._notes = target.with_name(f"{target.name}.part.json")
        self._sparse = sparse
        self._replace = replace
        self._is_hashed = hashed
        self._hash = hashlib.sha512()
        self._hashed = 0
        self.etag = ""
        self._known: dict[str, str] = {}
        self._file: IO[bytes] = self._open()
        self.offset = os.fstat(self._file.fileno()).st_size

    @property
    def part(self) -> Path:
        return self._part

    def begin(self, origin: Origin) -> None:
        notes = _read_notes(self._notes)
        wanted = {"uuid": origin.uuid, "form": origin.form}
        if {key: notes.get(key) for key in wanted} != wanted:
            self.restart()
            notes = wanted
        self.etag, self._known = notes.get("etag", ""), wanted
        self._write_notes()

    def set_etag(self, etag: str) -> None:
        if etag != self.etag:
            self.etag = etag
            self._write_notes()

    def restart(self) -> None:
        self._file.truncate(0)
        self.offset, self._hashed, self._hash = 0, 0, hashlib.sha512()

    def write(self, block: bytes) -> None:
        if self._is_hashed and self._hashed == self.offset:
            self._hash.update(block)
            self._hashed += len(block)
        if self._sparse:
            self._write_sparsely(block)
        else:
            _write_all(self._file.fileno(), block, self.offset)
        self.offset += len(block)

    def finish(self, total: int) -> None:
        assert total == self.offset
        self._file.truncate(total)  # zeros at the end were not written

    def checksum(self) -> str:
        if self._hashed != self.offset:  # an earlier command wrote the beginning
            self._hash, self._hashed = hashlib.sha512(), 0
            self._file.seek(0)
            while block := self._file.read(_HASH_BLOCK_BYTES):
                self._hash.update(block)
                self._hashed += len(block)
        return self._hash.hexdigest()

    def commit(self) -> None:
        os.fsync(self._file.fileno())
        if self._replace:
            self._part.replace(self._target)
        else:
            os.link(self._part, self._target)  # unlike rename, it replaces nothing
            self._part.unlink()
        self._notes.unlink(missing_ok=True)
        directory = os.open(self._target.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        self._file.close()

    def discard(self) -> None:
        self._notes.unlink(missing_ok=True)
        self._part.unlink(missing_ok=True)
        self._file.close()

    def close(self) -> None:
        """Let go of the part and leave it as it is; one without a byte is of no use to anybody."""
        if self._file.closed:
            return
        if not os.fstat(self._file.fileno()).st_size:
            self.discard()
        self._file.close()

    def _open(self) -> IO[bytes]:
        while True:
            file = os.fdopen(
                os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b", 0
            )
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                raise errors.InUse("file", str(self._part), "another download") from None
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), self._part.stat()):
                    return file
            file.close()  # another process completed and renamed it meanwhile

    def _write_sparsely(self, block: bytes) -> None:
        """Leave holes where there are only zeros; beyond the file's end nothing else can be."""
        for start in range(0, len(block), _HOLE_BYTES):
            piece = block[start : start + _HOLE_BYTES]  # a copy: views are compared item by item
            if piece != _ZEROS[: len(piece)]:
                _write_all(self._file.fileno(), piece, self.offset + start)

    def _write_notes(self) -> None:
        text = json.dumps({**self._known, "etag": self.etag})
        fresh = self._notes.with_name(f"{self._notes.name}.new")
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(self._notes)


class Stream:
    """Standard output: what was written cannot be taken back."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._hash = hashlib.sha512()
        self.offset = 0
        self.etag = ""

    def begin(self, origin: Origin) -> None:
        pass

    def set_etag(self, etag: str) -> None:
        self.etag = etag

    def restart(self) -> None:
        if self.offset:
            raise errors.InvalidArgument(
                "file", "the connection broke, and what was written to - cannot be taken back"
            )

    def write(self, block: bytes) -> None:
        self._hash.update(block)
        self._stream.write(block)
        self.offset += len(block)

    def finish(self, total: int) -> None:
        self._stream.flush()

    def checksum(self) -> str:
        return self._hash.hexdigest()

    def commit(self) -> None:
        self._stream.flush()

    def discard(self) -> None:
        pass

    def close(self) -> None:
        pass


def _write_all(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _read_notes(path: Path) -> dict[str, str]:
    """Return what is known of a part; nothing where that cannot be read."""
    try:
        notes = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(k): str(v) for k, v in notes.items()} if isinstance(notes, dict) else {}
