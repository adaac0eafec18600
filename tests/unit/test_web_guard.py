"""What no page has to think of: headers, hosts, origins, sessions, forged forms."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from shorthorn.web.errors import Problem
from shorthorn.web.guard import (
    CONTENT_SECURITY_POLICY,
    FORM_BYTES_MAX,
    Guard,
    is_own_origin,
    own_path,
)
from shorthorn.web.sessions import Sessions, make_key

KEY = make_key()
SESSIONS = Sessions(KEY)
SESSION, COOKIE = SESSIONS.begin("ann", "token-1")
FORM = SESSIONS.form_token(SESSION)
US = "http://127.0.0.1:80"


async def echo(request: Request) -> Response:
    session = request.state.session
    body = (await request.body()).decode()
    return PlainTextResponse(f"{session.user if session else 'nobody'} {body}")


def refuse(request: Request, problem: Problem) -> Response:
    return PlainTextResponse(problem.reason, problem.status)


@pytest.fixture
async def http() -> AsyncIterator[httpx2.AsyncClient]:
    methods = ["GET", "POST", "DELETE"]
    app = Starlette(routes=[Route(p, echo, methods=methods) for p in ("/x", "/login", "/api/v1/y")])
    hosts = {"127.0.0.1:80", "127.0.0.1"}
    guard = Guard(app, sessions=SESSIONS, cookie="s", hosts=hosts, refuse=refuse)
    transport = httpx2.ASGITransport(app=guard)
    async with httpx2.AsyncClient(transport=transport, base_url=US) as client:
        yield client


def signed_in(**headers: str) -> dict[str, str]:
    return {"Cookie": f"s={COOKIE}", **{k.replace("_", "-"): v for k, v in headers.items()}}


async def test_every_answer_has_the_security_headers(http: httpx2.AsyncClient) -> None:
    for path in ("/x", "/login", "/missing"):
        answer = await http.get(path, headers=signed_in())
        assert answer.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "same-origin"
        assert answer.headers["cache-control"] == "no-store"


async def test_the_policy_allows_nothing_inline() -> None:
    assert "default-src 'none'" in CONTENT_SECURITY_POLICY
    assert "unsafe" not in CONTENT_SECURITY_POLICY


async def test_a_foreign_host_name_is_refused(http: httpx2.AsyncClient) -> None:
    answer = await http.get("/x", headers=signed_in(Host="evil.example"))
    assert answer.status_code == 421


async def test_nobody_is_sent_to_the_login_page_and_back(http: httpx2.AsyncClient) -> None:
    answer = await http.get("/x?a=1")
    assert (answer.status_code, answer.headers["location"]) == (303, "/login?next=/x%3Fa%3D1")
    assert (await http.get("/login")).text == "nobody "


async def test_a_machine_without_a_token_is_unauthorized(http: httpx2.AsyncClient) -> None:
    answer = await http.get("/api/v1/y")
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")


async def test_htmx_leaves_the_page_as_it_is(http: httpx2.AsyncClient) -> None:
    answer = await http.get("/x", headers={"HX-Request": "true"})
    assert (answer.status_code, "hx-redirect" in answer.headers) == (401, False)


async def test_a_script_is_told_in_its_own_way(http: httpx2.AsyncClient) -> None:
    answer = await http.post("/x", headers={"Accept": "application/json"})
    assert (answer.status_code, answer.json()["reason"]) == (401, "Unauthorized")


@pytest.mark.parametrize(
    ("referrer", "back"),
    [
        (f"{US}/form?of=a", "/form%3Fof%3Da"),
        ("http://evil.example/form", "/x%3Fb%3D1"),
        ("", "/x%3Fb%3D1"),
    ],
)
async def test_a_form_of_an_ended_session_is_come_back_to(
    http: httpx2.AsyncClient, referrer: str, back: str
) -> None:
    answer = await http.post("/x?b=1", headers={"Referer": referrer, "Host": "127.0.0.1:80"})
    assert answer.status_code == 303
    assert answer.headers["location"] == f"/login?ended=1&next={back}"


async def test_a_session_that_is_over_is_told_from_none(http: httpx2.AsyncClient) -> None:
    answer = await http.get("/x", headers={"Cookie": "s=over"})
    assert answer.headers["location"] == "/login?ended=1&next=/x"


@pytest.mark.parametrize(
    "path",
    [
        "",
        "images",
        "https://evil.example/",
        "//evil.example",
        "/\\evil.example",
        "/\t/evil.example",
        "/\n/evil.example",
        "//[",
        "http://[",
        "/login?next=/login",
        "/logout",
        "/ü",
        "/" + "x" * 3000,
    ],
)
def test_nobody_is_led_elsewhere(path: str) -> None:
    assert own_path(path) == "/"


@pytest.mark.parametrize("origin", ["http://[", "null", "http://evil.example"])
def test_an_origin_that_is_not_ours_is_known_whatever_it_is(origin: str) -> None:
    assert not is_own_origin(Headers({"host": "127.0.0.1:80", "origin": origin}))


def test_a_page_of_ours_is_gone_on_to() -> None:
    assert own_path("/images?q=a%20b&page=2") == "/images?q=a%20b&page=2"


async def test_a_form_with_its_token_passes_with_its_body(http: httpx2.AsyncClient) -> None:
    fields = {"csrf_token": FORM, "a": "1"}
    answer = await http.post("/x", data=fields, headers=signed_in())
    assert (answer.status_code, answer.text) == (200, f"ann csrf_token={FORM}&a=1")


async def test_the_header_does_as_well(http: httpx2.AsyncClient) -> None:
    answer = await http.delete("/x", headers=signed_in(X_CSRF_Token=FORM))
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "token",
    [
        pytest.param("", id="none"),
        pytest.param("wrong", id="another"),
        pytest.param(FORM[:-1], id="cut off"),
    ],
)
async def test_a_form_without_its_token_is_refused(http: httpx2.AsyncClient, token: str) -> None:
    answer = await http.post("/x", data={"csrf_token": token}, headers=signed_in())
    assert answer.status_code == 403


async def test_a_body_of_another_kind_needs_the_header(http: httpx2.AsyncClient) -> None:
    answer = await http.post("/x", json={"csrf_token": FORM}, headers=signed_in())
    assert answer.status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({"Origin": "http://evil.example"}, id="origin"),
        pytest.param({"Origin": "null"}, id="hidden origin"),
        pytest.param({"Sec-Fetch-Site": "cross-site"}, id="fetch metadata"),
    ],
)
async def test_another_sites_request_is_refused_even_with_the_token(
    http: httpx2.AsyncClient, headers: dict[str, str]
) -> None:
    answer = await http.post("/x", headers=signed_in(X_CSRF_Token=FORM) | headers)
    assert answer.status_code == 403
    assert (await http.post("/login", headers=headers)).status_code == 403


async def test_our_own_origin_passes(http: httpx2.AsyncClient) -> None:
    headers = signed_in(X_CSRF_Token=FORM) | {"Origin": "http://127.0.0.1"}
    assert (await http.post("/x", headers=headers)).status_code == 200


async def test_a_bearer_token_needs_no_form_token(http: httpx2.AsyncClient) -> None:
    answer = await http.post("/api/v1/y", headers={"Authorization": "Bearer abc"})
    assert answer.status_code == 200


async def test_a_form_that_is_too_large_is_refused(http: httpx2.AsyncClient) -> None:
    fields = {"a": "x" * FORM_BYTES_MAX, "csrf_token": FORM}
    assert (await http.post("/x", data=fields, headers=signed_in())).status_code == 413
