"""The URL grammar of handles, held against what Go's net/url itself answered."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shorthorn.domain import go_url

VECTORS = json.loads((Path(__file__).parent / "data/go_url_vectors.json").read_text())["vectors"]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: ascii(vector["url"]))
def test_a_url_reads_as_go_reads_it(vector):
    try:
        values = go_url.query_of(vector["url"]).first_values()
    except go_url.MalformedUrl:
        values = None
    assert values == vector["values"]


def test_a_query_of_too_many_pairs_reads_as_empty():
    at_limit = "bi://h?" + "&".join(f"k{i}=v" for i in range(go_url.PAIRS_MAX))
    assert len(go_url.query_of(at_limit).pairs) == go_url.PAIRS_MAX
    assert go_url.query_of(at_limit + "&one=more").pairs == ()


def test_dropped_pairs_are_told():
    query = go_url.query_of("bi://h?a=1;b=2&c=3&d=%zz")
    assert query.dropped == ("a=1;b=2", "d=%zz")
    assert query.first_values() == {"c": "3"}


def test_an_undecodable_argument_is_read_byte_for_byte():
    assert go_url.query_of("bi://h?a=\udcff").first_values() == {"a": "\ufffd"}
    with pytest.raises(go_url.MalformedUrl, match="Unicode"):
        go_url.query_of("bi://h?a=\ud800")


PIECES = st.sampled_from(["bi://", "[", "]", "%", "%25", "::1", "@", ":", "?", "#", "&", "=", ";"])


@given(st.lists(PIECES | st.text(max_size=4), max_size=12).map("".join))
def test_any_text_is_either_read_or_refused(url):
    with contextlib.suppress(go_url.MalformedUrl):
        go_url.query_of(url)
