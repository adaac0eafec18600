"""The embedded API server keeps the contract of a Kubernetes API server, and some more."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
import pytest_asyncio
from tests.contract.api_suite import Api, ApiSuite, Endpoint, VolumeSnapshot, watching
from tests.integration.embedded_api import embedded_api

from shorthorn.kube.client import connect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROTOBUF = "application/vnd.kubernetes.protobuf"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def endpoint(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Endpoint]:
    options = {"homes": {"shorthorn.io": "longhorn-system"}, "bookmark_interval_s": 0.2}
    async with embedded_api(tmp_path_factory.mktemp("api"), **options) as server:
        client = connect(server.kubeconfig, namespace="default")
        http = httpx2.AsyncClient(
            base_url=server.url,
            headers={"Authorization": f"Bearer {server.token}"},
            verify=ssl.create_default_context(cadata=server.authority),
            trust_env=False,
            timeout=60,
        )
        try:
            yield Endpoint(client, http)
        finally:
            await client.close()
            await http.aclose()


class TestEmbeddedApi(ApiSuite):
    """The suite on a fresh embedded server, over TLS and TCP as kubectl talks to it."""

    async def test_objects_that_nobody_would_look_at_are_refused(self, api: Api):
        body = {
            "apiVersion": "shorthorn.io/v1alpha1",
            "kind": "Pool",
            "metadata": {"name": "p"},
            "spec": {"nodeID": "n", "poolUUID": "p", "path": "/"},
        }
        pools = "/apis/shorthorn.io/v1alpha1/namespaces/{}/pools"
        refused = await api.http.post(pools.format(api.namespace), json=body)
        assert refused.status_code == 403
        assert "write namespace: longhorn-system into its metadata" in refused.json()["message"]
        accepted = await api.http.post(pools.format("longhorn-system"), json=body)
        assert accepted.status_code == 201

    async def test_strictness_is_the_default(self, api: Api):
        body = api.image().to_dict()
        body["spec"]["colour"] = "red"
        assert (await api.http.post(api.images(), json=body)).status_code == 400

    async def test_a_patch_is_strict_too(self, api: Api):
        await api.create_image()
        answer = await api.http.patch(
            api.images("golden"),
            json={"spec": {"colour": "red"}},
            headers={"Content-Type": "application/merge-patch+json"},
        )
        assert answer.status_code == 400
        assert 'strict decoding error: unknown field "spec.colour"' in answer.json()["message"]

    async def test_the_namespace_of_all_volumes_and_images_may_not_be_deleted(self, api: Api):
        answer = await api.http.delete("/api/v1/namespaces/longhorn-system")
        assert answer.status_code == 403
        assert "this namespace may not be deleted" in answer.json()["message"]

    async def test_bookmarks_come_at_intervals_with_the_newest_version(self, api: Api):
        version = (await api.http.get(api.images())).json()["metadata"]["resourceVersion"]
        query = {"resourceVersion": version, "allowWatchBookmarks": "true"}
        await api.create_class()
        async with watching(api, api.images(), **query) as watch:
            event = await watch.next()
            assert event["type"] == "BOOKMARK"
            assert int(event["object"]["metadata"]["resourceVersion"]) > int(version)

    async def test_a_v1beta1_snapshot_is_stored_as_v1_with_a_warning(self, api: Api):
        body = {
            "apiVersion": "snapshot.storage.k8s.io/v1beta1",
            "kind": "VolumeSnapshot",
            "metadata": {"name": "s"},
            "spec": {"source": {"persistentVolumeClaimName": "c"}},
        }
        answer = await api.http.post(api.snapshots("v1beta1"), json=body)
        assert answer.status_code == 201, answer.text
        assert answer.json()["apiVersion"] == "snapshot.storage.k8s.io/v1beta1"
        assert answer.headers["warning"].startswith('299 - "snapshot.storage.k8s.io/v1beta1')
        stored = await api.client.get(VolumeSnapshot, "s", namespace=api.namespace)
        assert stored.apiVersion == "snapshot.storage.k8s.io/v1"
        for version in ("v1", "v1beta1"):
            (item,) = (await api.http.get(api.snapshots(version))).json()["items"]
            assert item["apiVersion"] == f"snapshot.storage.k8s.io/{version}"
        async with watching(api, api.snapshots("v1beta1")) as watch:
            event = await watch.next()
            assert event["object"]["apiVersion"] == "snapshot.storage.k8s.io/v1beta1"
        patched = await api.http.patch(
            f"{api.snapshots('v1beta1')}/s",
            json={"metadata": {"labels": {"a": "b"}}},
            headers={"Content-Type": "application/merge-patch+json"},
        )
        assert patched.json()["apiVersion"] == "snapshot.storage.k8s.io/v1beta1"

    async def test_server_side_apply_is_refused_with_the_way_out(self, api: Api):
        answer = await api.http.patch(
            api.images("golden"),
            content=b"{}",
            params={"fieldManager": "me"},
            headers={"Content-Type": "application/apply-patch+yaml"},
        )
        assert (answer.status_code, answer.json()["reason"]) == (415, "UnsupportedMediaType")
        assert "use client-side apply" in answer.json()["message"]

    async def test_protobuf_is_neither_read_nor_written(self, api: Api):
        answer = await api.http.post(
            api.images(), content=b"k8s\0", headers={"Content-Type": PROTOBUF}
        )
        assert (answer.status_code, answer.json()["reason"]) == (415, "UnsupportedMediaType")
        answer = await api.http.get(api.images(), headers={"Accept": PROTOBUF})
        assert (answer.status_code, answer.json()["reason"]) == (406, "NotAcceptable")
        answer = await api.http.get(
            api.images(), headers={"Accept": f"{PROTOBUF},application/json"}
        )
        assert answer.status_code == 200

    async def test_a_body_that_is_too_large_is_refused(self, api: Api):
        answer = await api.http.post(api.images(), content=b" " * (3 * 1024 * 1024 + 1))
        assert (answer.status_code, answer.json()["code"]) == (413, 413)

    async def test_pods_are_listed_empty_and_refused_with_a_reason(self, api: Api):
        path = f"/api/v1/namespaces/{api.namespace}/pods"
        assert (await api.http.get(path)).json()["items"] == []
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {}}
        answer = await api.http.post(path, json=body)
        assert answer.status_code == 422
        assert "shorthorn mount" in answer.json()["message"]

    async def test_health_needs_no_token(self, api: Api):
        for path in ("/healthz", "/readyz", "/livez"):
            answer = await api.http.get(path, headers={"Authorization": ""})
            assert (answer.status_code, answer.text) == (200, "ok")

    @pytest.mark.parametrize("authorization", ["", "Bearer", "Basic dXNlcjpwYXNz", "Bearer x"])
    async def test_nothing_else_answers_without_the_token(self, api: Api, authorization: str):
        for path in ("/api", "/version", "/openapi/v2", "/openapi/v3", "/nowhere"):
            answer = await api.http.get(path, headers={"Authorization": authorization})
            assert answer.status_code == 401, path

    async def test_openapi_v2_is_protobuf_that_announces_dry_runs(self, api: Api):
        answer = await api.http.get("/openapi/v2")
        assert answer.headers["content-type"] == "application/octet-stream"
        assert answer.content.startswith(b"\x0a\x032.0")
        assert answer.content.count(b"dryRun") > 10

    async def test_openapi_v3_describes_every_kind(self, api: Api):
        paths: dict[str, Any] = (await api.http.get("/openapi/v3")).json()["paths"]
        assert {"api/v1", "apis/longhorn.io/v1beta2"} <= set(paths)
        for entry in paths.values():
            document = (await api.http.get(entry["serverRelativeURL"])).json()
            assert document["openapi"] == "3.0.0"
            for path in document["paths"].values():
                (gvk,) = {json_key(op["x-kubernetes-group-version-kind"]) for op in path.values()}
                schemas = document["components"]["schemas"].values()
                kinds = {
                    json_key(found)
                    for schema in schemas
                    for found in schema["x-kubernetes-group-version-kind"]
                }
                assert gvk in kinds

    async def test_events_are_selected_by_what_they_are_about(self, api: Api):
        path = f"/api/v1/namespaces/{api.namespace}/events"
        for number, name in enumerate(("one", "two")):
            body = {
                "apiVersion": "v1",
                "kind": "Event",
                "metadata": {"name": f"e{number}"},
                "involvedObject": {"kind": "PersistentVolumeClaim", "name": name},
                "reason": "Testing",
                "type": "Normal",
            }
            answer = await api.http.post(path, json=body)
            assert answer.status_code == 201, answer.text
        selector = "involvedObject.kind=PersistentVolumeClaim,involvedObject.name=two"
        found = (await api.http.get(path, params={"fieldSelector": selector})).json()["items"]
        assert [event["metadata"]["name"] for event in found] == ["e1"]

    async def test_a_hundred_creations_at_once_all_arrive(self, api: Api):
        await asyncio.gather(*(api.create_image(f"i{number:03}") for number in range(100)))
        assert await api.names() == [f"i{number:03}" for number in range(100)]


def json_key(gvk: dict[str, str]) -> tuple[str, str, str]:
    """Return a group, version and kind as a key."""
    return gvk["group"], gvk["version"], gvk["kind"]
