"""What is read of a file and sent in pieces is the file, holes and all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shorthorn.images.peer_frames import FrameReader
from shorthorn.images.peer_wire import HEADER_BYTES, PAGE_BYTES, FrameDecoder, Hole


@settings(max_examples=60, deadline=None)
@given(
    pages=st.lists(st.booleans(), max_size=700),
    tail=st.integers(0, PAGE_BYTES - 1),
    start=st.floats(0, 1),
    step=st.integers(1, 1 << 20),
)
def test_a_file_arrives_as_it_is_from_any_byte_on(
    pages: list[bool], tail: int, start: float, step: int
) -> None:
    content = b"".join(os.urandom(PAGE_BYTES) if page else bytes(PAGE_BYTES) for page in pages)
    content += os.urandom(tail)
    offset = int(len(content) * start)
    path = Path(os.environ.get("TMPDIR", "/tmp"), f"shorthorn-frames-{os.getpid()}")
    try:
        with path.open("wb") as file:
            file.truncate(len(content))
            for number, page in enumerate(pages):
                if page:
                    at = number * PAGE_BYTES
                    file.seek(at)
                    file.write(content[at : at + PAGE_BYTES])
            file.seek(len(content) - tail)
            file.write(content[len(content) - tail :])
        stream = _read(path, offset)
        expected = bytes(offset) + content[offset:]
        assert _decode(stream, len(content), offset, step) == expected
        data_pages = sum(pages) + 1
        assert len(stream) <= data_pages * (PAGE_BYTES + 3 * HEADER_BYTES) + 3 * HEADER_BYTES
    finally:
        path.unlink(missing_ok=True)


def _read(path: Path, offset: int) -> bytes:
    reader = FrameReader(path, offset)
    try:
        return b"".join(iter(reader.read_piece, b""))
    finally:
        reader.close()


def _decode(stream: bytes, size: int, offset: int, step: int) -> bytes:
    decoder = FrameDecoder(offset_bytes=offset, size_bytes=size)
    content = bytearray(offset)
    for start in range(0, len(stream), step):
        for part in decoder.feed(stream[start : start + step]):
            content += bytes(part.length_bytes) if isinstance(part, Hole) else part
    assert decoder.is_complete
    return bytes(content)


def test_a_file_that_becomes_shorter_while_it_is_sent_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(3 << 20))
    reader = FrameReader(path, 0)
    try:
        assert reader.read_piece()
        os.truncate(path, 100)
        with pytest.raises(OSError, match="became shorter"):
            list(iter(reader.read_piece, b""))
    finally:
        reader.close()


def test_a_symbolic_link_is_no_file_of_a_pool(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    with pytest.raises(OSError, match="symbolic links"):
        FrameReader(tmp_path / "link", 0)
