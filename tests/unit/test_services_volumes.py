"""Volumes through CSI's controller calls: the real controllers over an engine in memory."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator

import pytest
from grpc import StatusCode
from tests.fakes.csi_calls import GIB, MIB, Caller, CallFailed, capability
from tests.fakes.world import NODE, World, world

from shorthorn.csi.proto import csi_pb2
from shorthorn.domain.errors import InUse, NoSpace, Unavailable
from shorthorn.domain.models import Condition, Meta, Pool, PoolSpec, PoolStatus, VolumeSource
from shorthorn.services.capabilities import AccessMode, Capability, VolumeMode
from shorthorn.services.node import StageRequest

DOWNLOAD = (
    "bi://backing?backingImageDataSourceType=download&backingImage=golden"
    "&url=https%3A%2F%2Fexample.org%2Fa.qcow2"
)


@pytest.fixture
async def host() -> AsyncIterator[World]:
    async with world() as made:
        yield made


@pytest.fixture
def call(host: World) -> Caller:
    return Caller(host)


async def code_of(calling: object) -> StatusCode:
    """Return the code that a call fails with."""
    with pytest.raises(CallFailed) as caught:
        await calling  # type: ignore[misc]
    return caught.value.code


@pytest.mark.parametrize(
    ("size", "limit", "fs_type", "capacity"),
    [
        pytest.param(0, 0, "", GIB, id="nothing said"),
        pytest.param(1, 0, "", 10 * MIB, id="smaller than the least"),
        pytest.param(10 * MIB + 1, 0, "", 12 * MIB, id="rounded up"),
        pytest.param(5 * GIB, 5 * GIB, "xfs", 5 * GIB, id="exactly the limit"),
        pytest.param(0, 500 * MIB, "", 500 * MIB, id="a limit alone"),
        pytest.param(300 * MIB, 0, "xfs", 300 * MIB, id="the least for xfs"),
    ],
)
async def test_a_volume_has_the_capacity_asked_for(
    call: Caller, size: int, limit: int, fs_type: str, capacity: int
) -> None:
    wanted = [capability(fs_type=fs_type)]
    volume = await call.create_volume("pvc-1", size=size, limit=limit, capabilities=wanted)
    assert volume.capacity_bytes == capacity


@pytest.mark.parametrize(
    ("size", "limit", "fs_type", "code"),
    [
        pytest.param(-1, 0, "", StatusCode.INVALID_ARGUMENT, id="negative"),
        pytest.param(2 * GIB, GIB, "", StatusCode.OUT_OF_RANGE, id="over its own limit"),
        pytest.param(1, 1, "", StatusCode.OUT_OF_RANGE, id="limit below the least"),
        pytest.param(3 * MIB, 5 * MIB, "", StatusCode.OUT_OF_RANGE, id="limit below a step"),
        pytest.param(100 * MIB, 0, "xfs", StatusCode.OUT_OF_RANGE, id="too small for xfs"),
        pytest.param(100 * MIB, 0, "btrfs", StatusCode.OUT_OF_RANGE, id="too small for btrfs"),
        pytest.param(32 << 40, 0, "", StatusCode.OUT_OF_RANGE, id="larger than any file"),
        pytest.param(GIB, 0, "ntfs", StatusCode.INVALID_ARGUMENT, id="unknown file system"),
    ],
)
async def test_a_size_that_cannot_be_had_is_refused(
    host: World, call: Caller, size: int, limit: int, fs_type: str, code: StatusCode
) -> None:
    wanted = [capability(fs_type=fs_type)]
    creating = call.create_volume("pvc-1", size=size, limit=limit, capabilities=wanted)
    assert await code_of(creating) is code
    assert host.volumes.writes == []


@pytest.mark.parametrize("mode", ["MULTI_NODE_MULTI_WRITER", "MULTI_NODE_READER_ONLY", "UNKNOWN"])
async def test_access_from_several_nodes_is_refused(call: Caller, mode: str) -> None:
    creating = call.create_volume("pvc-1", capabilities=[capability(mode=mode)])
    assert await code_of(creating) is StatusCode.INVALID_ARGUMENT


async def test_required_arguments_are_required(call: Caller) -> None:
    empty = csi_pb2.VolumeCapability()
    modeless = csi_pb2.VolumeCapability(access_mode=capability().access_mode)
    for creating in (
        call.create_volume(""),
        call.create_volume("pvc-1", capabilities=[]),
        call.create_volume("pvc-1", capabilities=[empty]),
        call.create_volume("pvc-1", capabilities=[modeless]),
        call.delete_volume(""),
        call("ControllerExpandVolume", csi_pb2.ControllerExpandVolumeRequest()),
        call("ControllerExpandVolume", csi_pb2.ControllerExpandVolumeRequest(volume_id="pvc-1")),
        call("ControllerGetVolume", csi_pb2.ControllerGetVolumeRequest()),
        call("ValidateVolumeCapabilities", csi_pb2.ValidateVolumeCapabilitiesRequest()),
        call(
            "ValidateVolumeCapabilities",
            csi_pb2.ValidateVolumeCapabilitiesRequest(volume_id="pvc-1"),
        ),
        call("GetSnapshot", csi_pb2.GetSnapshotRequest()),
    ):
        assert await code_of(creating) is StatusCode.INVALID_ARGUMENT


async def test_an_empty_content_source_is_refused(call: Caller) -> None:
    request = csi_pb2.CreateVolumeRequest(name="pvc-1", volume_capabilities=[capability()])
    request.volume_content_source.SetInParent()
    assert await code_of(call("CreateVolume", request)) is StatusCode.INVALID_ARGUMENT
    request.volume_content_source.volume.SetInParent()
    assert await code_of(call("CreateVolume", request)) is StatusCode.INVALID_ARGUMENT


async def test_the_same_request_has_the_same_answer(host: World, call: Caller) -> None:
    first = await call.create_volume("pvc-1", parameters={"numberOfReplicas": "3"})
    host.take_over()
    assert await call.create_volume("pvc-1", parameters={"numberOfReplicas": "3"}) == first
    assert [verb for verb, _ in host.volumes.writes].count("create") == 1


async def test_another_request_of_the_same_name_is_refused(call: Caller) -> None:
    await call.create_volume("pvc-0")
    await call.create_volume("pvc-1")
    for other in (
        call.create_volume("pvc-1", size=2 * GIB),
        call.create_volume("pvc-1", size=0, limit=GIB // 2),
        call.create_volume("pvc-1", volume_id="pvc-0"),
        call.create_volume("pvc-1", requisite=["node-b"]),
        call.create_volume("pvc-1", parameters={"backingImage": "golden"}),
    ):
        assert await code_of(other) is StatusCode.ALREADY_EXISTS
    # No size said fits any size.
    assert (await call.create_volume("pvc-1", size=0)).capacity_bytes == GIB


async def test_ten_equal_requests_make_one_volume(host: World, call: Caller) -> None:
    answers = await asyncio.gather(*(call.create_volume("pvc-1") for _ in range(10)))
    assert all(answer == answers[0] for answer in answers)
    assert host.engine.calls.count(("create_volume", "pvc-1")) == 1
    await asyncio.gather(*(call.delete_volume("pvc-1") for _ in range(10)))
    assert host.engine.volumes == {}
    assert host.volumes.cached() == []


async def test_ten_volumes_from_one_absent_image_fetch_it_once(host: World, call: Caller) -> None:
    names = [f"pvc-{n}" for n in range(10)]
    await asyncio.gather(*(call.create_volume(name, handle=DOWNLOAD) for name in names))
    assert len(host.web.fetched) == 1
    contents = {host.engine.contents[v.path] for v in host.engine.volumes.values()}
    assert contents == {"image golden"}


async def test_create_and_delete_at_once_end_in_one_of_both(host: World, call: Caller) -> None:
    async def settled(calling: object) -> StatusCode | None:
        try:
            await calling  # type: ignore[misc]
        except CallFailed as exc:
            return exc.code
        return None

    for n in range(10):
        name = f"pvc-{n}"
        codes = await asyncio.gather(
            settled(call.create_volume(name)), settled(call.delete_volume(name))
        )
        assert set(codes) <= {None, StatusCode.ABORTED}
        exists = await host.volumes.find(name) is not None
        assert exists == (name in host.engine.volumes)
        await call.delete_volume(name)
        assert name not in host.engine.volumes


async def test_a_deadline_in_the_middle_is_joined_by_the_retry(host: World, call: Caller) -> None:
    host.engine.gates["create_volume"] = asyncio.Event()
    call.deadline_s = 0.3
    assert await code_of(call.create_volume("pvc-1")) is StatusCode.ABORTED
    call.deadline_s = None
    retry = asyncio.create_task(call.create_volume("pvc-1"))
    await asyncio.sleep(0)
    host.engine.gates["create_volume"].set()
    assert (await retry).volume_id == "pvc-1"
    assert host.engine.calls.count(("create_volume", "pvc-1")) == 1


async def test_a_caller_that_is_cancelled_leaves_a_volume_that_its_retry_gets(
    host: World, call: Caller
) -> None:
    for steps in range(12):
        name = f"pvc-{steps}"
        calling = asyncio.create_task(call.create_volume(name))
        for _ in range(steps):
            await asyncio.sleep(0)
        calling.cancel()
        await asyncio.wait([calling])
        assert (await call.create_volume(name)).volume_id == name
        assert host.engine.calls.count(("create_volume", name)) == 1


async def test_a_full_pool_is_told_after_nothing_is_left(host: World, call: Caller) -> None:
    host.engine.faults["create_volume"] = NoSpace("pool", GIB, 5)
    with pytest.raises(CallFailed, match="5 bytes free") as caught:
        await call.create_volume("pvc-1")
    assert caught.value.code is StatusCode.RESOURCE_EXHAUSTED
    assert host.volumes.cached() == []
    await call.create_volume("pvc-1")


async def test_a_passing_fault_of_the_node_is_tried_again(host: World, call: Caller) -> None:
    host.engine.faults["create_volume"] = Unavailable("disk", "away for a moment")
    assert (await call.create_volume("pvc-1")).volume_id == "pvc-1"


async def test_a_bug_in_create_volume_is_not_final_and_not_told(host: World, call: Caller) -> None:
    async def broken(_: object) -> None:
        raise KeyError("the password")

    host.volumes.create = broken  # type: ignore[method-assign,assignment]
    with pytest.raises(CallFailed, match=r"unexpected error [0-9a-f]{12};") as caught:
        await call.create_volume("pvc-1")
    assert caught.value.code is StatusCode.ABORTED
    assert "password" not in caught.value.text


async def test_names_that_are_no_labels_get_an_id_of_their_own(call: Caller) -> None:
    long = "A very long name with spaces " * 4
    first, second = await call.create_volume(long), await call.create_volume(long + "x")
    assert first.volume_id != second.volume_id
    assert await call.create_volume(long) == first


async def test_a_clone_has_the_content_and_lies_beside_its_source(
    host: World, call: Caller
) -> None:
    await call.create_volume("pvc-0")
    host.engine.contents["/pool/volumes/pvc-0/volume.raw"] = "ext4"
    clone = await call.create_volume("pvc-1", volume_id="pvc-0", size=2 * GIB)
    assert clone.content_source.volume.volume_id == "pvc-0"
    assert clone.capacity_bytes == 2 * GIB
    assert host.engine.contents["/pool/volumes/pvc-1/volume.raw"] == "ext4"
    too_small = call.create_volume("pvc-2", volume_id="pvc-0", size=GIB // 2)
    assert await code_of(too_small) is StatusCode.OUT_OF_RANGE
    missing = call.create_volume("pvc-2", volume_id="pvc-none")
    assert await code_of(missing) is StatusCode.NOT_FOUND


async def test_a_source_in_use_that_cannot_be_captured_is_told_at_once(
    host: World, call: Caller
) -> None:
    await call.create_volume("pvc-0")
    host.engine.faults["create_volume"] = InUse("volume", "pvc-0", "a program that writes to it")
    with pytest.raises(CallFailed, match="a program that writes to it") as caught:
        await call.create_volume("pvc-1", volume_id="pvc-0")
    assert caught.value.code is StatusCode.FAILED_PRECONDITION
    assert [v.meta.name for v in host.volumes.cached()] == ["pvc-0"]
    await call.create_volume("pvc-1", volume_id="pvc-0")


async def test_a_volume_from_a_snapshot_has_its_moment(host: World, call: Caller) -> None:
    await call.create_volume("pvc-0")
    host.engine.contents["/pool/volumes/pvc-0/volume.raw"] = "before"
    snapshot = await call.create_snapshot("snapshot-1", "pvc-0", type="snap")
    host.engine.contents["/pool/volumes/pvc-0/volume.raw"] = "after"
    await call.delete_volume("pvc-0")
    volume = await call.create_volume("pvc-1", handle=snapshot.snapshot_id)
    assert volume.content_source.snapshot.snapshot_id == snapshot.snapshot_id
    assert host.engine.contents["/pool/volumes/pvc-1/volume.raw"] == "before"
    missing = call.create_volume("pvc-2", handle="snap://pvc-0/snapshot-none")
    assert await code_of(missing) is StatusCode.NOT_FOUND
    other_volumes = call.create_volume("pvc-2", handle="snap://pvc-9/snapshot-1")
    assert await code_of(other_volumes) is StatusCode.NOT_FOUND


async def test_a_published_volume_is_not_deleted(host: World, call: Caller) -> None:
    await call.create_volume("pvc-1")
    wanted = Capability(VolumeMode.FILESYSTEM, AccessMode.SINGLE_NODE_WRITER)
    await host.node.stage(StageRequest("pvc-1", "/staging", wanted))
    with pytest.raises(CallFailed, match="in use by /staging") as caught:
        await call.delete_volume("pvc-1")
    assert caught.value.code is StatusCode.FAILED_PRECONDITION
    assert not host.volumes.cached()[0].meta.deleting
    await host.node.unstage("pvc-1", "/staging")
    await call.delete_volume("pvc-1")


@pytest.mark.parametrize("volume_id", ["pvc-none", "../pvc", "Upper/Case"])
async def test_deleting_a_volume_that_is_not_there_succeeds(call: Caller, volume_id: str) -> None:
    await call.delete_volume(volume_id)


async def test_a_deletion_that_takes_long_may_be_asked_for_again(host: World, call: Caller) -> None:
    await call.create_volume("pvc-1")
    host.engine.gates["delete_volume"] = asyncio.Event()
    call.deadline_s = 0.3
    assert await code_of(call.delete_volume("pvc-1")) is StatusCode.ABORTED
    assert await code_of(call.create_volume("pvc-1")) is StatusCode.ABORTED
    host.engine.gates["delete_volume"].set()
    call.deadline_s = None
    await call.delete_volume("pvc-1")
    assert host.engine.volumes == {}


async def test_a_source_is_not_deleted_while_a_clone_of_it_is_made(
    host: World, call: Caller
) -> None:
    await call.create_volume("pvc-0")
    host.engine.gates["create_volume"] = asyncio.Event()
    cloning = asyncio.create_task(call.create_volume("pvc-1", volume_id="pvc-0"))
    await host.engine.entered("create_volume", "pvc-1")
    assert await code_of(call.delete_volume("pvc-0")) is StatusCode.ABORTED
    host.engine.gates["create_volume"].set()
    await cloning
    await call.delete_volume("pvc-0")


async def expand(
    call: Caller, size: int, limit: int = 0, *, block: bool = False
) -> tuple[int, bool]:
    request = csi_pb2.ControllerExpandVolumeRequest(
        volume_id="pvc-1", volume_capability=capability(block=block)
    )
    request.capacity_range.required_bytes = size
    request.capacity_range.limit_bytes = limit
    answer = await call("ControllerExpandVolume", request)
    return answer.capacity_bytes, answer.node_expansion_required


async def test_a_volume_grows_and_never_shrinks(host: World, call: Caller) -> None:
    assert await code_of(expand(call, GIB)) is StatusCode.NOT_FOUND
    await call.create_volume("pvc-1")
    answers = await asyncio.gather(*(expand(call, 2 * GIB) for _ in range(10)))
    assert set(answers) == {(2 * GIB, True)}
    assert host.engine.volumes["pvc-1"].capacity_bytes == 2 * GIB
    assert await expand(call, GIB, block=True) == (2 * GIB, False)
    assert await code_of(expand(call, 0, GIB)) is StatusCode.OUT_OF_RANGE
    assert await code_of(expand(call, 3 * GIB, GIB)) is StatusCode.OUT_OF_RANGE


async def test_growing_in_a_full_pool_says_so(host: World, call: Caller) -> None:
    await call.create_volume("pvc-1")
    host.engine.faults["expand_volume"] = NoSpace("pool", GIB, 5)
    assert await code_of(expand(call, 2 * GIB)) is StatusCode.RESOURCE_EXHAUSTED


async def test_lists_come_in_stable_pages(call: Caller) -> None:
    for n in range(5):
        await call.create_volume(f"pvc-{n}")
    seen: list[str] = []
    token = ""
    while True:
        page = await call(
            "ListVolumes", csi_pb2.ListVolumesRequest(max_entries=2, starting_token=token)
        )
        seen += [entry.volume.volume_id for entry in page.entries]
        if seen[-1] == "pvc-1":
            await call.delete_volume("pvc-0")  # pages after it stay as they are
        token = page.next_token
        if not token:
            break
    assert seen == [f"pvc-{n}" for n in range(5)]


@pytest.mark.parametrize("token", ["nonsense", "after-1.", "after-1.zz", "after-2.70", "70766300"])
async def test_a_foreign_page_token_is_aborted(call: Caller, token: str) -> None:
    for request in (
        csi_pb2.ListVolumesRequest(starting_token=token),
        csi_pb2.ListSnapshotsRequest(starting_token=token),
    ):
        rpc = type(request).__name__.removesuffix("Request")
        assert await code_of(call(rpc, request)) is StatusCode.ABORTED


async def test_a_negative_page_size_is_refused(call: Caller) -> None:
    request = csi_pb2.ListVolumesRequest(max_entries=-1)
    assert await code_of(call("ListVolumes", request)) is StatusCode.INVALID_ARGUMENT


async def test_capabilities_are_confirmed_or_explained(call: Caller) -> None:
    await call.create_volume("pvc-1")
    request = csi_pb2.ValidateVolumeCapabilitiesRequest(
        volume_id="pvc-1",
        volume_capabilities=[capability(), capability(block=True)],
        parameters={"a": "b"},
    )
    answer = await call("ValidateVolumeCapabilities", request)
    assert list(answer.confirmed.volume_capabilities) == list(request.volume_capabilities)
    assert dict(answer.confirmed.parameters) == {"a": "b"}
    request.volume_capabilities.append(capability(mode="MULTI_NODE_MULTI_WRITER"))
    answer = await call("ValidateVolumeCapabilities", request)
    assert not answer.HasField("confirmed")
    assert "a volume lies on one node" in answer.message
    request.volume_id = "pvc-none"
    assert await code_of(call("ValidateVolumeCapabilities", request)) is StatusCode.NOT_FOUND


async def add_pool(host: World, node: str, free: int, *, ready: bool = True) -> None:
    conditions = (Condition("Ready", ready, "Ready"),)
    spec = PoolSpec(node, f"{node}-pool", "/pool")
    made = await host.pools.create(Pool(Meta(f"{node}-pool"), spec))
    status = PoolStatus(GIB, 0, free, 0, conditions=conditions)
    await host.pools.update_status(dataclasses.replace(made, status=status))


async def test_capacity_is_what_reachable_pools_have_free(host: World, call: Caller) -> None:
    await add_pool(host, "node-b", 7)
    await add_pool(host, "node-c", 5, ready=False)

    async def free(node: str = "", mode: str = "SINGLE_NODE_WRITER") -> int:
        request = csi_pb2.GetCapacityRequest(volume_capabilities=[capability(mode=mode)])
        if node:
            request.accessible_topology.segments["topology.shorthorn.io/node"] = node
        answer = await call("GetCapacity", request)
        assert answer.minimum_volume_size.value == 10 * MIB
        capacity: int = answer.available_capacity
        return capacity

    assert await free() == (90 << 30) + 7
    assert await free("node-b") == 7
    assert await free("node-c") == 0
    assert await code_of(free("node-z")) is StatusCode.UNAVAILABLE
    assert await free(mode="MULTI_NODE_MULTI_WRITER") == 0


async def test_a_volume_goes_where_it_is_preferred_then_where_most_is_free(
    host: World, call: Caller
) -> None:
    await add_pool(host, "node-b", 200 << 30)
    await add_pool(host, "node-c", 300 << 30, ready=False)

    async def place(name: str, requisite: list[str], preferred: list[str]) -> str:
        request = csi_pb2.CreateVolumeRequest(name=name, volume_capabilities=[capability()])
        for field, nodes in (("requisite", requisite), ("preferred", preferred)):
            for node in nodes:
                segments = getattr(request.accessibility_requirements, field).add().segments
                segments["topology.shorthorn.io/node"] = node
        call.deadline_s = 0.2  # nobody serves node-b
        code = await code_of(call("CreateVolume", request))
        if code is not StatusCode.ABORTED:
            return code.name
        found = await host.volumes.find(name)
        assert found
        return found.spec.node_id

    assert await place("pvc-1", [], []) == "node-b"
    call.deadline_s = None
    volume = await call.create_volume("pvc-2", requisite=[NODE])
    segments = volume.accessible_topology[0].segments
    assert dict(segments) == {"topology.shorthorn.io/node": NODE}
    assert await place("pvc-3", [NODE, "node-b"], ["node-b", NODE]) == "node-b"
    assert await place("pvc-4", ["node-z"], []) == "RESOURCE_EXHAUSTED"
    assert await place("pvc-5", ["node-c"], []) == "RESOURCE_EXHAUSTED"


async def test_what_is_made_from_something_lies_beside_it(host: World, call: Caller) -> None:
    await add_pool(host, "node-b", 200 << 30)
    await call.create_volume("pvc-0", requisite=[NODE])
    assert (await call.create_volume("pvc-1", volume_id="pvc-0")).volume_id == "pvc-1"
    elsewhere = call.create_volume("pvc-2", volume_id="pvc-0", requisite=["node-b"])
    assert await code_of(elsewhere) is StatusCode.RESOURCE_EXHAUSTED


async def test_a_record_on_disk_is_the_sources_own(host: World, call: Caller) -> None:
    await call.create_volume("pvc-1", handle=DOWNLOAD)
    (image,) = host.images.cached()
    assert host.engine.volumes["pvc-1"].source == VolumeSource(
        image="golden", image_uuid=image.status.uuid, handle=DOWNLOAD
    )
