"""What peers say to each other: names of things, their description, and a sparse stream of bytes.

Owns the form on the wire and every check that needs no context: what the decoder lets through lies
inside the file that was declared, in order, each byte once. Must never read or write a file or a
socket. Called by `images.peer_server`, `images.peer_client` and `images.peer_frames`.

    GET /v1/images/<name>/<uuid>            description (JSON)
    GET /v1/images/<name>/<uuid>/data       its artifact from byte ?from=N on, as frames
    GET /v1/snapshots/<id>[/data]           the same of a snapshot

A frame is a kind (1 byte), a length (8 bytes, big endian) and, for data, that many bytes. Frames
have no offsets: each goes on where the last one ended, so nothing can overlap or be out of order.
Each ends at a page of the file or at its end, which bounds their number by the file's size. `END`
repeats the file's size; without it a stream is cut off.
"""

from __future__ import annotations

import re
import struct
from datetime import datetime
from enum import Enum
from typing import TYPE_CHECKING
from urllib.parse import quote

import msgspec

from shorthorn.domain.models import ImageFormat
from shorthorn.images.inspection import SECTOR_BYTES, VIRTUAL_SIZE_LIMIT_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shorthorn.domain.models import ImageKey

#: In every description. A change that an older peer would misread raises it, and the paths' /v1.
FORMAT_VERSION = 1
PAGE_BYTES = 4096
DESCRIPTION_BYTES_MAX = 64 << 10
_HEADER = struct.Struct(">cQ")
HEADER_BYTES = _HEADER.size
_CHECKSUM = re.compile(r"([0-9a-f]{128})?")


class Violation(Exception):
    """A peer does not keep to this form; `problem` is a clause for the user: what it did."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem


class FrameKind(Enum):
    """The first byte of a frame."""

    DATA = b"D"
    HOLE = b"H"
    END = b"E"


class Description(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """What a peer says of an image or a snapshot.

    `size_bytes` is the length of the bytes that are sent, `data_bytes` what of them is no hole.
    `checksum` is their SHA-512; empty while it is still being computed: ask again.
    """

    format: ImageFormat
    size_bytes: int
    virtual_size_bytes: int
    data_bytes: int
    checksum: str
    source: dict[str, str]
    created_at: datetime
    point_in_time: datetime | None
    format_version: int = FORMAT_VERSION


def image_path(key: ImageKey) -> str:
    """Return the path of an image's description; `/data` below it are its bytes."""
    return f"/v1/images/{quote(key.name, safe='')}/{quote(key.uuid, safe='')}"


def snapshot_path(snapshot_id: str) -> str:
    """Return the path of a snapshot's description; `/data` below it are its bytes."""
    return f"/v1/snapshots/{quote(snapshot_id, safe='')}"


def encode_description(description: Description) -> bytes:
    """Return it as JSON; source texts that would make it too long are left out."""
    text = msgspec.json.encode(description)
    if len(text) <= DESCRIPTION_BYTES_MAX:
        return text
    kind = description.source.get("type", "")[:64]
    return msgspec.json.encode(msgspec.structs.replace(description, source={"type": kind}))


def decode_description(text: bytes) -> Description:
    """Return what a peer says, as far as it makes sense. Raises: Violation."""
    try:
        said = msgspec.json.decode(text, type=Description)
    except msgspec.MsgspecError as exc:
        raise Violation(f"describes it in a way that cannot be read: {exc}") from exc
    if said.format_version != FORMAT_VERSION:
        raise Violation(f"describes it in format version {said.format_version}")
    padded = -(-said.size_bytes // SECTOR_BYTES) * SECTOR_BYTES
    if not 0 < said.size_bytes <= VIRTUAL_SIZE_LIMIT_BYTES:
        raise Violation(f"says that it has {said.size_bytes} bytes")
    if not 0 <= said.data_bytes <= said.size_bytes:
        raise Violation(f"says that {said.data_bytes} of its {said.size_bytes} bytes are data")
    if not 0 < said.virtual_size_bytes <= VIRTUAL_SIZE_LIMIT_BYTES or (
        said.format is ImageFormat.RAW and said.virtual_size_bytes != padded
    ):
        raise Violation(
            f"says that {said.size_bytes} bytes are a disk of {said.virtual_size_bytes}"
        )
    if _CHECKSUM.fullmatch(said.checksum) is None:
        raise Violation("names a checksum that is no SHA-512")
    if said.created_at.tzinfo is None:
        raise Violation("names a time without its zone")
    return said


def frame_header(kind: FrameKind, length_bytes: int) -> bytes:
    """Return the first HEADER_BYTES of a frame."""
    return _HEADER.pack(kind.value, length_bytes)


class Hole:
    """So many bytes of the file are not there; they read as zeros."""

    __slots__ = ("length_bytes",)

    def __init__(self, length_bytes: int) -> None:
        self.length_bytes = length_bytes


class FrameDecoder:
    """Turns pieces of a stream, cut anywhere, into data and holes from `offset_bytes` on.

    `position` is the end of what was yielded; it never exceeds `size_bytes`. Keeps no more than
    one header. `is_complete` once END was seen.
    """

    def __init__(self, *, offset_bytes: int, size_bytes: int) -> None:
        assert 0 <= offset_bytes <= size_bytes
        self.position = offset_bytes
        self.is_complete = False
        self._size = size_bytes
        self._header = bytearray()
        self._data_left = 0

    def feed(self, piece: bytes) -> Iterator[memoryview | Hole]:
        """Yield what `piece` completes; data as it comes, in parts of frames.

        Raises: Violation, after all that was right before it was yielded.
        """
        rest = memoryview(piece)
        while rest:
            if self._data_left:
                data = rest[: self._data_left]
                rest = rest[len(data) :]
                self._data_left -= len(data)
                self.position += len(data)
                yield data
                continue
            if self.is_complete:
                raise Violation("goes on after the end")
            taken = rest[: HEADER_BYTES - len(self._header)]
            rest = rest[len(taken) :]
            self._header += taken
            if len(self._header) == HEADER_BYTES:
                hole = self._begin_frame()
                if hole is not None:
                    self.position += hole.length_bytes
                    yield hole

    def _begin_frame(self) -> Hole | None:
        code, length = _HEADER.unpack(self._header)
        self._header.clear()
        try:
            kind = FrameKind(code)
        except ValueError:
            raise Violation(f"sends something unknown at byte {self.position}") from None
        if kind is FrameKind.END:
            if length != self._size or self.position != self._size:
                raise Violation(f"ends after {self.position} of {self._size} bytes")
            self.is_complete = True
            return None
        end = self.position + length
        if length == 0 or end > self._size or (end % PAGE_BYTES and end != self._size):
            raise Violation(
                f"sends {length} bytes at byte {self.position} of a file of {self._size}"
            )
        if kind is FrameKind.HOLE:
            return Hole(length)
        self._data_left = length
        return None
