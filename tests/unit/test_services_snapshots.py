"""Snapshots of both types through CSI's calls: the real controllers over an engine in memory."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator

import pytest
from grpc import StatusCode
from tests.fakes.csi_calls import GIB, Caller, CallFailed
from tests.fakes.memory_engine import CHECKSUM
from tests.fakes.world import IMAGE_BYTES, World, world

from shorthorn.csi.proto import csi_pb2
from shorthorn.domain.errors import Corrupt, InUse, NoSpace
from shorthorn.domain.models import BackingImage, BackingImageSpec, Meta

URL = "https%3A%2F%2Fexample.org%2F"
FILE = "/pool/volumes/pvc-1/volume.raw"
UID = "snapshot-b1fa93b9-6744-4cbc-aa25-275ae048c6ba"


@pytest.fixture
async def host() -> AsyncIterator[World]:
    async with world() as made:
        yield made


@pytest.fixture
async def call(host: World) -> Caller:
    caller = Caller(host)
    await caller.create_volume("pvc-1")
    return caller


def download(name: str = "golden", file: str = "a.qcow2", checksum: str = "") -> str:
    handle = f"bi://backing?backingImageDataSourceType=download&backingImage={name}&url={URL}{file}"
    return handle + (f"&backingImageChecksum={checksum}" if checksum else "")


def export_of(volume: str, name: str = "test-bi") -> str:
    return (
        f"bi://backing?backingImageDataSourceType=export-from-volume&backingImage={name}"
        f"&volume-name={volume}&export-type=qcow2"
    )


async def refused(calling: object) -> CallFailed:
    """Return how a call fails."""
    with pytest.raises(CallFailed) as caught:
        await calling  # type: ignore[misc]
    return caught.value


# --- type bi


async def test_an_export_answers_ready_with_its_moment_and_handle(
    host: World, call: Caller
) -> None:
    snapshot = await call.create_snapshot(UID, "pvc-1", type="bi", export_type="qcow2")
    assert snapshot.snapshot_id == (
        f"bi://backing?backingImageDataSourceType=export-from-volume&backingImage={UID}"
        "&volume-name=pvc-1&export-type=qcow2"
    )
    assert snapshot.source_volume_id == "pvc-1"
    assert snapshot.size_bytes == GIB
    assert snapshot.ready_to_use
    (image,) = host.images.cached()
    assert image.meta.name == UID
    point_in_time = image.status.point_in_time
    assert point_in_time
    assert snapshot.creation_time.ToMilliseconds() == int(point_in_time.timestamp() * 1000)
    host.take_over()
    assert await call.create_snapshot(UID, "pvc-1", type="bi", export_type="qcow2") == snapshot
    assert await call.list_snapshots(snapshot.snapshot_id) == [snapshot]


async def test_the_deleted_image_of_a_snapshot_is_not_made_again_from_what_the_volume_holds_now(
    call: Caller,
) -> None:
    snapshot = await call.create_snapshot(UID, "pvc-1", type="bi", export_type="qcow2")
    await call.delete_snapshot(snapshot.snapshot_id)
    error = await refused(call.create_volume("pvc-2", handle=snapshot.snapshot_id))
    assert error.code is StatusCode.NOT_FOUND
    assert "it held a snapshot and was deleted since" in error.text
    assert (await refused(call.list_snapshots(snapshot.snapshot_id))).code is StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("parameters", "stored"),
    [
        ({}, "raw"),
        ({"export-type": ""}, "raw"),
        ({"export-type": "qcow2"}, "qcow2"),
        ({"exportType": "qcow2", "export-type": "raw"}, "qcow2"),
        ({"exportType": "", "export-type": "qcow2"}, "raw"),
    ],
)
async def test_both_spellings_of_the_export_type_count(
    host: World, call: Caller, parameters: dict[str, str], stored: str
) -> None:
    request = csi_pb2.CreateSnapshotRequest(
        name="snapshot-1",
        source_volume_id="pvc-1",
        parameters={"type": "bi", "nodeSelector": "a, b", "diskSelector": "", **parameters},
    )
    await call("CreateSnapshot", request)
    (image,) = host.images.cached()
    assert dict(image.spec.source_parameters) == {"volume-name": "pvc-1", "export-type": stored}
    assert image.spec.node_selector == ("a", "b")


async def test_an_export_that_is_fixed_but_not_converted_is_not_ready_yet(
    host: World, call: Caller
) -> None:
    host.engine.contents[FILE] = "before"
    host.engine.gates["finish_export"] = asyncio.Event()
    call.deadline_s = 0.5
    first = await call.create_snapshot("snapshot-1", "pvc-1", type="bi")
    assert not first.ready_to_use
    assert first.size_bytes == GIB
    assert (await call.list_snapshots(first.snapshot_id))[0].ready_to_use is False
    host.engine.contents[FILE] = "after"
    await call.delete_volume("pvc-1")
    host.engine.gates["finish_export"].set()
    call.deadline_s = None
    second = await call.create_snapshot("snapshot-1", "pvc-1", type="bi")
    assert second.ready_to_use
    assert second.creation_time == first.creation_time
    await call.create_volume("pvc-2", handle=second.snapshot_id)
    assert host.engine.contents["/pool/volumes/pvc-2/volume.raw"] == "before"


async def test_before_its_moment_is_fixed_nothing_is_answered(host: World, call: Caller) -> None:
    host.engine.gates["begin_export"] = asyncio.Event()
    call.deadline_s = 0.3
    error = await refused(call.create_snapshot("snapshot-1", "pvc-1", type="bi"))
    assert error.code is StatusCode.ABORTED
    host.engine.gates["begin_export"].set()
    call.deadline_s = None
    assert (await call.create_snapshot("snapshot-1", "pvc-1", type="bi")).ready_to_use


@pytest.mark.parametrize("method", ["begin_export", "finish_export"])
async def test_a_failed_export_leaves_nothing_and_can_be_tried_again(
    host: World, call: Caller, method: str
) -> None:
    host.engine.faults[method] = NoSpace("pool", GIB, 5)
    error = await refused(call.create_snapshot("snapshot-1", "pvc-1", type="bi"))
    assert error.code is StatusCode.RESOURCE_EXHAUSTED
    assert "5 bytes free" in error.text
    assert host.images.cached() == []
    assert host.copies.cached() == []
    assert host.engine.fixed == {}
    assert (await call.create_snapshot("snapshot-1", "pvc-1", type="bi")).ready_to_use


async def test_a_promised_moment_is_never_replaced_by_a_later_one(
    host: World, call: Caller
) -> None:
    host.engine.gates["finish_export"] = asyncio.Event()
    host.engine.faults["finish_export"] = NoSpace("pool", GIB, 5)
    call.deadline_s = 0.5
    promised = await call.create_snapshot("snapshot-1", "pvc-1", type="bi")
    assert not promised.ready_to_use
    call.deadline_s = None
    host.engine.gates["finish_export"].set()
    for _ in range(2):
        error = await refused(call.create_snapshot("snapshot-1", "pvc-1", type="bi"))
        assert error.code is StatusCode.RESOURCE_EXHAUSTED
    listed = await refused(call.list_snapshots(promised.snapshot_id))
    assert listed.code is StatusCode.RESOURCE_EXHAUSTED
    assert host.engine.calls.count(("begin_export", "snapshot-1")) == 1
    await call.delete_snapshot(promised.snapshot_id)
    assert (await call.create_snapshot("snapshot-1", "pvc-1", type="bi")).ready_to_use


async def test_ten_equal_exports_are_one(host: World, call: Caller) -> None:
    answers = await asyncio.gather(
        *(call.create_snapshot("snapshot-1", "pvc-1", type="bi") for _ in range(10))
    )
    assert all(answer == answers[0] for answer in answers)
    assert host.engine.calls.count(("begin_export", "snapshot-1")) == 1
    handle = answers[0].snapshot_id
    await asyncio.gather(*(call.delete_snapshot(handle) for _ in range(10)))
    assert host.engine.images == {}


async def test_a_name_of_one_type_is_not_free_for_the_other(call: Caller) -> None:
    await call.create_snapshot("snapshot-1", "pvc-1", type="bi")
    await call.create_snapshot("snapshot-2", "pvc-1", type="snap")
    for name, kind in (("snapshot-1", "snap"), ("snapshot-2", "bi")):
        error = await refused(call.create_snapshot(name, "pvc-1", type=kind))
        assert error.code is StatusCode.ALREADY_EXISTS


async def test_an_image_of_another_source_is_not_taken_for_an_export(
    host: World, call: Caller
) -> None:
    spec = BackingImageSpec("download", {"url": "https://example.org/a"})
    await host.images.create(BackingImage(Meta("snapshot-1"), spec))
    error = await refused(call.create_snapshot("snapshot-1", "pvc-1", type="bi"))
    assert error.code is StatusCode.ALREADY_EXISTS
    assert "its source type is download" in error.text


@pytest.mark.parametrize("kind", ["bi", "snap"])
async def test_a_volume_in_use_that_cannot_be_captured_is_told_at_once(
    host: World, call: Caller, kind: str
) -> None:
    method = "begin_export" if kind == "bi" else "create_snapshot"
    host.engine.faults[method] = InUse("volume", "pvc-1", "a program that writes to it")
    error = await refused(call.create_snapshot("snapshot-1", "pvc-1", type=kind))
    assert error.code is StatusCode.FAILED_PRECONDITION
    assert "a program that writes to it" in error.text
    assert host.images.cached() == []
    assert host.snapshots.cached() == []
    assert (await call.create_snapshot("snapshot-1", "pvc-1", type=kind)).ready_to_use


async def test_an_export_on_demand_of_a_volume_in_use_is_told_at_once(
    host: World, call: Caller
) -> None:
    host.engine.faults["begin_export"] = InUse("volume", "pvc-1", "a program that writes to it")
    error = await refused(call.create_volume("pvc-2", handle=export_of("pvc-1")))
    assert error.code is StatusCode.FAILED_PRECONDITION
    assert [v.meta.name for v in host.volumes.cached()] == ["pvc-1"]
    found = await host.images.wait("test-bi", lambda i: bool(i and i.is_ready), timeout_s=5)
    assert found
    await call.create_volume("pvc-2", handle=export_of("pvc-1"))


# --- images on demand


async def test_a_handle_that_can_be_made_is_ready_and_its_time_is_stable(
    host: World, call: Caller
) -> None:
    for handle in (download(), export_of("pvc-1")):
        first = (await call.list_snapshots(handle))[0]
        assert first.ready_to_use
        assert first.snapshot_id == handle
        assert first.creation_time.seconds
        assert (await call.list_snapshots(handle))[0] == first
    assert host.images.cached() == []


async def test_an_image_is_exported_on_demand(host: World, call: Caller) -> None:
    host.engine.contents[FILE] = "data"
    await call.create_volume("pvc-2", handle=export_of("pvc-1"))
    assert host.engine.contents["/pool/volumes/pvc-2/volume.raw"] == "data"
    (image,) = host.images.cached()
    assert image.meta.name == "test-bi"


async def test_unknown_parameters_are_kept_verbatim(host: World, call: Caller) -> None:
    await call.create_volume("pvc-2", handle=download() + "&secret=x&minNumberOfCopies=7")
    (image,) = host.images.cached()
    assert dict(image.spec.source_parameters) == {
        "url": "https://example.org/a.qcow2",
        "secret": "x",
        "minNumberOfCopies": "7",
    }
    assert image.spec.min_number_of_copies == 1


async def test_a_failed_download_repeats_its_reason_without_fetching_again(
    host: World, call: Caller
) -> None:
    handle = download(file="missing")
    first = await refused(call.create_volume("pvc-2", handle=handle))
    assert first.code is StatusCode.FAILED_PRECONDITION
    assert "the server answered 404" in first.text
    again = await refused(call.create_volume("pvc-3", handle=handle))
    listed = await refused(call.list_snapshots(handle))
    tolerant = "bi://backing?backingImageDataSourceType=download&backingImage=golden"
    by_name = await refused(call.create_volume("pvc-4", handle=tolerant))
    for error in (again, listed, by_name):
        assert (error.code, error.text) == (first.code, first.text)
    assert len(host.web.fetched) == 1
    assert [v.meta.name for v in host.volumes.cached()] == ["pvc-1"]


async def test_a_failed_image_is_replaced_by_a_request_with_other_parameters(
    host: World, call: Caller
) -> None:
    await refused(call.create_volume("pvc-2", handle=download(file="missing")))
    (described,) = await call.list_snapshots(download())
    assert described.ready_to_use
    assert (await call.create_volume("pvc-2", handle=download())).volume_id == "pvc-2"
    assert len(host.web.fetched) == 2
    (image,) = host.images.cached()
    assert image.spec.source_parameters["url"] == "https://example.org/a.qcow2"


async def test_a_wrong_checksum_is_data_loss_and_leaves_no_volume(
    host: World, call: Caller
) -> None:
    wrong = download(checksum="d" * 128)
    error = await refused(call.create_volume("pvc-2", handle=wrong))
    assert error.code is StatusCode.DATA_LOSS
    assert "d" * 128 in error.text
    assert CHECKSUM in error.text
    assert (await refused(call.list_snapshots(wrong))).code is StatusCode.DATA_LOSS
    await call.create_volume("pvc-2", handle=download(checksum=CHECKSUM))


async def test_a_ready_image_is_never_replaced(host: World, call: Caller) -> None:
    await call.create_volume("pvc-2", handle=download())
    error = await refused(call.create_volume("pvc-3", handle=download(file="b.qcow2")))
    assert error.code is StatusCode.INVALID_ARGUMENT
    assert "different from the parameters" in error.text
    assert len(host.web.fetched) == 1


@pytest.mark.parametrize(
    ("handle", "code"),
    [
        pytest.param(
            "bi://backing?backingImageDataSourceType=upload&backingImage=golden",
            StatusCode.INVALID_ARGUMENT,
            id="other type than the image's",
        ),
        pytest.param(download(file="b.qcow2"), StatusCode.INVALID_ARGUMENT, id="other parameters"),
        pytest.param(
            download(checksum="d" * 128), StatusCode.INVALID_ARGUMENT, id="other checksum"
        ),
        pytest.param(
            download(name="none").replace("=download", "=upload"),
            StatusCode.INVALID_ARGUMENT,
            id="absent and not to be made",
        ),
        pytest.param(export_of("pvc-none"), StatusCode.INVALID_ARGUMENT, id="no such volume"),
        pytest.param("bi://backing?backingImage=x", StatusCode.INVALID_ARGUMENT, id="incomplete"),
        pytest.param(download(name="A_B"), StatusCode.INVALID_ARGUMENT, id="impossible name"),
    ],
)
async def test_a_wrong_image_handle_is_an_error_with_its_reason(
    call: Caller, handle: str, code: StatusCode
) -> None:
    await call.create_volume("pvc-2", handle=download())
    for rpc in ("ListSnapshots", "GetSnapshot"):
        request = getattr(csi_pb2, f"{rpc}Request")(snapshot_id=handle)
        assert (await refused(call(rpc, request))).code is code


async def test_an_image_while_it_arrives_is_listed_as_not_ready(host: World, call: Caller) -> None:
    host.web.gate.clear()
    call.deadline_s = 0.3
    await refused(call.create_volume("pvc-2", handle=download()))
    (listed,) = await call.list_snapshots(download())
    assert not listed.ready_to_use
    assert listed.creation_time.seconds
    host.web.gate.set()
    call.deadline_s = None
    await call.create_volume("pvc-2", handle=download())
    (ready,) = await call.list_snapshots(download())
    assert ready.ready_to_use
    assert ready.size_bytes == IMAGE_BYTES
    assert ready.creation_time == listed.creation_time


async def test_deleting_an_image_stops_its_download(host: World, call: Caller) -> None:
    host.web.gate.clear()
    call.deadline_s = 0.3
    await refused(call.create_volume("pvc-2", handle=download()))
    call.deadline_s = None
    await call.delete_snapshot(download())
    assert host.images.cached() == []
    assert host.copies.cached() == []


async def test_a_handle_that_describes_another_image_of_that_name_deletes_nothing(
    host: World, call: Caller
) -> None:
    await call.create_volume("pvc-2", handle=download())
    others = [download(file="b.qcow2"), download(checksum="a" * 128), export_of("pvc-1", "golden")]
    for handle in others:
        await refused(call("GetSnapshot", csi_pb2.GetSnapshotRequest(snapshot_id=handle)))
        await call.delete_snapshot(handle)
    (image,) = host.images.cached()
    assert not image.meta.deleting
    await call.delete_snapshot(download())
    assert host.images.cached() == []


async def test_an_image_is_not_deleted_while_a_volume_is_made_from_it(
    host: World, call: Caller
) -> None:
    await call.create_volume("pvc-2", handle=download())
    host.engine.gates["create_volume"] = asyncio.Event()
    making = asyncio.create_task(call.create_volume("pvc-3", handle=download()))
    await host.engine.entered("create_volume", "pvc-3")
    assert (await refused(call.delete_snapshot(download()))).code is StatusCode.ABORTED
    host.engine.gates["create_volume"].set()
    await making
    await call.delete_snapshot(download())
    assert host.engine.images == {}
    assert host.engine.contents["/pool/volumes/pvc-3/volume.raw"] == "image golden"


async def test_an_image_that_is_being_deleted_is_waited_for(host: World, call: Caller) -> None:
    await call.create_volume("pvc-2", handle=download())
    host.engine.gates["delete_image"] = asyncio.Event()
    call.deadline_s = 0.3
    assert (await refused(call.delete_snapshot(download()))).code is StatusCode.ABORTED
    assert (await refused(call.create_volume("pvc-3", handle=download()))).code is (
        StatusCode.ABORTED
    )
    host.engine.gates["delete_image"].set()
    call.deadline_s = None
    await call.delete_snapshot(download())
    await call.create_volume("pvc-3", handle=download())
    assert len(host.web.fetched) == 2


async def test_a_lost_image_says_so(host: World, call: Caller) -> None:
    await call.create_volume("pvc-2", handle=download())
    host.engine.images.clear()
    (copy,) = host.copies.cached()
    await host.copies.update_status(copy)  # have it looked at
    (image,) = host.images.cached()
    found = await host.images.wait(image.meta.name, lambda i: bool(i and i.failure), timeout_s=5)
    assert found
    error = await refused(call.create_volume("pvc-3", handle=download()))
    assert error.code is StatusCode.DATA_LOSS


# --- type snap


async def test_a_snapshot_beside_its_volume(host: World, call: Caller) -> None:
    first = await call.create_snapshot("snapshot-1", "pvc-1")
    assert first.snapshot_id == "snap://pvc-1/snapshot-1"
    assert first.ready_to_use
    assert first.size_bytes == GIB
    host.take_over()
    assert await call.create_snapshot("snapshot-1", "pvc-1", type="snap") == first
    assert await call.list_snapshots(first.snapshot_id) == [first]
    got = await call("GetSnapshot", csi_pb2.GetSnapshotRequest(snapshot_id=first.snapshot_id))
    assert got.snapshot == first
    await call.delete_snapshot(first.snapshot_id)
    assert host.engine.snapshots == {}


async def test_ten_equal_snapshots_are_one(host: World, call: Caller) -> None:
    answers = await asyncio.gather(
        *(call.create_snapshot("snapshot-1", "pvc-1") for _ in range(10))
    )
    assert all(answer == answers[0] for answer in answers)
    assert host.engine.calls.count(("create_snapshot", "snapshot-1")) == 1


async def test_a_snapshot_of_another_volume_is_refused(call: Caller) -> None:
    await call.create_volume("pvc-2")
    await call.create_snapshot("snapshot-1", "pvc-1")
    error = await refused(call.create_snapshot("snapshot-1", "pvc-2"))
    assert error.code is StatusCode.ALREADY_EXISTS
    assert "it is of volume pvc-1" in error.text


@pytest.mark.parametrize("kind", ["bak", "bs", "SNAP", "x"])
async def test_types_that_are_not_offered_are_refused(call: Caller, kind: str) -> None:
    error = await refused(call.create_snapshot("snapshot-1", "pvc-1", type=kind))
    assert error.code is StatusCode.INVALID_ARGUMENT
    assert "use snap or bi" in error.text


async def test_a_failed_snapshot_leaves_nothing(host: World, call: Caller) -> None:
    host.engine.faults["create_snapshot"] = Corrupt("volume", "pvc-1", "bad sector")
    error = await refused(call.create_snapshot("snapshot-1", "pvc-1"))
    assert error.code is StatusCode.DATA_LOSS
    assert host.snapshots.cached() == []


async def test_a_snapshot_in_the_making_may_be_asked_for_again(host: World, call: Caller) -> None:
    host.engine.gates["create_snapshot"] = asyncio.Event()
    call.deadline_s = 0.3
    assert (await refused(call.create_snapshot("snapshot-1", "pvc-1"))).code is StatusCode.ABORTED
    assert (await refused(call.create_volume("pvc-2", handle="snap://pvc-1/snapshot-1"))).code is (
        StatusCode.ABORTED
    )
    assert await call.list_snapshots("snap://pvc-1/snapshot-1") == []
    host.engine.gates["create_snapshot"].set()
    call.deadline_s = None
    assert (await call.create_snapshot("snapshot-1", "pvc-1")).ready_to_use


@pytest.mark.parametrize("volume_id", ["pvc-none", "../pvc-1"])
@pytest.mark.parametrize("kind", ["bi", "snap"])
async def test_a_snapshot_of_a_missing_volume_is_not_found(
    host: World, call: Caller, kind: str, volume_id: str
) -> None:
    error = await refused(call.create_snapshot("snapshot-1", volume_id, type=kind))
    assert error.code is StatusCode.NOT_FOUND
    assert host.images.cached() == []


async def test_a_volume_that_is_not_ready_is_waited_for(host: World, call: Caller) -> None:
    host.engine.gates["create_volume"] = asyncio.Event()
    call.deadline_s = 0.3
    await refused(call.create_volume("pvc-2"))
    for kind in ("bi", "snap"):
        error = await refused(call.create_snapshot("snapshot-1", "pvc-2", type=kind))
        assert error.code is StatusCode.ABORTED
    for source in ({"volume_id": "pvc-2"}, {"handle": export_of("pvc-2")}):
        error = await refused(call.create_volume("pvc-3", **source))
        assert error.code is StatusCode.ABORTED


# --- lists


@pytest.mark.parametrize(
    "handle",
    ["nonsense", "bak://pvc-1/b", "snap://pvc-1/none", "snap://pvc-1/../x", "snap://x", "://"],
)
async def test_ids_of_no_known_form_and_missing_snapshots_give_an_empty_list(
    call: Caller, handle: str
) -> None:
    assert await call.list_snapshots(handle) == []
    request = csi_pb2.GetSnapshotRequest(snapshot_id=handle)
    assert (await refused(call("GetSnapshot", request))).code is StatusCode.NOT_FOUND


async def test_all_snapshots_of_volumes_are_listed_in_pages(host: World, call: Caller) -> None:
    await call.create_volume("pvc-2", handle=download())
    made = [
        await call.create_snapshot("snapshot-1", "pvc-1", type="bi"),
        await call.create_snapshot("snapshot-2", "pvc-2", type="bi"),
        await call.create_snapshot("snapshot-3", "pvc-1", type="snap"),
    ]

    async def listed(**wanted: object) -> list[csi_pb2.Snapshot]:
        found: list[csi_pb2.Snapshot] = []
        token = ""
        while True:
            request = csi_pb2.ListSnapshotsRequest(
                max_entries=1,
                starting_token=token,
                **wanted,  # type: ignore[arg-type]
            )
            answer = await call("ListSnapshots", request)
            found += [entry.snapshot for entry in answer.entries]
            token = answer.next_token
            if not token:
                return found

    assert await listed() == made
    assert await listed(source_volume_id="pvc-1") == [made[0], made[2]]
    assert await listed(source_volume_id="pvc-none") == []
    doomed = next(i for i in host.images.cached() if i.meta.name == "snapshot-2")
    marked = dataclasses.replace(doomed.meta, finalizers=(*doomed.meta.finalizers, "test"))
    await host.images.update(dataclasses.replace(doomed, meta=marked))
    await host.images.delete("snapshot-2")
    assert await listed(source_volume_id="pvc-2") == []
