"""The pages over real HTTP on a real embedded API server: signing in, lists, forms, streams."""

from __future__ import annotations

import asyncio
import dataclasses
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.integration.web_site import Browser, Running, running_site

from shorthorn.domain.image_bytes import VERIFY_AT
from shorthorn.domain.models import (
    BackingImage,
    BackingImageSpec,
    BackingImageStatus,
    Condition,
    CopyState,
    DiskFileStatus,
    ImageCopy,
    ImageCopySpec,
    ImageCopyStatus,
    Meta,
    Volume,
    VolumeSource,
    VolumeSpec,
    VolumeState,
    VolumeStatus,
)
from shorthorn.kube import user_api
from shorthorn.web import live
from shorthorn.web.guard import CONTENT_SECURITY_POLICY
from shorthorn.web.sessions import SESSION_S

PAGES = [
    "/",
    "/images",
    "/new-image",
    "/new-image?from=upload",
    "/new-image?from=export",
    "/new-image?from=clone",
    "/images/golden",
    "/images/golden/delete",
    "/restore?image=golden",
    "/volumes",
    "/handle",
]
NOW = datetime(2026, 1, 1, tzinfo=UTC)
READY = BackingImageStatus(
    uuid="12345678",
    size_bytes=1 << 20,
    virtual_size_bytes=1 << 30,
    conditions=(Condition("Ready", True, "Ready", "", NOW),),
)


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with running_site(tmp_path) as site:
        yield site


@pytest.fixture
async def browser(running: Running) -> AsyncIterator[Browser]:
    async with running.signed_in() as signed_in:
        yield signed_in


async def make_image(running: Running, name: str = "golden") -> BackingImage:
    images = running.registries.images
    spec = BackingImageSpec("download", {"url": f"https://example.org/{name}.qcow2"})
    made = await images.create(BackingImage(Meta(name), spec))
    made = await images.update_status(dataclasses.replace(made, status=READY))
    await running.until(images, lambda: (i := images.find_cached(name)) and i.is_ready)
    return made


# ---- signing in ---------------------------------------------------------------------------------


async def test_a_login_link_signs_in_once(running: Running) -> None:
    link = f"/login?once={running.links.make()}"
    async with running.browser() as first, running.browser() as second:
        answer = await first.get(link)
        assert 'http-equiv="refresh"' in answer.text
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert running.token not in cookie
        assert (await first.get("/images")).status_code == 200
        assert (await second.get(link)).status_code == 403
        assert (await second.get("/images")).status_code == 303


async def test_a_token_signs_in_and_a_wrong_one_does_not(running: Running) -> None:
    async with running.browser() as http:
        wrong = await http.post("/login", data={"token": "nobody's"})
        assert wrong.status_code == 403
        assert "does not know this token" in wrong.text
        assert (await http.post("/login", data={"token": running.token})).status_code == 200
        assert (await http.get("/session")).json() == {"user": "shorthorn-admin"}


async def test_going_on_never_leads_to_another_site(running: Running) -> None:
    async with running.browser() as http:
        for target in ("//evil.example", "https://evil.example", "/\\evil.example"):
            link = {"once": running.links.make(), "next": target}
            answer = await http.get("/login", params=link)
            assert 'content="0;url=/"' in answer.text


async def test_a_session_ends(tmp_path: Path) -> None:
    now = [1_000_000.0]
    async with running_site(tmp_path, clock=lambda: now[0]) as site, site.signed_in() as browser:
        assert (await browser.http.get("/images")).status_code == 200
        now[0] += SESSION_S + 1
        assert (await browser.http.get("/images")).status_code == 303


async def test_signing_out_forgets_the_session(browser: Browser) -> None:
    await browser.post("/logout")
    assert (await browser.http.get("/images")).status_code == 303


async def test_health_and_metrics_need_no_session(running: Running) -> None:
    async with running.browser() as http:
        for path in ("/healthz", "/readyz", "/metrics", "/api/openapi.json", "/favicon.ico"):
            assert (await http.get(path)).status_code == 200


