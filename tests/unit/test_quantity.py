"""Kubernetes quantities as bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shorthorn.domain.errors import InvalidArgument
from shorthorn.standalone.quantity import format_quantity, parse_quantity


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("5Gi", 5 << 30),
        ("1.5Gi", 3 << 29),
        ("500M", 500_000_000),
        ("1k", 1000),
        ("1Ki", 1024),
        ("0", 0),
        ("+7", 7),
        ("-1Ki", -1024),
        ("1e3", 1000),
        ("1E3", 1000),
        ("1E", 10**18),
        ("12e-1", 2),
        ("1500m", 2),
        ("1n", 1),
        (".5Ki", 512),
        ("2.", 2),
        ("1e-30", 1),
    ],
)
def test_quantities_are_whole_bytes_rounded_up(text: str, size_bytes: int) -> None:
    assert parse_quantity(text) == size_bytes


@pytest.mark.parametrize(
    "text",
    ["", "Gi", "5gi", "5 Gi", "5Gib", "0x10", "1e", "NaN", "inf", "1_000", "five", "1e3Ki"],
)
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="such as 5Gi"):
        parse_quantity(text)


@pytest.mark.parametrize("text", ["1e999999999", "1e-999999999", "9" * 4000, "8Ei"])
def test_what_would_fill_the_memory_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_quantity(text)


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(5 << 30, "5Gi"), (1536 << 20, "1536Mi"), (513, "513"), (0, "0"), (1 << 60, "1Ei")],
)
def test_bytes_are_written_in_the_shortest_exact_form(size_bytes: int, text: str) -> None:
    assert format_quantity(size_bytes) == text


@given(st.integers(min_value=0, max_value=2**63 - 1))
def test_what_is_written_is_read_as_the_same(size_bytes: int) -> None:
    assert parse_quantity(format_quantity(size_bytes)) == size_bytes


@given(st.text(max_size=20))
def test_no_text_does_harm(text: str) -> None:
    try:
        parse_quantity(text)
    except InvalidArgument:
        return
