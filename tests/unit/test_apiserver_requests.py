"""Paths, options and content types of requests; where the server may listen."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from shorthorn.standalone.apiserver import requests
from shorthorn.standalone.apiserver.listening import ListenRefused, TcpAddress, parse_listen
from shorthorn.standalone.apiserver.negotiation import Form, choose_form, decode_object
from shorthorn.standalone.apiserver.requests import ResourcePath, parse_path
from shorthorn.standalone.apiserver.status import StatusError


@pytest.mark.parametrize(
    ("path", "parsed"),
    [
        ("/api/v1/pods", ResourcePath("", "v1", "", "pods", "", "")),
        ("/api/v1/namespaces", ResourcePath("", "v1", "", "namespaces", "", "")),
        ("/api/v1/namespaces/a", ResourcePath("", "v1", "", "namespaces", "a", "")),
        ("/api/v1/namespaces/a/status", ResourcePath("", "v1", "", "namespaces", "a", "status")),
        ("/api/v1/namespaces/a/pods", ResourcePath("", "v1", "a", "pods", "", "")),
        ("/api/v1/namespaces/a/pods/b/status", ResourcePath("", "v1", "a", "pods", "b", "status")),
        ("/apis/g.io/v1/things/x", ResourcePath("g.io", "v1", "", "things", "x", "")),
        ("/apis/g.io/v1/namespaces/a/things", ResourcePath("g.io", "v1", "a", "things", "", "")),
        ("/api/v1", None),
        ("/apis/g.io/v1", None),
        ("/apis", None),
        ("/metrics", None),
        ("/api/v1/namespaces/a/pods/b/status/more", None),
        ("/api/v1//pods", None),
    ],
)
def test_paths_are_taken_apart(path: str, parsed: ResourcePath | None):
    assert parse_path(path) == parsed


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("", Form.JSON),
        ("*/*", Form.JSON),
        ("application/json", Form.JSON),
        ("application/json;as=Table;v=v1;g=meta.k8s.io,application/json", Form.TABLE_V1),
        ("application/json; as=Table; v=v1beta1; g=meta.k8s.io", Form.TABLE_V1BETA1),
        ("application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1", Form.METADATA),
        ("application/json;as=Other;v=v1,application/json", Form.JSON),
        ("application/vnd.kubernetes.protobuf,application/json", Form.JSON),
        ("application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,*/*", Form.JSON),
    ],
)
def test_the_first_acceptable_form_is_chosen(accept: str, form: Form):
    assert choose_form(accept) is form


@pytest.mark.parametrize("accept", ["application/vnd.kubernetes.protobuf", "text/html", "x"])
def test_what_cannot_be_written_is_not_acceptable(accept: str):
    with pytest.raises(StatusError) as caught:
        choose_form(accept)
    assert caught.value.code == 406


@pytest.mark.parametrize("body", [b"", b"[]", b"1", b'{"a":', b"[" * 100_000])
def test_bodies_that_are_no_object_are_bad_requests(body: bytes):
    with pytest.raises(StatusError) as caught:
        decode_object(body, "application/json")
    assert caught.value.code == 400


@pytest.mark.parametrize("body", [b"a: [", b"- a", b"a: &x [*x]", b"{[a]: b}"])
def test_yaml_that_is_no_object_is_a_bad_request(body: bytes):
    with pytest.raises(StatusError) as caught:
        decode_object(body, "application/yaml")
    assert caught.value.code == 400


LAUGHS = b"a: &a [x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (n, n, b"*%c," % (n - 1) * 9) for n in b"bcdefghij"
)


@pytest.mark.parametrize(
    "body", [b"[" * 200_000, b"a: " + b"{a: " * 200_000, b"- " * 200_000, LAUGHS]
)
def test_yaml_that_would_cost_more_than_its_length_is_a_bad_request(body: bytes):
    """Nesting ends a process that builds it by libyaml; aliases cost memory without end."""
    reader = "import sys; from shorthorn.standalone.apiserver.negotiation import decode_object as d"
    code = f"{reader}; d(sys.stdin.buffer.read(), 'application/yaml')"
    done = subprocess.run(
        [sys.executable, "-c", code], input=body, capture_output=True, check=False, timeout=60
    )
    assert done.returncode == 1
    assert b"StatusError" in done.stderr


@pytest.mark.parametrize(
    "query",
    [
        {"limit": "many"},
        {"timeoutSeconds": "x"},
        {"watch": "maybe"},
        {"allowWatchBookmarks": "2"},
    ],
)
def test_malformed_options_are_bad_requests(query: dict[str, str]):
    with pytest.raises(StatusError) as caught:
        requests.list_options(query)
    assert caught.value.code == 400


@pytest.mark.parametrize(
    ("query", "body", "expected"),
    [
        ({}, None, False),
        ({"dryRun": "All"}, None, True),
        ({}, {"dryRun": ["All"]}, True),
        ({}, {"dryRun": []}, False),
    ],
)
def test_a_dry_run_is_asked_for_in_query_or_body(
    query: dict[str, str],
    body: object,
    expected: bool,
):
    assert requests.is_dry_run(query, body) is expected


def test_an_unknown_dry_run_or_strictness_is_a_bad_request():
    with pytest.raises(StatusError):
        requests.is_dry_run({"dryRun": "Some"})
    with pytest.raises(StatusError):
        requests.field_validation({"fieldValidation": "Loose"})
    with pytest.raises(StatusError):
        requests.parse_version("abc")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:0", TcpAddress("127.0.0.1", 0)),
        ("127.8.8.8:6443", TcpAddress("127.8.8.8", 6443)),
        ("localhost:6443", TcpAddress("127.0.0.1", 6443)),
        ("[::1]:6443", TcpAddress("::1", 6443)),
        ("unix:/run/api.sock", Path("/run/api.sock")),
    ],
)
def test_loopback_and_unix_sockets_may_be_listened_on(text: str, address: TcpAddress | Path):
    assert parse_listen(text) == address


@pytest.mark.parametrize(
    "text",
    [
        "0.0.0.0:6443",
        "[::]:6443",
        "192.168.1.1:6443",
        "example.com:6443",
        "127.0.0.1",
        "127.0.0.1:x",
        "127.0.0.1:70000",
        ":6443",
        "",
    ],
)
def test_no_other_address_may_be_listened_on(text: str):
    with pytest.raises(ListenRefused):
        parse_listen(text)