# ---- every page ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PAGES)
async def test_a_page_is_whole_and_runs_nothing_inline(
    running: Running, browser: Browser, path: str
) -> None:
    await make_image(running)
    answer = await browser.http.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert answer.text.rstrip().endswith("</html>")
    assert re.search(r"<h1[ >]", answer.text)
    assert not re.search(r"<script(?![^>]* src=)", answer.text)
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=", answer.text)
    assert "//" not in "".join(re.findall(r'(?:src|href)="(https?:[^"]*)"', answer.text))


async def test_files_are_kept_for_good_by_what_they_hold(browser: Browser) -> None:
    page = await browser.http.get("/images")
    files = re.findall(r'(?:src|href)="(/static/[^"]+)"', page.text)
    assert any("htmx" in file for file in files)
    for file in files:
        answer = await browser.http.get(file)
        assert answer.status_code == 200
        assert "immutable" in answer.headers["cache-control"]
    for path in ("/static/../app.py", "/static/%2e%2e/app.py", "/static/nothing"):
        assert (await browser.http.get(path)).status_code == 404


async def test_a_missing_page_says_so_in_words(browser: Browser) -> None:
    for path in ("/nothing", "/images/nothing"):
        answer = await browser.http.get(path)
        assert answer.status_code == 404
        assert "Not found" in answer.text


# ---- making and deleting ------------------------------------------------------------------------


async def test_a_form_makes_an_image_and_another_deletes_it(
    running: Running, browser: Browser
) -> None:
    url = "https://example.org/a.qcow2"
    made = await browser.post("/new-image", **{"from": "download", "name": "golden", "url": url})
    assert (made.status_code, made.headers["location"]) == (303, "/images/golden")
    assert (await browser.http.get("/images/golden")).status_code == 200
    image = await running.registries.images.find("golden")
    assert image is not None
    assert image.spec.source_parameters == {"url": url}
    assert "No volume was made" in (await browser.http.get("/images/golden/delete")).text
    page = await browser.http.get("/images/golden")
    assert re.search(r'<a [^>]*href="/images/golden/delete" data-dialog', page.text)
    asked = await browser.http.get("/images/golden/delete", headers={"X-Dialog": "1"})
    assert asked.headers["x-dialog"] == "1"
    assert "<html" not in asked.text
    assert '<h2 id="dialog-title">Delete golden?</h2>' in asked.text
    assert "No volume was made" in asked.text
    gone = await browser.post("/images/golden/delete")
    assert (gone.status_code, gone.headers["location"]) == (303, "/images")
    assert await running.registries.images.find("golden") is None


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"name": "UPPER", "url": "https://h/a"}, 400, "lower-case"),
        ({"name": "golden", "url": "ftp://h/a"}, 400, "http:// or https://"),
        ({"name": "golden", "url": ""}, 400, "must not be empty"),
        ({"name": "golden", "url": "https://h/a", "checksum": "abc"}, 400, "SHA-512"),
        ({"name": "taken", "url": "https://h/a"}, 409, "already"),
    ],
)
async def test_a_refusal_is_said_at_the_form_and_what_was_typed_stays(
    running: Running, browser: Browser, fields: dict[str, str], status: int, words: str
) -> None:
    await make_image(running, "taken")
    answer = await browser.post("/new-image", **{"from": "download", **fields})
    assert answer.status_code == status
    assert words in answer.text
    assert 'role="alert"' in answer.text
    assert f'value="{fields["name"]}"' in answer.text


async def test_an_upload_begins_as_an_object_with_its_length(
    running: Running, browser: Browser
) -> None:
    answer = await browser.http.post(
        "/new-image",
        data={
            "csrf_token": await browser.form_token(),
            "from": "upload",
            "name": "mine",
            "upload_length": "4096",
        },
        headers={"Accept": "application/json"},
    )
    assert answer.status_code == 201
    assert answer.json() == {"location": "/images/mine", "upload": "/api/v1/images/mine/upload"}
    image = await running.registries.images.find("mine")
    assert image is not None
    assert image.meta.annotations["shorthorn.io/upload-length"] == "4096"


