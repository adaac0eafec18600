"""Kubernetes quantities as bytes: never less than asked for, never more than a CSI call carries."""

from __future__ import annotations

import pytest

from shorthorn.domain.errors import InvalidArgument
from shorthorn.standalone.quantity import format_quantity, parse_quantity


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("5Gi", 5 << 30),
        ("1.5Gi", 3 << 29),
        ("100m", 1),
        ("1e3", 1000),
        ("2M", 2_000_000),
        ("8E", 8 * 10**18),
        ("9223372036854775807", 2**63 - 1),
    ],
)
def test_a_quantity_is_whole_bytes_rounded_up(text: str, size_bytes: int):
    assert parse_quantity(text) == size_bytes


@pytest.mark.parametrize(
    "text",
    ["", "abc", "5GB", "9223372036854775808", "99999999999999999999Gi", "1e30", "1e99999999"],
)
def test_what_is_no_quantity_or_does_not_fit_is_refused(text: str):
    with pytest.raises(InvalidArgument):
        parse_quantity(text)


@pytest.mark.parametrize("size_bytes", [0, 1, 513, 1 << 20, 3 << 29, 2**63 - 1])
def test_what_is_written_reads_back(size_bytes: int):
    assert parse_quantity(format_quantity(size_bytes)) == size_bytes
