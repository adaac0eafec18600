"""What happens between two looks: objects that appear, change or go while a request works."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from grpc import StatusCode
from tests.fakes.csi_calls import GIB, Caller, CallFailed, capability
from tests.fakes.registries import MemoryRegistry
from tests.fakes.world import NODE, World, world

from shorthorn.csi.proto import csi_pb2
from shorthorn.domain.errors import Conflict
from shorthorn.domain.models import Condition, Meta, Pool, PoolSpec, Volume

DOWNLOAD = (
    "bi://backing?backingImageDataSourceType=download&backingImage=golden"
    "&url=https%3A%2F%2Fexample.org%2Fa.qcow2"
)


@pytest.fixture
async def host() -> AsyncIterator[World]:
    async with world() as made:
        yield made


@pytest.fixture
async def call(host: World) -> Caller:
    caller = Caller(host)
    await caller.create_volume("pvc-1")
    return caller


async def code_of(calling: object) -> StatusCode:
    with pytest.raises(CallFailed) as caught:
        await calling  # type: ignore[misc]
    return caught.value.code


def blind(registry: MemoryRegistry[Any], *, looks: int | None = None) -> None:
    """Let look-ups find nothing, as if another process were a moment faster: the next ones, or all
    until something is created.
    """
    find, create, left = registry.find, registry.create, [looks]

    async def blinded(name: str) -> Any:
        if left[0] == 0:
            return await find(name)
        if left[0] is not None:
            left[0] -= 1
        return None

    async def seeing(obj: Any) -> Any:
        left[0] = 0
        return await create(obj)

    registry.find, registry.create = blinded, seeing  # type: ignore[method-assign]


def conflicting(
    registry: MemoryRegistry[Any], times: int, *, of: Callable[[Any], bool] = lambda obj: True
) -> None:
    """Let the next updates of such objects meet somebody else's."""
    original, left = registry.update, [times]

    async def update(obj: Any) -> Any:
        if left[0] and of(obj):
            left[0] -= 1
            raise Conflict("object", obj.meta.name)
        return await original(obj)

    registry.update = update  # type: ignore[method-assign]


async def remove(registry: MemoryRegistry[Any], name: str) -> None:
    """Take an object away, finalizers and all."""
    found = await registry.find(name)
    if found is None:
        return
    free = dataclasses.replace(found, meta=dataclasses.replace(found.meta, finalizers=()))
    await registry.update(free)
    await registry.delete(name)


async def test_another_process_that_creates_first_is_joined_by_the_retry(
    host: World, call: Caller
) -> None:
    await call.create_snapshot("snapshot-1", "pvc-1", type="snap")
    await call.create_snapshot("snapshot-2", "pvc-1", type="bi")
    await call.create_volume("pvc-2", handle=DOWNLOAD)
    requests: list[tuple[MemoryRegistry[Any], Callable[[], Any]]] = [
        (host.volumes, lambda: call.create_volume("pvc-2", handle=DOWNLOAD)),
        (host.snapshots, lambda: call.create_snapshot("snapshot-1", "pvc-1", type="snap")),
        (host.images, lambda: call.create_snapshot("snapshot-2", "pvc-1", type="bi")),
        (host.images, lambda: call.create_volume("pvc-3", handle=DOWNLOAD)),
    ]
    for registry, request in requests:
        before = len(registry.cached())
        blind(registry)
        assert await code_of(request()) is StatusCode.ABORTED
        assert len(registry.cached()) == before
        await request()


async def test_a_volume_made_by_another_process_meanwhile_is_the_answer(
    host: World, call: Caller
) -> None:
    blind(host.volumes, looks=1)
    assert (await call.create_volume("pvc-1")).volume_id == "pvc-1"
    blind(host.volumes, looks=1)
    assert await code_of(call.create_volume("pvc-1", size=2 * GIB)) is StatusCode.ALREADY_EXISTS


