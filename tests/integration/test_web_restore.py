"""The form that makes a claim of an image: nothing half made, no size that cannot work."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

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
from shorthorn.kube import user_api
from shorthorn.kube.user_api import Refused, Resource

READY = BackingImageStatus(
    uuid="12345678",
    size_bytes=1 << 20,
    virtual_size_bytes=1 << 30,
    conditions=(Condition("Ready", True, "Ready", "", datetime(2026, 1, 1, tzinfo=UTC)),),
)
FIELDS = {
    "image": "golden",
    "name": "data",
    "namespace": "default",
    "size": "2Gi",
    "storage_class": "longhorn",
    "snapshot_class": "longhorn-x",
    "mode": "Block",
}
MADE = "/restore/done?image=golden&namespace=default&name=data"


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with running_site(tmp_path) as site:
        await make_image(site, "golden", BackingImageSpec("download", {"url": "https://h/a.raw"}))
        await write(site, "POST", user_api.STORAGE_CLASSES, storage_class())
        yield site


@pytest.fixture
async def browser(running: Running) -> AsyncIterator[Browser]:
    async with running.signed_in() as signed_in:
        yield signed_in


async def make_image(running: Running, name: str, spec: BackingImageSpec) -> None:
    images = running.registries.images
    made = await images.create(BackingImage(Meta(name), spec))
    await images.update_status(dataclasses.replace(made, status=READY))
    await running.until(images, lambda: (i := images.find_cached(name)) and i.is_ready)


def storage_class() -> dict[str, Any]:
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": "longhorn"},
        "provisioner": "driver.longhorn.io",
    }


async def write(
    running: Running, method: str, kind: Resource, body: dict[str, Any], suffix: str = ""
) -> Any:
    name = "" if method == "POST" else body["metadata"]["name"]
    path = kind.path(body["metadata"].get("namespace", ""), name) + suffix
    return await running.site.access.api.request(running.token, method, path, body=body)


async def read(running: Running, kind: Resource, name: str = "data") -> Any:
    """Return an object, None where there is none."""
    found = await running.site.access.api.list(running.token, kind)
    return next((obj for obj in found if obj["metadata"]["name"] == name), None)


async def restore(browser: Browser, **changed: str) -> httpx2.Response:
    return await browser.post("/restore?image=golden", **{**FIELDS, **changed})


async def nothing_is_made(running: Running) -> bool:
    kinds = (user_api.CONTENTS, user_api.VOLUME_SNAPSHOTS, user_api.CLAIMS)
    return not any([await read(running, kind) for kind in kinds])


async def test_a_form_leads_to_its_claim_and_may_be_repeated(
    running: Running, browser: Browser
) -> None:
    for _ in range(2):
        answer = await restore(browser)
        assert (answer.status_code, answer.headers["location"]) == (303, MADE)
    claim = await read(running, user_api.CLAIMS)
    assert claim["spec"]["volumeMode"] == "Block"
    assert claim["spec"]["resources"]["requests"]["storage"] == "2Gi"
    assert "default/data" in (await browser.http.get("/images/golden")).text


async def test_a_missing_namespace_leaves_nothing_behind(
    running: Running, browser: Browser
) -> None:
    answer = await restore(browser, namespace="prodd")
    assert answer.status_code == 404
    assert 'id="namespace-wrong"' in answer.text
    assert 'value="prodd"' in answer.text
    assert await nothing_is_made(running)
    assert (await restore(browser)).status_code == 303
    content = await read(running, user_api.CONTENTS)
    assert content["spec"]["volumeSnapshotRef"]["namespace"] == "default"


async def test_a_content_that_is_for_another_namespace_is_another_one(
    running: Running, browser: Browser
) -> None:
    await restore(browser)
    other = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "prod"}}
    await running.site.access.api.request(running.token, "POST", "/api/v1/namespaces", body=other)
    answer = await restore(browser, namespace="prod")
    assert answer.status_code == 400
    assert "another VolumeSnapshotContent data" in answer.text
    path = user_api.VOLUME_SNAPSHOTS.path("prod", "data")
    with pytest.raises(Refused, match="not found"):
        await running.site.access.api.request(running.token, "GET", path)


async def test_a_content_of_a_deleted_snapshot_is_told_of(
    running: Running, browser: Browser
) -> None:
    await restore(browser)
    path = user_api.CLAIMS.path("default", "data")
    await running.site.access.api.request(running.token, "DELETE", path)
    reference = {"spec": {"volumeSnapshotRef": {"uid": "of-one-that-is-gone"}}}
    body = {"metadata": {"name": "data"}, **reference}
    await write(running, "PATCH", user_api.CONTENTS, body)
    answer = await restore(browser)
    assert answer.status_code == 400
    assert "left over" in answer.text


async def test_what_was_made_before_a_failure_is_taken_back(
    running: Running, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = running.site.access.api
    request = api.request

    async def failing(token: str, method: str, path: str, **options: Any) -> Any:
        is_claim = method == "POST" and path.endswith("/persistentvolumeclaims")
        if is_claim and not options.get("query"):
            raise Refused(403, "Forbidden", "exceeded quota")
        return await request(token, method, path, **options)

    monkeypatch.setattr(api, "request", failing)
    answer = await restore(browser)
    assert answer.status_code == 403
    assert "exceeded quota" in answer.text
    assert await nothing_is_made(running)


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"size": "1Mi"}, "size", "write 1Gi or more"),
        ({"size": "9999999Ti"}, "size", "less than 16Ti"),
        ({"size": "much"}, "size", "as in 10Gi"),
        ({"storage_class": "nothing"}, "storage_class", "there is none called nothing"),
        ({"name": "UPPER"}, "name", "lower-case"),
    ],
)
async def test_what_cannot_work_is_said_at_its_field(
    running: Running, browser: Browser, fields: dict[str, str], field: str, words: str
) -> None:
    answer = await restore(browser, **fields)
    assert answer.status_code == 400
    assert f'id="{field}-wrong"' in answer.text
    assert words.lower() in answer.text.lower()
    assert f'value="{fields[field]}"' in answer.text
    assert await nothing_is_made(running)


async def test_the_claim_is_followed_until_it_is_bound(running: Running, browser: Browser) -> None:
    await restore(browser)
    page = await browser.http.get(MADE)
    assert "Pending" in page.text
    claim = await read(running, user_api.CLAIMS)
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "data.1", "namespace": "default"},
        "involvedObject": {
            "kind": "PersistentVolumeClaim",
            "namespace": "default",
            "name": "data",
            "uid": claim["metadata"]["uid"],
        },
        "type": "Warning",
        "reason": "ProvisioningFailed",
        "message": "no pool has so much room",
    }
    await write(running, "POST", user_api.EVENTS, event)
    page = await browser.http.get(MADE)
    assert "no pool has so much room" in page.text
    seen = page.text.partition("&amp;seen=")[2].partition('"')[0]
    assert (await browser.http.get(f"{MADE}&seen={seen}")).status_code == 204

    await write(running, "PATCH", user_api.CLAIMS, {**named(), "spec": {"volumeName": "pvc-1"}})
    await write(running, "PATCH", user_api.CLAIMS, {**named(), "status": BOUND}, "/status")
    page = await browser.http.get(f"{MADE}&seen={seen}")
    assert "Bound" in page.text
    assert "pvc-1" in page.text
    assert "every 2s" not in page.text


BOUND = {"phase": "Bound"}


def named() -> dict[str, Any]:
    return {"metadata": {"name": "data", "namespace": "default"}}


async def test_a_claim_that_is_not_there_is_said_so(browser: Browser) -> None:
    assert "no such claim" in (await browser.http.get(MADE)).text
    bad = "/restore/done?image=golden&namespace=../x&name=data"
    assert (await browser.http.get(bad)).status_code == 404


async def test_a_claim_that_may_not_be_looked_at_is_said_so(
    running: Running, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    await restore(browser)
    api = running.site.access.api
    request = api.request

    async def blind(token: str, method: str, path: str, **options: Any) -> Any:
        if method == "GET" and path.endswith("/persistentvolumeclaims/data"):
            raise Refused(403, "Forbidden", "may not get claims")
        return await request(token, method, path, **options)

    monkeypatch.setattr(api, "request", blind)
    page = await browser.http.get(MADE)
    assert page.status_code == 200
    assert "may not get claims" in page.text


@pytest.mark.parametrize(
    ("spec", "mode"),
    [
        (BackingImageSpec("download", {"url": "https://h/a"}), "Block"),
        (BackingImageSpec("export-from-volume", {"volume-name": "pvc-block"}), "Block"),
        (BackingImageSpec("export-from-volume", {"volume-name": "pvc-files"}), "Filesystem"),
        (BackingImageSpec("export-from-volume", {"volume-name": "pvc-gone"}), "Filesystem"),
        (BackingImageSpec("clone", {"backing-image": "golden"}), "Block"),
        (BackingImageSpec("clone", {"backing-image": "exported"}), "Filesystem"),
    ],
)
async def test_the_use_is_proposed_by_what_the_origin_was(
    running: Running, browser: Browser, spec: BackingImageSpec, mode: str
) -> None:
    for volume, used_as in (("pvc-block", "Block"), ("pvc-files", "Filesystem")):
        await write(running, "POST", user_api.PERSISTENT_VOLUMES, persistent(volume, used_as))
    exported = BackingImageSpec("export-from-volume", {"volume-name": "pvc-files"})
    await make_image(running, "exported", exported)
    await make_image(running, "asked", spec)
    page = await browser.http.get("/restore?image=asked")
    assert f'value="{mode}" checked' in page.text


def persistent(volume: str, mode: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": volume},
        "spec": {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteOnce"],
            "volumeMode": mode,
            "csi": {"driver": "driver.longhorn.io", "volumeHandle": volume},
        },
    }