async def test_a_forged_form_changes_nothing(running: Running, browser: Browser) -> None:
    await make_image(running)
    answer = await browser.http.post("/images/golden/delete", data={"csrf_token": "guessed"})
    assert answer.status_code == 403
    assert await running.registries.images.find("golden") is not None


@pytest.mark.parametrize("action", ["retry", "verify"])
async def test_actions_are_annotations_of_the_image(
    running: Running, browser: Browser, action: str
) -> None:
    await make_image(running)
    assert (await browser.post(f"/images/golden/{action}")).status_code == 303
    image = await running.registries.images.find("golden")
    assert image is not None
    assert image.meta.annotations[f"shorthorn.io/{action}-at"]


async def test_a_handle_is_read(running: Running, browser: Browser) -> None:
    await make_image(running)
    handle = "bi://backing?backingImageDataSourceType=download&backingImage=golden"
    assert "The image exists" in (await browser.post("/handle", handle=handle)).text
    assert "cannot be used" in (await browser.post("/handle", handle="bi:/x")).text


# ---- live ---------------------------------------------------------------------------------------


async def stream_of(browser: Browser, path: str) -> str:
    page = await browser.http.get(path)
    found = re.search(r'sse-connect="([^"]+)"', page.text)
    assert found is not None
    return found[1].replace("&amp;", "&")


async def next_event(lines: AsyncIterator[str]) -> tuple[str, str]:
    name, data = "", []
    async with asyncio.timeout(60):
        async for line in lines:
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                data.append(line.removeprefix("data: "))
            elif not line and name:
                return name, "\n".join(data)
    raise AssertionError("the stream ended")


async def test_a_change_arrives_as_a_row_and_a_new_image_as_a_new_list(
    running: Running, browser: Browser
) -> None:
    image = await make_image(running)
    url = await stream_of(browser, "/images")
    async with browser.http.stream("GET", url) as stream:
        lines = stream.aiter_lines()
        status = dataclasses.replace(image.status, size_bytes=7 << 20)
        await running.registries.images.update_status(dataclasses.replace(image, status=status))
        name, data = await next_event(lines)
        assert name == "row"
        assert 'id="image-golden" hx-swap-oob="true"' in data
        assert "7 MiB" in data
        spec = BackingImageSpec("download", {"url": "https://h/a"})
        await running.registries.images.create(BackingImage(Meta("another"), spec))
        assert await next_event(lines) == ("list", "")


@pytest.mark.parametrize("path", ["/", "/images", "/images/golden", "/volumes"])
async def test_what_changed_before_the_stream_is_told_at_its_start(
    running: Running, browser: Browser, path: str
) -> None:
    await make_image(running)
    url = await stream_of(browser, path)
    behind = re.sub(r"mark=[^&]*", "mark=old", url)
    async with browser.http.stream("GET", behind) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert await next_event(stream.aiter_lines()) == ("list", "")


async def test_an_image_is_told_of_its_own_volumes_and_of_no_others(
    running: Running, browser: Browser
) -> None:
    image = await make_image(running)
    volumes, images = running.registries.volumes, running.registries.images
    for name, source in (("pvc-ours", VolumeSource(image="golden")), ("pvc-other", VolumeSource())):
        await volumes.create(Volume(Meta(name), VolumeSpec(name, "n", "p", 1 << 20, source)))
    await running.until(volumes, lambda: len(volumes.cached()) == 2)
    url = await stream_of(browser, "/images/golden")
    async with browser.http.stream("GET", url) as stream:
        lines = stream.aiter_lines()
        await volumes.delete("pvc-other")
        await running.until(volumes, lambda: volumes.find_cached("pvc-other") is None)
        status = dataclasses.replace(image.status, size_bytes=7 << 20)
        await images.update_status(dataclasses.replace(image, status=status))
        assert (await next_event(lines))[0] == "row"
        await volumes.delete("pvc-ours")
        assert await next_event(lines) == ("list", "")