async def test_an_update_that_meets_anothers_is_made_again(host: World, call: Caller) -> None:
    request = csi_pb2.ControllerExpandVolumeRequest(
        volume_id="pvc-1", volume_capability=capability()
    )
    request.capacity_range.required_bytes = 2 * GIB
    conflicting(host.volumes, 1)
    assert (await call("ControllerExpandVolume", request)).capacity_bytes == 2 * GIB
    request.capacity_range.required_bytes = 3 * GIB
    conflicting(host.volumes, 5)
    assert await code_of(call("ControllerExpandVolume", request)) is StatusCode.ABORTED


async def test_a_promise_is_recorded_before_it_is_given(host: World, call: Caller) -> None:
    host.engine.gates["finish_export"] = asyncio.Event()
    call.deadline_s = 0.5
    conflicting(host.images, 10, of=lambda image: image.status.point_in_time is not None)
    answers = [
        await code_of(call.create_snapshot("snapshot-1", "pvc-1", type="bi")),
        (await call.create_snapshot("snapshot-1", "pvc-1", type="bi")).ready_to_use,
        (await call.create_snapshot("snapshot-1", "pvc-1", type="bi")).ready_to_use,
    ]
    assert answers == [StatusCode.ABORTED, False, False]


async def test_names_that_share_an_id_are_told_apart(host: World, call: Caller) -> None:
    volume = await host.volumes.find("pvc-1")
    assert volume
    other = dataclasses.replace(volume.spec, csi_name="PVC 1")
    await host.volumes.update(dataclasses.replace(volume, spec=other))
    assert await code_of(call.create_volume("pvc-1")) is StatusCode.ALREADY_EXISTS
    await call.create_snapshot("snapshot-1", "pvc-1", type="snap")
    snapshot = await host.snapshots.find("snapshot-1")
    assert snapshot
    renamed = dataclasses.replace(snapshot.spec, csi_name="Snapshot 1")
    await host.snapshots.update(dataclasses.replace(snapshot, spec=renamed))
    again = call.create_snapshot("snapshot-1", "pvc-1", type="snap")
    assert await code_of(again) is StatusCode.ALREADY_EXISTS


async def test_a_snapshot_is_not_deleted_while_a_volume_is_made_from_it(
    host: World, call: Caller
) -> None:
    made = await call.create_snapshot("snapshot-1", "pvc-1", type="snap")
    host.engine.gates["create_volume"] = asyncio.Event()
    making = asyncio.create_task(call.create_volume("pvc-2", handle=made.snapshot_id))
    await host.engine.entered("create_volume", "pvc-2")
    assert await code_of(call.delete_snapshot(made.snapshot_id)) is StatusCode.ABORTED
    host.engine.gates["create_volume"].set()
    await making
    await call.delete_snapshot(made.snapshot_id)


async def test_a_snapshot_that_is_being_deleted_is_waited_for(host: World, call: Caller) -> None:
    made = await call.create_snapshot("snapshot-1", "pvc-1", type="snap")
    host.engine.gates["delete_snapshot"] = asyncio.Event()
    call.deadline_s = 0.3
    assert await code_of(call.delete_snapshot(made.snapshot_id)) is StatusCode.ABORTED
    again = call.create_snapshot("snapshot-1", "pvc-1", type="snap")
    assert await code_of(again) is StatusCode.ABORTED


@pytest.mark.parametrize("kind", ["volume", "snap", "bi", "expand"])
async def test_what_is_deleted_while_it_is_waited_for_is_told(kind: str) -> None:
    """Nobody serves this world: objects stay pending until the test takes them away."""
    host = World()
    await host.pools.create(Pool(Meta("pool"), PoolSpec(NODE, host.engine.pool_uuid, "/pool")))
    call = Caller(host)
    making: asyncio.Task[Any] = asyncio.create_task(call.create_volume("pvc-1"))
    await host.volumes.wait("pvc-1", lambda v: v is not None, timeout_s=5)
    registry: MemoryRegistry[Any] = host.volumes
    name = "pvc-1"
    if kind != "volume":
        pending = await host.volumes.find("pvc-1")
        assert isinstance(pending, Volume)
        ready = dataclasses.replace(
            pending.status, state=type(pending.status.state).READY, capacity_bytes=GIB
        )
        await host.volumes.update_status(dataclasses.replace(pending, status=ready))
        await making
    if kind == "expand":
        request = csi_pb2.ControllerExpandVolumeRequest(volume_id="pvc-1")
        request.capacity_range.required_bytes = 2 * GIB
        making = asyncio.create_task(call("ControllerExpandVolume", request))
        await host.volumes.wait("pvc-1", lambda v: bool(v and v.meta.generation > 1), timeout_s=5)
    elif kind in ("snap", "bi"):
        name = "snapshot-1"
        registry = host.snapshots if kind == "snap" else host.images
        making = asyncio.create_task(call.create_snapshot(name, "pvc-1", type=kind))
        await registry.wait(name, lambda found: found is not None, timeout_s=5)
    await remove(registry, name)
    expected = StatusCode.NOT_FOUND if kind == "expand" else StatusCode.ABORTED
    assert await code_of(making) is expected


