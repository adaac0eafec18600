"""Ranges of bytes: which part is asked for, and when a condition makes it count."""

from __future__ import annotations

import pytest

from shorthorn.web.byte_ranges import NotSatisfiable, find_range, is_known, is_match

ETAG = '"abc"'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bytes=0-9", range(10)),
        ("bytes=5-", range(5, 100)),
        ("bytes=-10", range(90, 100)),
        ("bytes=-1000", range(100)),
        ("bytes=90-1000", range(90, 100)),
        ("BYTES=0-0", range(1)),
        pytest.param("bytes=5-" + "9" * 23, range(5, 100), id="an end that no number holds"),
        pytest.param("bytes=-" + "9" * 5000, range(100), id="more than there is"),
        pytest.param("bytes=" + "0" * 30 + "5-9", range(5, 10), id="zeros in front"),
        ("", None),
        ("bytes=", None),
        ("bytes=-", None),
        ("bytes=9-5", None),
        ("bytes=0-1,5-6", None),
        ("items=0-1", None),
        ("bytes=a-b", None),
        ("bytes=٣-", None),
    ],
)
def test_a_range_is_read(text: str, expected: range | None) -> None:
    assert find_range({"range": text} if text else {}, 100, ETAG) == expected


@pytest.mark.parametrize(
    "text", ["bytes=100-", "bytes=500-600", "bytes=-0", "bytes=" + "9" * 30 + "-"]
)
def test_a_range_beyond_the_end_cannot_be_satisfied(text: str) -> None:
    with pytest.raises(NotSatisfiable):
        find_range({"range": text}, 100, ETAG)


@pytest.mark.parametrize(
    ("condition", "etag", "counts"),
    [
        (ETAG, ETAG, True),
        ('"other"', ETAG, False),
        ("Tue, 24 Nov 2026 09:00:00 GMT", ETAG, False),
        (ETAG, "", False),
    ],
)
def test_a_condition_decides_whether_a_range_counts(
    condition: str, etag: str, counts: bool
) -> None:
    found = find_range({"range": "bytes=0-9", "if-range": condition}, 100, etag)
    assert (found is not None) == counts


@pytest.mark.parametrize(
    ("told", "etag", "holds"),
    [
        ("", ETAG, True),
        ("*", "", True),
        (ETAG, ETAG, True),
        (f'"x", {ETAG}', ETAG, True),
        ('"x"', ETAG, False),
        (f"W/{ETAG}", ETAG, False),
        (ETAG, "", False),
    ],
)
def test_if_match_needs_the_same_bytes(told: str, etag: str, holds: bool) -> None:
    assert is_match({"if-match": told} if told else {}, etag) == holds


@pytest.mark.parametrize(
    ("told", "etag", "holds"),
    [
        ("", ETAG, False),
        ("*", ETAG, True),
        ("*", "", False),
        (f'"x", W/{ETAG}', ETAG, True),
        ('"x"', ETAG, False),
    ],
)
def test_if_none_match_is_about_what_a_client_has(told: str, etag: str, holds: bool) -> None:
    assert is_known({"if-none-match": told} if told else {}, etag) == holds
