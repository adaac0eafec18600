"""URLs and proxies, without a network."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from shorthorn.images.download_journal import DownloadJournal
from shorthorn.images.http_source import SourceRefused, environment_proxy, parse_url, shown
from shorthorn.images.inspection import promised_format


@pytest.mark.parametrize(
    "text",
    [
        "https://bucket.example/a%2Fb.qcow2?X-Amz-Signature=a%2Bb%3D&x=%7e",
        "http://host:8080/disk.img",
        "http://user:secret@host/disk.img",
        "http://[2001:db8::1]/x",
        "http://127.0.0.1/x?y=z&y=z",
    ],
)
def test_a_url_is_asked_for_with_the_very_escapes_it_has(text: str) -> None:
    assert str(parse_url(text)) == text


def test_a_url_with_spaces_or_other_letters_is_escaped() -> None:
    assert str(parse_url("http://host/my disk ä.img#top")) == "http://host/my%20disk%20%C3%A4.img"


@given(st.text(max_size=60))
def test_no_text_crashes_the_parser(text: str) -> None:
    for candidate in (text, f"http://{text}", f"https://host/{text}"):
        try:
            url = parse_url(candidate)
        except SourceRefused:
            continue
        assert url.scheme in ("http", "https")
        assert url.host


def test_messages_show_no_credentials() -> None:
    url = parse_url("https://user:secret@host/disk.img?X-Amz-Signature=secret")
    assert shown(url) == "https://host/disk.img"


def test_the_proxy_variables_are_honoured_but_not_for_loopback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert environment_proxy(URL("http://images.example/x")) is None
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3129")
    monkeypatch.setenv("no_proxy", "inside.example,.corp")
    assert environment_proxy(URL("http://images.example/x")) == URL("http://proxy:3128")
    assert environment_proxy(URL("https://images.example/x")) == URL("http://proxy:3129")
    for host in ("inside.example", "a.corp", "localhost", "127.0.0.1", "127.8.8.8", "[::1]"):
        assert environment_proxy(URL(f"http://{host}/x")) is None


@pytest.mark.parametrize(
    ("etag", "last_modified", "validator"),
    [
        ('"strong"', "Sat", '"strong"'),
        ('W/"weak"', "Sat", "Sat"),
        ('W/"weak"', "", ""),
        ("", "", ""),
    ],
)
def test_only_a_strong_validator_lets_a_download_go_on(
    etag: str, last_modified: str, validator: str
) -> None:
    assert DownloadJournal("u", etag, last_modified).validator == validator


def test_only_the_name_qcow2_promises_a_format() -> None:
    assert promised_format("/a/parrot.qcow2") == "qcow2"
    assert promised_format("/a/noble-server-cloudimg-amd64.img") is None
    assert promised_format("/a/qcow2") is None