async def test_progress_is_told_as_far_as_it_is_known() -> None:
    host = World()
    call = Caller(host, deadline_s=0.3)
    await host.pools.create(Pool(Meta("pool"), PoolSpec(NODE, host.engine.pool_uuid, "/pool")))
    with pytest.raises(CallFailed, match="waiting for a pool"):
        await call.create_volume("pvc-2", handle=DOWNLOAD)
    (image,) = host.images.cached()
    said = Condition("Ready", False, "NoPool", "no pool carries the tags")
    status = dataclasses.replace(image.status, conditions=(said,))
    await host.images.update_status(dataclasses.replace(image, status=status))
    with pytest.raises(CallFailed, match="no pool carries the tags"):
        await call.create_volume("pvc-2", handle=DOWNLOAD)


async def test_a_host_without_pools_says_so() -> None:
    with pytest.raises(CallFailed, match="none is ready") as caught:
        await Caller(World()).create_volume("pvc-1")
    assert caught.value.code is StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [
        ({"backingImageDataSourceParameters": "{"}, "is not JSON"),
        ({"backingImageDataSourceParameters": "[" * 100_000}, "is not JSON"),
        ({"backingImageDataSourceParameters": "[]"}, "must be a JSON object"),
        ({"backingImageDataSourceParameters": '{"url": 1}'}, "must be a JSON object"),
        ({"backingImageMinNumberOfCopies": "many"}, "no whole number"),
        ({"backingImageMinNumberOfCopies": "-1"}, "no whole number"),
        ({"dataEngine": "v2"}, "use v1"),
    ],
)
async def test_storage_class_parameters_that_cannot_be_read_are_refused(
    call: Caller, parameters: dict[str, str], problem: str
) -> None:
    wanted = {"backingImage": "golden", "backingImageDataSourceType": "download", **parameters}
    with pytest.raises(CallFailed, match=problem) as caught:
        await call.create_volume("pvc-2", parameters=wanted)
    assert caught.value.code is StatusCode.INVALID_ARGUMENT


async def test_what_volumes_cannot_do_is_refused(call: Caller) -> None:
    grouped = capability()
    grouped.mount.volume_mount_group = "1000"
    creating = call.create_volume("pvc-2", capabilities=[grouped])
    assert await code_of(creating) is StatusCode.INVALID_ARGUMENT
    request = csi_pb2.CreateVolumeRequest(
        name="pvc-2", volume_capabilities=[capability()], mutable_parameters={"iops": "1"}
    )
    assert await code_of(call("CreateVolume", request)) is StatusCode.INVALID_ARGUMENT


async def test_objects_of_a_hundred_requests_are_as_many(host: World, call: Caller) -> None:
    names = [f"pvc-many-{n}" for n in range(100)]
    await asyncio.gather(*(call.create_volume(name, handle=DOWNLOAD) for name in names))
    assert len(host.web.fetched) == 1
    assert {v.meta.name for v in host.volumes.cached()} >= set(names)
    await asyncio.gather(*(call.delete_volume(name) for name in names))
    assert [v.meta.name for v in host.volumes.cached()] == ["pvc-1"]
    assert list(host.engine.volumes) == ["pvc-1"]
    assert host.operations.keys == ()