async def test_parts_of_a_page_have_another_print_when_they_are_others(
    running: Running, browser: Browser
) -> None:
    await make_image(running)

    async def prints() -> dict[str, str]:
        text = (await browser.http.get("/images/golden")).text
        return dict(re.findall(r'<div id="(image-[a-z]+)"[^>]* data-print="([^"]+)"', text))

    before = await prints()
    assert await prints() == before
    await browser.post("/images/golden/verify")
    images = running.registries.images
    await running.until(
        images, lambda: (i := images.find_cached("golden")) and VERIFY_AT in i.meta.annotations
    )
    after = await prints()
    assert {part for part in before if before[part] != after[part]} == {"image-parameters"}


async def test_volumes_have_their_claims_names_on_pages_and_in_streams(
    running: Running, browser: Browser
) -> None:
    volumes = running.registries.volumes
    made = await volumes.create(Volume(Meta("pvc-1"), VolumeSpec("pvc-1", "n", "p", 1 << 20)))
    ready = dataclasses.replace(made, status=VolumeStatus(VolumeState.READY))
    made = await volumes.update_status(ready)
    await running.until(volumes, lambda: volumes.find_cached("pvc-1") == made)
    url = await stream_of(browser, "/volumes")
    async with browser.http.stream("GET", url) as stream:
        lines = stream.aiter_lines()
        await make_persistent_volume(running, "pvc-1", claim="data")
        status = dataclasses.replace(made.status, allocated_bytes=7 << 20)
        await volumes.update_status(dataclasses.replace(made, status=status))
        name, data = await next_event(lines)
        assert (name, "default/data" in data) == ("row", True)
    page = await browser.http.get("/volumes", params={"q": "default/data"})
    assert 'id="volume-pvc-1"' in page.text
    form = await browser.http.get("/new-image", params={"from": "export"})
    assert '<option value="pvc-1" label="pvc-1, claim default/data">' in form.text


async def test_a_claim_that_comes_after_its_volume_is_on_the_page_by_itself(
    running: Running, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "HEARTBEAT_S", 0.5)
    volumes = running.registries.volumes
    await volumes.create(Volume(Meta("pvc-1"), VolumeSpec("pvc-1", "n", "p", 1 << 20)))
    await running.until(volumes, lambda: volumes.cached())
    url = await stream_of(browser, "/volumes")
    async with browser.http.stream("GET", url) as stream:
        await make_persistent_volume(running, "pvc-1", claim="data")
        name, data = await next_event(stream.aiter_lines())
        assert (name, "default/data" in data) == ("row", True)


async def test_claims_that_the_user_may_not_list_are_not_shown(
    running: Running, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    volumes = running.registries.volumes
    await volumes.create(Volume(Meta("pvc-1"), VolumeSpec("pvc-1", "n", "p", 1 << 20)))
    await running.until(volumes, lambda: volumes.cached())
    await make_persistent_volume(running, "pvc-1", claim="data")
    may_list = running.site.access.api.list

    async def list_(token: str, kind: user_api.Resource, **selection: Any) -> Any:
        if kind is user_api.PERSISTENT_VOLUMES:
            raise user_api.Refused(403, "Forbidden", "no")
        return await may_list(token, kind, **selection)

    monkeypatch.setattr(running.site.access.api, "list", list_)
    page = (await browser.http.get("/volumes")).text
    assert 'id="volume-pvc-1"' in page
    assert "default/data" not in page
    assert "your rights do not include listing: PersistentVolume." in page
    assert 'id="volume-pvc-1"' not in (await browser.http.get("/volumes?q=default/data")).text


async def make_persistent_volume(running: Running, handle: str, *, claim: str) -> None:
    body = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": handle},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "capacity": {"storage": "1Mi"},
            "claimRef": {"namespace": "default", "name": claim},
            "csi": {"driver": "driver.longhorn.io", "volumeHandle": handle},
        },
    }
    path = user_api.PERSISTENT_VOLUMES.path()
    await running.site.access.api.request(running.token, "POST", path, body=body)


