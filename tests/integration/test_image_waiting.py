"""`shorthorn image … --wait`, where the test plays the controller."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.integration.image_shell import condition, ended, shell

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.integration.image_shell import Shell

COPIES = "/apis/shorthorn.io/v1alpha1/namespaces/longhorn-system/imagecopies"
CONTENT = b"the image's file"


@pytest.fixture
async def user(tmp_path: Path) -> AsyncIterator[Shell]:
    async with shell(tmp_path) as made:
        await made.make_image("golden", CONTENT)
        yield made


async def annotated(user: Shell, key: str) -> str:
    """Wait until an annotation is on the image; return its value."""
    async with asyncio.timeout(30):
        while True:
            found = (await user.image("golden"))["metadata"].get("annotations") or {}
            if key in found:
                return str(found[key])
            await asyncio.to_thread(lambda: None)


async def make_copy(user: Shell) -> None:
    body = {
        "apiVersion": "shorthorn.io/v1alpha1",
        "kind": "ImageCopy",
        "metadata": {"name": "golden-copy", "labels": {"shorthorn.io/image": "golden"}},
        "spec": {
            "image": "golden",
            "imageUUID": "uuid-golden",
            "nodeID": "node-a",
            "poolUUID": "pool-a",
            "sourceType": "upload",
        },
    }
    answer = await user.http.post(COPIES, json=body)
    assert answer.status_code == 201, answer.text
    await set_copy(user, {"state": "ready"})


async def set_copy(user: Shell, status: dict[str, Any]) -> None:
    answer = await user.http.patch(
        f"{COPIES}/golden-copy/status",
        json={"status": status},
        headers={"Content-Type": "application/merge-patch+json"},
    )
    assert answer.status_code == 200, answer.text


async def test_a_copy_that_is_found_corrupt_ends_a_verification(user: Shell) -> None:
    await make_copy(user)
    process = await user.start("verify", "golden", "--wait")
    await annotated(user, "shorthorn.io/verify-at")
    await set_copy(user, {"state": "failed", "message": "its bytes have changed"})
    ran = await ended(process)
    assert ran.code == 1
    assert "its copy on node node-a: its bytes have changed" in ran.err


async def test_what_is_not_verified_in_time_is_said_so(user: Shell) -> None:
    await make_copy(user)
    said = await user.is_refused("verify", "golden", "--wait", "--timeout", "1")
    assert "not verified within 1 s" in said


async def test_trying_again_waits_for_the_new_attempt(user: Shell) -> None:
    failed = [condition("Failed", "True", "BackingImageFailed", "the first")]
    await user.set_status("golden", {"conditions": failed})
    process = await user.start("retry", "golden", "--wait")
    await annotated(user, "shorthorn.io/retry-at")
    await user.set_status("golden", {"conditions": [condition("Ready", "False", "InProgress")]})
    await user.make_ready("golden", CONTENT)
    ran = await ended(process)
    assert (ran.code, ran.out.splitlines()[-1]) == (0, "golden is ready")


async def test_an_attempt_that_fails_again_ends_waiting(user: Shell) -> None:
    failed = [condition("Failed", "True", "BackingImageFailed", "the first")]
    await user.set_status("golden", {"conditions": failed})
    process = await user.start("retry", "golden", "--wait")
    await annotated(user, "shorthorn.io/retry-at")
    again = [condition("Failed", "True", "BackingImageFailed", "the second")]
    await user.set_status("golden", {"conditions": again})
    ran = await ended(process)
    assert ran.code == 1
    assert "the second" in ran.err


async def test_an_image_that_is_deleted_meanwhile_ends_waiting(user: Shell) -> None:
    url = ("--url", "http://example.org/golden.qcow2")
    process = await user.start("create", "coming", *url, "--wait")
    assert process.stdout is not None
    assert await process.stdout.readline() == b"coming created\n"
    await user.does("rm", "coming", "--yes")
    ran = await ended(process)
    assert (ran.code, "not found" in ran.err) == (1, True)


async def test_waiting_has_an_end(user: Shell) -> None:
    url = ("--url", "http://example.org/golden.qcow2")
    said = await user.is_refused("create", "coming", *url, "--wait", "--timeout", "1")
    assert "not done within 1 s" in said


async def test_a_clone_names_its_source(user: Shell) -> None:
    await user.does("create", "second", "--from-image", "golden", "--node-selector", "fast")
    spec = (await user.image("second"))["spec"]
    assert spec["sourceType"] == "clone"
    assert spec["sourceParameters"] == {"backing-image": "golden"}
    assert spec["nodeSelector"] == ["fast"]
    shown = await user.does("show", "golden")
    assert "Backing image second (made from it)" in shown.out


async def test_an_image_that_awaits_its_bytes_is_neither_verified_nor_tried_again(
    user: Shell,
) -> None:
    await user.does("create", "coming", "--url", "http://example.org/golden.qcow2")
    assert "is not ready" in await user.is_refused("verify", "coming")
    assert "is not failed" in await user.is_refused("retry", "coming")
    assert not (await user.image("coming"))["metadata"].get("annotations")


async def test_a_failed_copy_of_a_ready_image_is_tried_again(user: Shell) -> None:
    await user.set_status(
        "golden", {"diskFileStatusMap": {"pool-a": {"state": "failed", "message": "damaged"}}}
    )
    await user.does("retry", "golden")
    assert await annotated(user, "shorthorn.io/retry-at")
