"""No bytes from a peer, cut anywhere, crash the decoder or lead it out of the declared file."""

from __future__ import annotations

import contextlib
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shorthorn.domain.models import ImageFormat, ImageKey
from shorthorn.images.peer_wire import (
    DESCRIPTION_BYTES_MAX,
    PAGE_BYTES,
    Description,
    FrameDecoder,
    FrameKind,
    Hole,
    Violation,
    decode_description,
    encode_description,
    frame_header,
    image_path,
)

SIZE = 5 * PAGE_BYTES + 100


def _decode(stream: bytes, *, size: int, offset: int = 0, step: int = 1 << 20) -> bytes:
    """Return what a file of `size` would hold; zeros before `offset`."""
    decoder = FrameDecoder(offset_bytes=offset, size_bytes=size)
    content = bytearray(offset)
    for start in range(0, len(stream), step):
        for part in decoder.feed(stream[start : start + step]):
            content += bytes(part.length_bytes) if isinstance(part, Hole) else part
            assert decoder.position == len(content) <= size
    if not decoder.is_complete:
        raise Violation("ended")
    assert decoder.position == size
    return bytes(content)


FRAME = st.one_of(
    st.tuples(st.sampled_from("DHE?"), st.integers(0, 2 * SIZE), st.integers(0, 2 * SIZE)).map(
        lambda frame: frame[0].encode() + frame[1].to_bytes(8) + b"x" * frame[2]
    ),
    st.integers(1, 2).map(lambda n: frame_header(FrameKind.HOLE, n * PAGE_BYTES)),
    st.integers(1, 2).map(
        lambda n: frame_header(FrameKind.DATA, n * PAGE_BYTES) + b"d" * n * PAGE_BYTES
    ),
    st.just(frame_header(FrameKind.HOLE, 100)),
    st.just(frame_header(FrameKind.END, SIZE)),
    st.binary(max_size=40),
    st.just(frame_header(FrameKind.DATA, (1 << 64) - 1)),
)


@settings(max_examples=400, deadline=None)
@given(frames=st.lists(FRAME, max_size=8), step=st.integers(1, 9000))
def test_no_sequence_of_frames_leads_out_of_the_file(frames: list[bytes], step: int) -> None:
    with contextlib.suppress(Violation):
        assert len(_decode(b"".join(frames), size=SIZE, step=step)) == SIZE


@settings(max_examples=200, deadline=None)
@given(noise=st.binary(max_size=4 * SIZE), step=st.integers(1, 9000))
def test_noise_is_no_file(noise: bytes, step: int) -> None:
    with pytest.raises(Violation):
        _decode(noise, size=SIZE, step=step)


@pytest.mark.parametrize(
    ("stream", "words"),
    [
        (frame_header(FrameKind.DATA, SIZE + PAGE_BYTES), "sends 24676 bytes at byte 0"),
        (frame_header(FrameKind.HOLE, SIZE + 1), "of a file of 20580"),
        (frame_header(FrameKind.HOLE, 0), "sends 0 bytes"),
        (frame_header(FrameKind.HOLE, 10), "sends 10 bytes at byte 0"),
        (frame_header(FrameKind.END, SIZE), "ends after 0 of 20580"),
        (
            frame_header(FrameKind.HOLE, SIZE) + frame_header(FrameKind.END, SIZE + 1),
            "ends after 20580 of 20580",
        ),
        (
            frame_header(FrameKind.HOLE, SIZE) + frame_header(FrameKind.END, SIZE) + b"x",
            "goes on after the end",
        ),
        (b"XTTP/1.1 200 OK", "sends something unknown at byte 0"),
    ],
)
def test_a_broken_rule_is_told(stream: bytes, words: str) -> None:
    with pytest.raises(Violation, match=words):
        _decode(stream, size=SIZE)


def _described(**changes: Any) -> bytes:
    good = {
        "formatVersion": 1,
        "format": "raw",
        "sizeBytes": 700,
        "virtualSizeBytes": 1024,
        "dataBytes": 700,
        "checksum": "ab" * 64,
        "source": {"type": "download"},
        "createdAt": "2026-01-02T00:00:00Z",
        "pointInTime": None,
    }
    return json.dumps(good | changes).encode()


def test_a_description_survives_the_wire() -> None:
    said = decode_description(_described())
    assert decode_description(encode_description(said)) == said
    assert said.format is ImageFormat.RAW


@pytest.mark.parametrize(
    "changes",
    [
        {"formatVersion": 2},
        {"format": "vmdk"},
        {"sizeBytes": 0},
        {"sizeBytes": -5},
        {"sizeBytes": 1 << 62, "virtualSizeBytes": 1 << 62},
        {"sizeBytes": "700"},
        {"virtualSizeBytes": 700},
        {"format": "qcow2", "virtualSizeBytes": 0},
        {"dataBytes": 701},
        {"checksum": "../../etc/passwd"},
        {"checksum": "AB" * 64},
        {"createdAt": "2026-01-02T00:00:00"},
        {"source": ["x"]},
    ],
    ids=str,
)
def test_a_description_that_makes_no_sense_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(Violation):
        decode_description(_described(**changes))


@given(text=st.binary(max_size=200))
def test_noise_is_no_description(text: bytes) -> None:
    with pytest.raises(Violation):
        decode_description(text)


def test_a_description_is_never_longer_than_a_peer_reads() -> None:
    said = Description(
        format=ImageFormat.RAW,
        size_bytes=512,
        virtual_size_bytes=512,
        data_bytes=0,
        checksum="",
        source={"type": "download", "url": "x" * DESCRIPTION_BYTES_MAX},
        created_at=datetime(2026, 1, 2, tzinfo=UTC),
        point_in_time=None,
    )
    text = encode_description(said)
    assert len(text) <= DESCRIPTION_BYTES_MAX
    assert decode_description(text).source == {"type": "download"}


def test_names_are_escaped_in_paths() -> None:
    assert image_path(ImageKey("a/../b", "x?y#z")) == "/v1/images/a%2F..%2Fb/x%3Fy%23z"