async def make_copy(running: Running, status: ImageCopyStatus) -> ImageCopy:
    copies = running.registries.copies
    made = await copies.create(
        ImageCopy(Meta("golden-copy"), ImageCopySpec("golden", "12345678", "n1", "p1", "download"))
    )
    made = await copies.update_status(dataclasses.replace(made, status=status))
    await running.until(copies, lambda: copies.find_cached(made.meta.name) == made)
    return made


@pytest.mark.parametrize("path", ["/", "/images", "/images/golden"])
async def test_pages_are_told_of_a_transfer_that_stalls(tmp_path: Path, path: str) -> None:
    async with running_site(tmp_path, stale_s=0.5) as running, running.signed_in() as browser:
        image = await make_image(running)
        file = DiskFileStatus(CopyState.IN_PROGRESS, 10)
        told = Condition("Ready", False, "InProgress", "downloading, 1.5 MiB/s", NOW)
        moving = BackingImageStatus(disk_file_status={"p1": file}, conditions=(told,))
        images = running.registries.images
        await images.update_status(dataclasses.replace(image, status=moving))
        await running.until(images, lambda: not images.cached()[0].is_ready)
        status = ImageCopyStatus(CopyState.IN_PROGRESS, 10, 100, 1000, message=told.message)
        copy = await make_copy(running, status)
        url = await stream_of(browser, path)
        async with browser.http.stream("GET", url) as stream:
            lines = stream.aiter_lines()
            status = dataclasses.replace(status, bytes_done=200, progress_percent=20)
            await running.registries.copies.update_status(dataclasses.replace(copy, status=status))
            data = ""
            while "nothing has arrived" not in data:
                name, data = await next_event(lines)
                assert name == "row"


async def test_the_overview_warns_of_what_is_tried_again(
    running: Running, browser: Browser
) -> None:
    image = await make_image(running)
    message = "the image's source: connection refused; trying again"
    told = Condition("Ready", False, "Unavailable", message, NOW)
    file = DiskFileStatus(CopyState.IN_PROGRESS, 0, message)
    images = running.registries.images
    status = BackingImageStatus(disk_file_status={"p1": file}, conditions=(told,))
    await images.update_status(dataclasses.replace(image, status=status))
    await running.until(images, lambda: not images.cached()[0].is_ready)
    await make_copy(
        running, ImageCopyStatus(CopyState.IN_PROGRESS, reason="Unavailable", message=message)
    )
    overview = (await browser.http.get("/")).text
    assert "Nothing moves at the moment." in overview
    assert "Copy of golden on n1, retrying" in overview
    assert 'href="/images?state=retrying"' in overview
    assert "connection refused" in overview
    detail = (await browser.http.get("/images/golden")).text
    assert detail.count('<span class="badge retrying">') == 2
    assert "<progress" not in detail


async def test_a_stream_needs_a_session(running: Running) -> None:
    async with running.browser() as http:
        assert (await http.get("/events?feed=images")).status_code == 401


# ---- machines -----------------------------------------------------------------------------------


async def test_a_machine_needs_a_token_that_the_api_server_knows(running: Running) -> None:
    async with running.browser() as http:
        path = "/api/v1/images/golden/artifact"
        assert (await http.get(path)).status_code == 401
        wrong = await http.get(path, headers={"Authorization": "Bearer wrong"})
        assert (wrong.status_code, wrong.json()["reason"]) == (401, "Unauthorized")


async def test_a_url_is_checked(running: Running) -> None:
    async with running.browser() as http:
        headers = {"Authorization": f"Bearer {running.token}"}
        body = {"url": f"{running.url}/healthz"}
        answer = await http.post("/api/v1/check-url", json=body, headers=headers)
        assert answer.status_code == 200
        assert answer.json()["reachable"] is True
        gone = {"url": f"{running.url}/static/nothing"}
        answer = await http.post("/api/v1/check-url", json=gone, headers=headers)
        assert answer.json()["reachable"] is False
        answer = await http.post("/api/v1/check-url", json={"url": "ftp://x"}, headers=headers)
        assert "http" in answer.json()["problem"]
        assert (await http.post("/api/v1/check-url", json=[], headers=headers)).status_code == 400
