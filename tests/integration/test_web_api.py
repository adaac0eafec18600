"""/api/v1 over real HTTP: uploads as tus has them, downloads with ranges."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
from tests.fakes.memory_bytes import MemoryBytes
from tests.integration.web_site import Running, running_site

from shorthorn.domain.image_bytes import Artifact, ArtifactForm, Direction
from shorthorn.domain.models import BackingImage, BackingImageSpec, Meta
from shorthorn.domain.upload_sample import sample_of

DATA = bytes(range(256)) * 40
ETAG = hashlib.sha512(DATA).hexdigest()
UPLOAD = "/api/v1/images/golden/upload"
ARTIFACT = "/api/v1/images/golden/artifact"


@dataclass
class Machine:
    """A client with a token, and what holds the bytes."""

    http: httpx2.AsyncClient
    held: MemoryBytes
    running: Running

    async def patch(self, offset: int, body: bytes, **headers: str) -> httpx2.Response:
        told = {
            "Upload-Offset": str(offset),
            "Content-Type": "application/offset+octet-stream",
            "Tus-Resumable": "1.0.0",
        }
        return await self.http.patch(UPLOAD, content=body, headers=told | headers)


@pytest.fixture
async def machine(tmp_path: Path) -> AsyncIterator[Machine]:
    held = MemoryBytes()
    async with running_site(tmp_path, image_bytes=held) as running, running.browser() as http:
        http.headers["Authorization"] = f"Bearer {running.token}"
        await running.registries.images.create(
            BackingImage(Meta("golden"), BackingImageSpec("upload"))
        )
        yield Machine(http, held, running)


async def freed(held: MemoryBytes) -> None:
    """Wait until nobody reads any more."""
    async with asyncio.timeout(60):
        await held.is_free.wait()


# ---- uploads ------------------------------------------------------------------------------------


async def test_an_upload_goes_on_where_it_stopped(machine: Machine) -> None:
    machine.held.await_bytes("golden", len(DATA))
    first = await machine.patch(0, DATA[:5000])
    assert (first.status_code, first.headers["upload-offset"]) == (204, "5000")
    state = await machine.http.head(UPLOAD)
    assert state.headers["upload-offset"] == "5000"
    assert state.headers["upload-length"] == str(len(DATA))
    assert state.headers["cache-control"] == "no-store"
    sent = sample_of(lambda count, start: DATA[start : start + count], 5000)
    assert state.headers["upload-sample"] == sent
    assert (await machine.patch(5000, DATA[5000:])).headers["upload-offset"] == str(len(DATA))
    assert bytes(machine.held.uploads["golden"]) == DATA


async def test_a_wrong_offset_is_answered_with_the_true_one(machine: Machine) -> None:
    machine.held.await_bytes("golden", 10, there=b"abc")
    answer = await machine.patch(7, b"x")
    assert (answer.status_code, answer.headers["upload-offset"]) == (409, "3")
    assert answer.json()["reason"] == "OffsetMismatch"


async def test_more_than_was_promised_is_refused(machine: Machine) -> None:
    machine.held.await_bytes("golden", 3)
    assert (await machine.patch(0, b"abcd")).status_code == 422


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Upload-Offset": "x"}, 400),
        ({"Upload-Offset": "-1"}, 400),
        ({"Content-Type": "text/plain"}, 415),
        ({"Tus-Resumable": "2.0.0"}, 412),
    ],
)
async def test_a_request_that_is_no_piece_of_an_upload_is_refused(
    machine: Machine, headers: dict[str, str], status: int
) -> None:
    machine.held.await_bytes("golden", 3)
    assert (await machine.patch(0, b"abc", **headers)).status_code == status


async def test_an_upload_can_be_given_up(machine: Machine) -> None:
    machine.held.await_bytes("golden", 3)
    assert (await machine.http.delete(UPLOAD)).status_code == 204
    assert (await machine.http.head(UPLOAD)).status_code == 404
    assert (await machine.http.head("/api/v1/images/other/upload")).status_code == 404


async def test_a_session_uploads_with_its_form_token_only(machine: Machine) -> None:
    machine.held.await_bytes("golden", 3)
    headers = {"Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
    async with machine.running.signed_in() as browser:
        assert (
            await browser.http.patch(UPLOAD, content=b"abc", headers=headers)
        ).status_code == 403
        headers["X-CSRF-Token"] = await browser.form_token()
        assert (
            await browser.http.patch(UPLOAD, content=b"abc", headers=headers)
        ).status_code == 204


# ---- downloads ----------------------------------------------------------------------------------


@pytest.fixture
def held(machine: Machine) -> MemoryBytes:
    machine.held.hold("golden", DATA)
    return machine.held


async def test_an_artifact_is_sent_whole_with_length_and_name(
    machine: Machine, held: MemoryBytes
) -> None:
    answer = await machine.http.get(ARTIFACT)
    assert (answer.status_code, answer.content) == (200, DATA)
    assert answer.headers["content-length"] == str(len(DATA))
    assert answer.headers["etag"] == f'"{ETAG}"'
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["content-disposition"].endswith("golden.artifact")
    await freed(held)


async def test_head_tells_the_same_and_sends_nothing(machine: Machine, held: MemoryBytes) -> None:
    answer = await machine.http.head(ARTIFACT)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-length"] == str(len(DATA))
    assert held.readers == 0


@pytest.mark.parametrize("form", ["artifact", "raw"])
async def test_a_part_is_sent(machine: Machine, held: MemoryBytes, form: str) -> None:
    path = f"/api/v1/images/golden/{form}"
    answer = await machine.http.get(path, headers={"Range": "bytes=1000-4999"})
    assert (answer.status_code, answer.content) == (206, DATA[1000:5000])
    assert answer.headers["content-range"] == f"bytes 1000-4999/{len(DATA)}"
    assert answer.headers["content-length"] == "4000"
    beyond = await machine.http.get(path, headers={"Range": f"bytes={len(DATA)}-"})
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{len(DATA)}")
    await freed(held)


async def test_a_range_of_another_file_is_sent_whole(machine: Machine, held: MemoryBytes) -> None:
    headers = {"Range": "bytes=0-9", "If-Range": '"another"'}
    assert (await machine.http.get(ARTIFACT, headers=headers)).status_code == 200
    headers["If-Range"] = f'"{ETAG}"'
    assert (await machine.http.get(ARTIFACT, headers=headers)).status_code == 206


async def test_what_is_known_is_not_sent_again(machine: Machine, held: MemoryBytes) -> None:
    answer = await machine.http.get(ARTIFACT, headers={"If-None-Match": f'"{ETAG}"'})
    assert (answer.status_code, answer.content) == (304, b"")


async def test_a_form_without_ranges_ignores_them(machine: Machine, held: MemoryBytes) -> None:
    for form, length in (("qcow2", str(len(DATA))), ("raw.zst", None)):
        path = f"/api/v1/images/golden/{form}"
        answer = await machine.http.get(path, headers={"Range": "bytes=0-9"})
        assert (answer.status_code, answer.content) == (200, DATA)
        assert answer.headers.get("content-length") == length
        assert "accept-ranges" not in answer.headers


async def test_who_leaves_early_frees_the_reader(machine: Machine, held: MemoryBytes) -> None:
    held.hold("golden", bytes(64 << 20))
    async with machine.http.stream("GET", ARTIFACT) as stream:
        async for _ in stream.aiter_raw():
            break
    await freed(held)


async def test_bytes_that_pass_are_counted_as_they_pass(
    machine: Machine, held: MemoryBytes
) -> None:
    counted = machine.running.counted
    machine.held.await_bytes("golden", 5000)
    assert (await machine.patch(7, DATA[:10])).status_code == 409
    assert (await machine.patch(0, DATA[:5001])).status_code == 422
    assert counted == {}
    assert (await machine.patch(0, DATA[:2000])).status_code == 204
    assert (await machine.patch(2000, DATA[2000:5000])).status_code == 204
    assert counted[Direction.UPLOAD] == 5000
    await machine.http.head(ARTIFACT)
    assert counted[Direction.DOWNLOAD] == 0
    await machine.http.get(ARTIFACT, headers={"Range": "bytes=0-99"})
    await freed(held)
    assert counted[Direction.DOWNLOAD] == 100
    await machine.http.get("/api/v1/images/golden/raw.zst")
    await freed(held)
    assert counted[Direction.DOWNLOAD] == 100 + len(DATA)
    assert counted[Direction.UPLOAD] == 5000


async def test_an_image_that_is_not_ready_has_no_bytes(machine: Machine) -> None:
    answer = await machine.http.get(ARTIFACT)
    assert (answer.status_code, answer.json()["reason"]) == (409, "WrongState")
    assert "backing image golden is waiting" in answer.json()["message"]
    none = await machine.http.get("/api/v1/images/other/artifact")
    assert (none.status_code, none.json()["reason"]) == (404, "NotFound")


async def test_a_raw_disk_is_named_so_that_its_parts_belong_together(
    machine: Machine, held: MemoryBytes
) -> None:
    path = "/api/v1/images/golden/raw"
    etag = (await machine.http.head(path)).headers["etag"]
    assert etag == f'"{ETAG}-raw"'
    headers = {"Range": "bytes=0-9", "If-Range": etag}
    assert (await machine.http.get(path, headers=headers)).status_code == 206
    held.hold("golden", DATA[::-1])
    assert (await machine.http.get(path, headers=headers)).status_code == 200


async def test_head_has_no_ranges(machine: Machine, held: MemoryBytes) -> None:
    for asked in ("bytes=0-9", f"bytes={len(DATA)}-"):
        answer = await machine.http.head(ARTIFACT, headers={"Range": asked})
        assert (answer.status_code, answer.headers["content-length"]) == (200, str(len(DATA)))
        assert "content-range" not in answer.headers


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_other_bytes_than_expected_are_not_sent(
    machine: Machine, held: MemoryBytes, method: str
) -> None:
    other = await machine.http.request(method, ARTIFACT, headers={"If-Match": '"other"'})
    assert (other.status_code, other.headers["etag"]) == (412, f'"{ETAG}"')
    if method == "GET":
        assert other.json()["reason"] == "PreconditionFailed"
    same = await machine.http.request(method, ARTIFACT, headers={"If-Match": f'"{ETAG}"'})
    assert same.status_code == 200


async def test_an_image_that_is_replaced_while_it_is_looked_at_is_not_mixed(
    machine: Machine, held: MemoryBytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    describe = held.describe
    described = await describe("golden", ArtifactForm.ARTIFACT)

    async def before(image: str, form: ArtifactForm) -> Artifact:
        monkeypatch.setattr(held, "describe", describe)
        held.hold("golden", DATA[::-1])
        return described

    monkeypatch.setattr(held, "describe", before)
    answer = await machine.http.get(ARTIFACT, headers={"Range": "bytes=0-9"})
    assert (answer.status_code, answer.json()["reason"]) == (503, "Unavailable")
    await freed(held)


async def test_the_api_says_where_it_is_described(machine: Machine) -> None:
    answer = await machine.http.get("/api/v1")
    assert (answer.status_code, answer.json()) == (200, {"description": "/api/openapi.json"})
