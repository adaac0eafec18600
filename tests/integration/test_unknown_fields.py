"""What we do not model survives our writes, through a real embedded API server."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.core_v1 import ConfigMap
from lightkube.types import PatchType
from tests.integration.embedded_api import embedded_api

from shorthorn.domain.errors import Conflict
from shorthorn.domain.models import BackingImage, CopyState, DiskFileSpec, DiskFileStatus
from shorthorn.domain.planning import IMAGE_FINALIZER
from shorthorn.kube.client import connect
from shorthorn.kube.registry import KubeRegistry
from shorthorn.kube.resources import BACKING_IMAGE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from lightkube import AsyncClient

NAMESPACE = "longhorn-system"
SPEC = {
    "sourceType": "download",
    "sourceParameters": {"url": "http://h/a.raw"},
    "minNumberOfCopies": 2,
    "disks": {"d1": ""},
    "diskFileSpecMap": {
        "p1": {"dataEngine": "v1", "evictionRequested": True},
        "p2": {"dataEngine": "v1"},
        "p3": {},
    },
    "secret": "s",
    "secretNamespace": "ns",
    "dataEngine": "v1",
}


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[AsyncClient]:
    async with embedded_api(tmp_path) as api:
        made = connect(api.kubeconfig, namespace=NAMESPACE, transport=api.transport())
        try:
            yield made
        finally:
            await made.aclose()


@pytest.fixture
async def registry(client: AsyncClient) -> KubeRegistry[BackingImage]:
    made = KubeRegistry(client, BACKING_IMAGE, namespace=NAMESPACE)
    owner = await client.create(ConfigMap(metadata=ObjectMeta(name="o", namespace=NAMESPACE)))
    assert owner.metadata is not None
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "o", "uid": owner.metadata.uid}
    metadata = {
        "name": "golden",
        "labels": {"theirs": "kept"},
        "annotations": {"theirs/too": "kept"},
        "ownerReferences": [reference],
    }
    resource: Any = BACKING_IMAGE.resource
    untyped: Any = client
    await untyped.create(resource({"metadata": metadata, "spec": SPEC}), namespace=NAMESPACE)
    return made


async def raw(client: AsyncClient) -> Any:
    found: Any = await client.get(BACKING_IMAGE.resource, "golden", namespace=NAMESPACE)
    return found.to_dict() if hasattr(found, "to_dict") else found


async def get(registry: KubeRegistry[BackingImage]) -> BackingImage:
    image = await registry.find("golden")
    assert image is not None
    return image


async def test_a_finalizer_is_added_and_all_else_stays(
    client: AsyncClient, registry: KubeRegistry[BackingImage]
) -> None:
    image = await get(registry)
    meta = dataclasses.replace(image.meta, finalizers=(IMAGE_FINALIZER,))
    await registry.update(dataclasses.replace(image, meta=meta))
    after = await raw(client)
    assert after["spec"] == SPEC
    assert after["metadata"]["finalizers"] == [IMAGE_FINALIZER]
    assert [owner["name"] for owner in after["metadata"]["ownerReferences"]] == ["o"]
    assert after["metadata"]["labels"] == {"theirs": "kept"}
    assert after["metadata"]["annotations"] == {"theirs/too": "kept"}


async def test_a_wish_is_added_and_another_dropped_beside_fields_that_we_do_not_know(
    client: AsyncClient, registry: KubeRegistry[BackingImage]
) -> None:
    image = await get(registry)
    wishes = {u: e for u, e in image.spec.disk_file_spec.items() if u != "p2"}
    wishes["p4"] = DiskFileSpec()
    wishes["p1"] = dataclasses.replace(wishes["p1"], eviction_requested=False)
    spec = dataclasses.replace(image.spec, disk_file_spec=wishes)
    updated = await registry.update(dataclasses.replace(image, spec=spec))
    assert set(updated.spec.disk_file_spec) == {"p1", "p3", "p4"}
    after = (await raw(client))["spec"]
    assert after["diskFileSpecMap"]["p1"]["dataEngine"] == "v1"
    assert not after["diskFileSpecMap"]["p1"]["evictionRequested"]
    rest = {key: value for key, value in after.items() if key != "diskFileSpecMap"}
    assert rest == {key: value for key, value in SPEC.items() if key != "diskFileSpecMap"}


async def test_a_status_keeps_what_others_told_and_changes_what_is_ours(
    client: AsyncClient, registry: KubeRegistry[BackingImage]
) -> None:
    resource: Any = BACKING_IMAGE.resource
    theirs: Any = {
        "ownerID": "n",
        "diskFileStatusMap": {"p1": {"dataEngine": "v1", "state": "pending"}},
    }
    await client.patch(
        resource.Status,
        "golden",
        {"status": theirs},
        namespace=NAMESPACE,
        patch_type=PatchType.MERGE,
    )
    image = await get(registry)
    files = {"p1": DiskFileStatus(CopyState.READY, 100)}
    status = dataclasses.replace(image.status, uuid="abcd", disk_file_status=files)
    await registry.update_status(dataclasses.replace(image, status=status))
    after = (await raw(client))["status"]
    assert (after["ownerID"], after["uuid"]) == ("n", "abcd")
    assert after["diskFileStatusMap"]["p1"]["dataEngine"] == "v1"
    assert after["diskFileStatusMap"]["p1"]["state"] == "ready"


async def test_an_object_that_changed_since_is_a_conflict(
    client: AsyncClient, registry: KubeRegistry[BackingImage]
) -> None:
    image = await get(registry)
    meta = dataclasses.replace(image.meta, finalizers=(IMAGE_FINALIZER,))
    await registry.update(dataclasses.replace(image, meta=meta))
    with pytest.raises(Conflict):
        await registry.update(dataclasses.replace(image, meta=meta))
    fresh = await get(registry)
    for _ in range(2):  # what an update returns can be written again
        labels = {**fresh.meta.labels, "ours": str(fresh.meta.resource_version)}
        meta = dataclasses.replace(fresh.meta, labels=labels)
        fresh = await registry.update(dataclasses.replace(fresh, meta=meta))
    assert fresh.meta.labels["theirs"] == "kept"


async def test_objects_are_listed_by_their_labels(registry: KubeRegistry[BackingImage]) -> None:
    assert [i.meta.name for i in await registry.list(labels={"theirs": "kept"})] == ["golden"]
    assert await registry.list(labels={"theirs": "lost"}) == []
    assert len(await registry.list()) == 1


async def test_one_object_is_read_from_the_watch(registry: KubeRegistry[BackingImage]) -> None:
    assert registry.find_cached("golden") is None
    watching = asyncio.create_task(registry.run())
    try:
        await asyncio.wait_for(registry.wait_synced(), 60)
        found = registry.find_cached("golden")
        assert found is not None
        assert found.spec.min_number_of_copies == 2
        assert registry.find_cached("golden") is found
        assert registry.find_cached("other") is None
    finally:
        watching.cancel()
        await asyncio.wait([watching])
