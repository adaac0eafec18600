"""The form for new images over real HTTP: where it is, what it refuses, and in which words."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import httpx2
import pytest
from tests.integration.web_site import Browser, Running, running_site

from shorthorn.domain.models import (
    BackingImage,
    BackingImageSpec,
    BackingImageStatus,
    Condition,
    Meta,
)


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with running_site(tmp_path) as site:
        yield site


@pytest.fixture
async def browser(running: Running) -> AsyncIterator[Browser]:
    async with running.signed_in() as signed_in:
        yield signed_in


async def test_an_image_may_have_any_name_and_has_its_page(
    running: Running, browser: Browser
) -> None:
    spec = BackingImageSpec("download", {"url": "https://example.org/a.qcow2"})
    await running.registries.images.create(BackingImage(Meta("new"), spec))
    shown = await browser.http.get("/images/new")
    assert shown.status_code == 200
    assert "<h1>new</h1>" in shown.text
    assert "<h1>New image</h1>" in (await browser.http.get("/new-image")).text


# ---- what is refused, and how it is said --------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": "a" * 254}, "from 2 to 253 characters, this one has 254"),
        ({"name": "a"}, "from 2 to 253 characters, this one has 1"),
        ({"name": "a..b"}, "each part between dots"),
        ({"name": "-ab"}, "begins and ends with a letter or digit"),
        ({"name": "Ab"}, "use lower-case letters"),
        ({"url": "file:///etc/passwd"}, "must be an http:// or https:// URL"),
        ({"url": "http://exa mple/x"}, "without spaces"),
        ({"copies": "٣"}, "write a whole number from 1 to 9999"),
        ({"copies": "0"}, "write a whole number from 1 to 9999"),
        ({"copies": "10000"}, "write a whole number from 1 to 9999"),
    ],
)
async def test_a_field_that_makes_no_sense_is_explained(
    browser: Browser, fields: dict[str, str], words: str
) -> None:
    given = {"from": "download", "name": "golden", "url": "https://h/a", **fields}
    answer = await browser.post("/new-image", **given)
    assert answer.status_code == 400
    assert words in html.unescape(answer.text)
    assert "Invalid value" not in answer.text


async def upload_form(browser: Browser, **fields: str) -> httpx2.Response:
    """Send the form as the script of uploads does."""
    token = await browser.form_token()
    return await browser.http.post(
        "/new-image",
        data={"csrf_token": token, "from": "upload", "name": "mine", **fields},
        headers={"Accept": "application/json"},
    )


@pytest.mark.parametrize(
    ("length", "words"),
    [
        ("9" * 5000, "a number of bytes, of at most 18 digits"),
        ("1" * 30, "a number of bytes, of at most 18 digits"),
        ("٤٠٩٦", "a number of bytes"),
        ("-1", "a number of bytes"),
        ("", "a number of bytes"),
        ("0", "not empty"),
    ],
)
async def test_a_length_that_is_none_is_refused(
    running: Running, browser: Browser, length: str, words: str
) -> None:
    answer = await upload_form(browser, upload_length=length)
    assert answer.status_code == 400
    assert words in answer.json()["message"]
    assert await running.registries.images.find("mine") is None


async def test_a_taken_name_is_said_the_same_to_the_script(
    running: Running, browser: Browser
) -> None:
    await running.registries.images.create(BackingImage(Meta("mine"), BackingImageSpec("upload")))
    answer = await upload_form(browser, upload_length="4096")
    assert answer.status_code == 409
    assert answer.json()["message"] == (
        "There is an image named mine already. Choose another name."
    )


async def test_a_scheme_in_capitals_is_a_scheme(running: Running, browser: Browser) -> None:
    given = {"from": "download", "name": "golden", "url": "HTTPS://h/A.qcow2"}
    assert (await browser.post("/new-image", **given)).status_code == 303
    image = await running.registries.images.find("golden")
    assert image is not None
    assert image.spec.source_parameters == {"url": "https://h/A.qcow2"}


@pytest.mark.parametrize("url", ["http://exa mple/x", "http://h/a b.img", "file:///etc/passwd"])
async def test_what_the_form_refuses_the_look_at_a_url_refuses_too(
    browser: Browser, url: str
) -> None:
    answer = await browser.post("/new-image/check-url", url=url)
    assert "must be an http:// or https:// URL without spaces" in answer.text


# ---- what the script of uploads asks ------------------------------------------------------------


async def test_the_script_is_told_why_an_image_waits(running: Running, browser: Browser) -> None:
    images = running.registries.images
    made = await images.create(BackingImage(Meta("mine"), BackingImageSpec("upload")))
    why = Condition("Ready", False, "NoPool", "no pool has room", datetime.now(UTC))
    status = BackingImageStatus(conditions=(why,))
    await images.update_status(dataclasses.replace(made, status=status))
    await running.until(images, lambda: (i := images.find_cached("mine")) and i.status.conditions)
    told = (await browser.http.get("/new-image/state?name=mine")).json()
    assert (told["state"], told["message"]) == ("waiting", "no pool has room")
    assert told["awaits"] is False
    assert told["formToken"] == await browser.form_token()


async def test_the_script_is_told_a_new_form_token_without_a_name(browser: Browser) -> None:
    told = (await browser.http.get("/new-image/state")).json()
    assert told == {"formToken": await browser.form_token()}


@pytest.mark.parametrize("name", ["gone", "NO%2Fname"])
async def test_the_state_of_no_image_is_not_found(browser: Browser, name: str) -> None:
    assert (await browser.http.get(f"/new-image/state?name={name}")).status_code == 404
