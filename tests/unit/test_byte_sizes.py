"""Numbers of bytes for people: units, rounding, exactness; and in the messages that carry them."""

from __future__ import annotations

import pytest

from shorthorn.domain.byte_sizes import exact_bytes, format_bytes, format_progress
from shorthorn.domain.errors import SizeOutOfRange

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (KIB, "1 KiB"),
        (1536, "1.5 KiB"),
        (MIB - 1, "1 MiB"),
        (700 * MIB, "700 MiB"),
        (GIB + GIB // 10, "1.1 GiB"),
        ((1 << 63) - 1, "8 EiB"),
        (1 << 72, "4096 EiB"),
        (10**400, f"{10**400 >> 60} EiB"),
    ],
)
def test_sizes_are_rounded_for_people(value: int, text: str) -> None:
    assert format_bytes(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 bytes"),
        (512, "512 bytes"),
        (5 * GIB, "5 GiB (5368709120 bytes)"),
        (5 * GIB + 1, "5 GiB (5368709121 bytes)"),
    ],
)
def test_exact_sizes_say_both(value: int, text: str) -> None:
    assert exact_bytes(value) == text


def test_progress_begins_without_a_unit() -> None:
    assert format_progress(0, 734003200) == "0 of 700 MiB"
    assert format_progress(1536 * KIB, 734003200) == "1.5 MiB of 700 MiB"


def test_a_size_out_of_range_is_told_rounded_and_exactly() -> None:
    error = SizeOutOfRange("image golden", 5 * GIB, minimum_bytes=5 * GIB + 512)
    assert str(error) == (
        "image golden: 5 GiB (5368709120 bytes) asked for, at least 5 GiB (5368709632 bytes) needed"
    )
    both = SizeOutOfRange("volume v", 10, minimum_bytes=MIB, maximum_bytes=2 * MIB)
    assert str(both) == (
        "volume v: 10 bytes asked for, at least 1 MiB (1048576 bytes) needed and at most 2 MiB "
        "(2097152 bytes) possible"
    )
