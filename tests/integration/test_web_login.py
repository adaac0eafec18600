"""Sessions over real HTTP: links, coming back, signing out, and forms that are older than both."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.integration.web_site import Running, running_site

from shorthorn.web.sessions import SESSION_S

BACK = "/new-image?from=clone"
LOGIN = "/login?next=/new-image%3Ffrom%3Dclone"


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with running_site(tmp_path) as site:
        yield site


async def test_looking_what_is_behind_a_link_does_not_use_it(running: Running) -> None:
    link = f"/login?once={running.links.make()}"
    async with running.browser() as http:
        answer = await http.head(link)
        assert (answer.status_code, "set-cookie" in answer.headers) == (200, False)
        assert (await http.get(link)).status_code == 200
        assert (await http.get("/images")).status_code == 200


async def test_a_used_link_is_no_matter_to_who_is_signed_in(running: Running) -> None:
    link = f"/login?once={running.links.make()}&next=/images"
    async with running.browser() as http:
        await http.get(link)
        again = await http.get(link)
        assert (again.status_code, again.headers["location"]) == (303, "/images")


async def test_a_link_leads_to_the_page_that_was_asked_for(running: Running) -> None:
    async with running.browser() as http:
        asked = await http.get(BACK)
        assert asked.headers["location"] == LOGIN
        cookie = (await http.get(LOGIN)).headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "Path=/login" in cookie
        entered = await http.get(f"/login?once={running.links.make()}")
        assert f'content="0;url={BACK}"' in entered.text
        entered = await http.get(f"/login?once={running.links.make()}")
        assert 'content="0;url=/"' in entered.text


@pytest.mark.parametrize("target", ["//evil.example", "https://evil.example", "/\\evil", "/login"])
async def test_no_cookie_leads_elsewhere(running: Running, target: str) -> None:
    async with running.browser() as http:
        http.cookies.set("shorthorn_next", target.replace("/", "%2F"), path="/login")
        entered = await http.get(f"/login?once={running.links.make()}")
        assert 'content="0;url=/"' in entered.text
        assert "set-cookie" not in (await http.get("/login", params={"next": target})).headers


async def test_signing_out_ends_the_session_for_every_copy_of_its_cookie(
    running: Running,
) -> None:
    async with running.signed_in() as browser, running.browser() as thief:
        thief.cookies.update(browser.http.cookies)
        assert (await thief.get("/images")).status_code == 200
        await browser.post("/logout")
        assert (await thief.get("/images")).headers["location"] == "/login?ended=1&next=/images"


async def test_a_form_without_a_session_leads_back_to_it(running: Running) -> None:
    async with running.browser() as http:
        fields = {"from": "clone", "name": "golden", "image": "other"}
        headers = {"Referer": f"{running.url}{BACK}"}
        answer = await http.post("/new-image", data=fields, headers=headers)
        assert answer.status_code == 303
        assert answer.headers["location"] == LOGIN.replace("?", "?ended=1&")
        page = await http.get(answer.headers["location"])
        assert "Your session has ended" in page.text
        script = await http.post("/new-image", data=fields, headers={"Accept": "application/json"})
        assert (script.status_code, script.json()["reason"]) == (401, "Unauthorized")


async def test_a_form_outlives_signing_in_again(running: Running) -> None:
    async with running.signed_in() as before, running.signed_in() as after:
        token = await before.form_token()
        fields = {"csrf_token": token, "handle": "bi:/x"}
        assert (await after.http.post("/handle", data=fields)).status_code == 200


async def test_a_page_that_is_too_old_says_how_to_go_on(tmp_path: Path) -> None:
    now = [1_000_000.0]
    async with running_site(tmp_path, clock=lambda: now[0]) as running:
        async with running.signed_in() as browser:
            token = await browser.form_token()
        now[0] += 2 * SESSION_S
        async with running.signed_in() as browser:
            headers = {"Referer": f"{running.url}{BACK}"}
            data = {"csrf_token": token}
            answer = await browser.http.post("/new-image", data=data, headers=headers)
            assert answer.status_code == 403
            assert re.search(r"<h1", answer.text)
            assert f'href="{BACK}"' in answer.text
            script = await browser.http.post(
                "/new-image", data=data, headers={"Accept": "application/json"}
            )
            assert script.json()["reason"] == "PageTooOld"


async def test_a_forged_request_to_the_api_is_answered_as_the_api_answers(
    running: Running,
) -> None:
    async with running.signed_in() as browser:
        path = "/api/v1/check-url"
        forged = await browser.http.post(path, json={"url": "https://h/a"})
        assert (forged.status_code, forged.json()["reason"]) == (403, "PageTooOld")
        foreign = await browser.http.post(path, headers={"Origin": "https://evil.example"})
        assert (foreign.status_code, foreign.json()["reason"]) == (403, "ForeignPage")


async def test_a_token_that_counts_no_more_leads_to_the_login_page(
    running: Running,
) -> None:
    session, cookie = running.site.sessions.begin("shorthorn-admin", "revoked")
    async with running.browser() as http:
        http.cookies.set("shorthorn", cookie)
        fields = {
            "csrf_token": running.site.sessions.form_token(session),
            "from": "download",
            "name": "golden",
            "url": "https://example.org/a.qcow2",
        }
        headers = {"Referer": f"{running.url}{BACK}"}
        answer = await http.post("/new-image", data=fields, headers=headers)
        assert answer.status_code == 303
        assert answer.headers["location"] == LOGIN.replace("?", "?ended=1&")
