"""What tells files apart before an upload goes on."""

from __future__ import annotations

import hashlib
import random

import pytest

from shorthorn.domain.upload_sample import LAST_BYTES, PIECE_BYTES, sample_of

DATA = random.Random(3).randbytes(20 << 20)


def sample(data: bytes, offset: int) -> str:
    return sample_of(lambda count, start: data[start : start + count], offset)


@pytest.mark.parametrize("offset", [1, 63, 64, PIECE_BYTES, 5 << 20, len(DATA)])
def test_it_is_of_what_is_before_the_offset_alone(offset: int) -> None:
    assert sample(DATA, offset) == sample(DATA[:offset], offset)
    assert sample(DATA[: offset - 1] + b"\0" + DATA[offset:], offset) != sample(DATA, offset)


def test_it_is_made_as_is_documented() -> None:
    offset = len(DATA) - 7
    step = offset // 64
    pieces = [DATA[i * step : i * step + PIECE_BYTES] for i in range(64)]
    whole = b"".join([*pieces, DATA[offset - LAST_BYTES : offset]])
    assert sample(DATA, offset) == hashlib.sha256(whole).hexdigest()


def test_of_a_short_beginning_every_byte_counts() -> None:
    for at in range(0, 2 << 20, 99_991):
        other = bytearray(DATA[: 2 << 20])
        other[at] ^= 1
        assert sample(bytes(other), len(other)) != sample(DATA, len(other))


def test_nothing_and_a_shorter_file_have_none() -> None:
    assert sample(DATA, 0) == ""
    assert sample(DATA[:100], 101) == ""


def test_reads_may_be_short() -> None:
    def read(count: int, start: int) -> bytes:
        return DATA[start : start + min(count, 1000)]

    assert sample_of(read, 3 << 20) == sample(DATA, 3 << 20)
