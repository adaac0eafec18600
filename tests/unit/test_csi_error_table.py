"""Every row of the compatibility facts' error table for images, one test each, by its call and
situation; rows where we answer another code say so in their id and in docs/differences.md.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from grpc import StatusCode
from tests.fakes.csi_calls import GIB, MIB, Caller, CallFailed, capability
from tests.fakes.memory_engine import CHECKSUM
from tests.fakes.world import IMAGE_BYTES, World, world

from shorthorn.csi.proto import csi_pb2
from shorthorn.domain.errors import Unavailable
from shorthorn.domain.models import BackingImage, BackingImageSpec, Meta

URL = "https%3A%2F%2Fexample.org%2Fa.qcow2"
DOWNLOAD = f"bi://backing?backingImageDataSourceType=download&backingImage=golden&url={URL}"
DIFFERENCES = Path(__file__).parents[2] / "docs" / "differences.md"


@pytest.fixture
async def host() -> AsyncIterator[World]:
    async with world() as made:
        yield made


@pytest.fixture
def call(host: World) -> Caller:
    return Caller(host)


async def refuse(call: Caller, name: str = "pvc-1", **wanted: object) -> None:
    await call.create_volume(name, **wanted)


async def snapshot_without_name(call: Caller) -> None:
    await call.create_volume("pvc-1")
    await call.create_snapshot("", "pvc-1", type="bi")


async def snapshot_without_volume_id(call: Caller) -> None:
    await call.create_snapshot("snapshot-1", "", type="bi")


async def snapshot_of_unknown_type(call: Caller) -> None:
    await call.create_volume("pvc-1")
    await call.create_snapshot("snapshot-1", "pvc-1", type="bx")


async def snapshot_of_missing_volume(call: Caller) -> None:
    await call.create_snapshot("snapshot-1", "pvc-none", type="bi")


async def snapshot_with_bad_export_type(call: Caller) -> None:
    await call.create_volume("pvc-1")
    await call.create_snapshot("snapshot-1", "pvc-1", type="bi", export_type="vmdk")


async def snapshot_again_of_other_volume(call: Caller) -> None:
    for name in ("pvc-1", "pvc-2"):
        await call.create_volume(name)
    await call.create_snapshot("snapshot-1", "pvc-1", type="bi")
    await call.create_snapshot("snapshot-1", "pvc-2", type="bi")


async def snapshot_again_with_other_export_type(call: Caller) -> None:
    await call.create_volume("pvc-1")
    await call.create_snapshot("snapshot-1", "pvc-1", type="bi", export_type="raw")
    await call.create_snapshot("snapshot-1", "pvc-1", type="bi", export_type="qcow2")


def volume_from(handle: str, size: int = GIB) -> Callable[[Caller], Awaitable[None]]:
    async def run(call: Caller) -> None:
        await call.create_volume("pvc-9", handle=handle, size=size)

    return run


def volume_of_existing(addition: str, size: int = GIB) -> Callable[[Caller], Awaitable[None]]:
    async def run(call: Caller) -> None:
        await call.create_volume("pvc-1", handle=DOWNLOAD)
        handle = f"bi://backing?backingImage=golden&{addition}"
        await call.create_volume("pvc-2", handle=handle, size=size)

    return run


async def volume_again_with_other_size(call: Caller) -> None:
    await call.create_volume("pvc-1", handle=DOWNLOAD, size=GIB)
    await call.create_volume("pvc-1", handle=DOWNLOAD, size=2 * GIB)


async def delete_empty_id(call: Caller) -> None:
    await call.delete_snapshot("")


ROWS = [
    pytest.param(
        snapshot_without_name,
        StatusCode.INVALID_ARGUMENT,
        id="CreateSnapshot: empty name",
    ),
    pytest.param(
        snapshot_without_volume_id,
        StatusCode.INVALID_ARGUMENT,
        id="CreateSnapshot: empty volume id",
    ),
    pytest.param(
        snapshot_of_unknown_type,
        StatusCode.INVALID_ARGUMENT,
        id="CreateSnapshot: unknown type",
    ),
    pytest.param(
        snapshot_of_missing_volume,
        StatusCode.NOT_FOUND,
        id="CreateSnapshot: volume missing",
    ),
    pytest.param(
        snapshot_with_bad_export_type,
        StatusCode.INVALID_ARGUMENT,
        id="CreateSnapshot: webhook refuses (bad export type) [differs]",
    ),
    pytest.param(
        snapshot_again_of_other_volume,
        StatusCode.ALREADY_EXISTS,
        id="CreateSnapshot: same name, other volume [differs]",
    ),
    pytest.param(
        snapshot_again_with_other_export_type,
        StatusCode.ALREADY_EXISTS,
        id="CreateSnapshot: same name, other export type [differs]",
    ),
    pytest.param(
        volume_from("bak://pvc-1/b"),
        StatusCode.INVALID_ARGUMENT,
        id="CreateVolume: handle scheme not known (bak)",
    ),
    pytest.param(
        volume_from("nonsense"),
        StatusCode.NOT_FOUND,
        id="CreateVolume: handle without scheme [differs]",
    ),
    pytest.param(
        volume_from("bi://backing?backingImage=x"),
        StatusCode.INVALID_ARGUMENT,
        id="CreateVolume: bi handle lacks source type",
    ),
    pytest.param(
        volume_from("bi://backing?backingImageDataSourceType=download"),
        StatusCode.INVALID_ARGUMENT,
        id="CreateVolume: bi handle lacks name",
    ),
    pytest.param(
        volume_from("bi://back ing:x?backingImage=a&backingImageDataSourceType=download"),
        StatusCode.INVALID_ARGUMENT,
        id="CreateVolume: bi handle unparsable",
    ),
    *(
        pytest.param(
            volume_from(f"bi://backing?backingImage=ab&backingImageDataSourceType={kind}&url=x"),
            StatusCode.INVALID_ARGUMENT,
            id=f"CreateVolume: BI absent, type {kind}",
        )
        for kind in ("upload", "restore", "clone", "export-form-volume")
    ),
    pytest.param(
        volume_from("bi://backing?backingImage=ab&backingImageDataSourceType=download"),
        StatusCode.INVALID_ARGUMENT,
        id="CreateVolume: BI absent, missing url",
    ),
    pytest.param(
        volume_from(
            "bi://backing?backingImage=ab&backingImageDataSourceType=export-from-volume"
            "&export-type=raw"
        ),
        StatusCode.INVALID_ARGUMENT,
        id="CreateVolume: BI absent, missing volume-name",
    ),
    pytest.param(
        volume_from(
            "bi://backing?backingImage=ab&backingImageDataSourceType=export-from-volume"
            "&volume-name=pvc-1"
        ),
        StatusCode.INVALID_ARGUMENT,
        id="CreateVolume: BI absent, missing export-type",
    ),
    pytest.param(
        volume_from(
            "bi://backing?backingImage=ab&backingImageDataSourceType=download&url=ftp%3A%2F%2Fh"
        ),
        StatusCode.INVALID_ARGUMENT,
        id="CreateVolume: BI absent, webhook refuses (url scheme)",
    ),
    pytest.param(
        volume_from(DOWNLOAD + "&backingImageChecksum=abc"),
        StatusCode.INVALID_ARGUMENT,
        id="CreateVolume: BI absent, webhook refuses (checksum format)",
    ),
    pytest.param(
        volume_from(DOWNLOAD.replace("golden", "UP_CASE")),
        StatusCode.INVALID_ARGUMENT,
        id="CreateVolume: BI absent, webhook refuses (name)",
    ),
    pytest.param(
        volume_of_existing("backingImageDataSourceType=upload"),
        StatusCode.INVALID_ARGUMENT,
        id="CreateVolume: BI present, type mismatch",
    ),
    pytest.param(
        volume_of_existing("backingImageDataSourceType=download&url=https%3A%2F%2Felsewhere%2Fx"),
        StatusCode.INVALID_ARGUMENT,
        id="CreateVolume: BI present, params mismatch",
    ),
    pytest.param(
        volume_of_existing(f"backingImageDataSourceType=download&url={URL}&checksum={CHECKSUM}"),
        StatusCode.INVALID_ARGUMENT,
        id="CreateVolume: BI present, an extra parameter (checksum=)",
    ),
    pytest.param(
        volume_of_existing(f"backingImageDataSourceType=download&backingImageChecksum={'d' * 128}"),
        StatusCode.INVALID_ARGUMENT,
        id="CreateVolume: BI present, checksum mismatch",
    ),
    pytest.param(
        volume_of_existing("backingImageDataSourceType=download", size=IMAGE_BYTES // 2),
        StatusCode.OUT_OF_RANGE,
        id="CreateVolume: size < virtual size [differs]",
    ),
    pytest.param(
        volume_again_with_other_size,
        StatusCode.ALREADY_EXISTS,
        id="CreateVolume: volume exists with other size",
    ),
    pytest.param(
        delete_empty_id,
        StatusCode.INVALID_ARGUMENT,
        id="DeleteSnapshot: empty id",
    ),
]


@pytest.mark.parametrize(("situation", "code"), ROWS)
async def test_a_row_of_the_table_answers_its_code(
    call: Caller, situation: Callable[[Caller], Awaitable[None]], code: StatusCode
) -> None:
    with pytest.raises(CallFailed) as caught:
        await situation(call)
    assert caught.value.code is code, caught.value


async def test_a_handle_without_scheme_is_answered_with_the_forms_that_exist(call: Caller) -> None:
    with pytest.raises(CallFailed, match="begins with bi://") as caught:
        await call.create_volume("pvc-1", handle="x" * 5000)
    assert caught.value.code is StatusCode.NOT_FOUND
    assert len(caught.value.text) < 500


async def test_create_volume_engine_mismatch_is_the_callers_mistake(call: Caller) -> None:
    """CreateVolume: engine mismatch [differs]."""
    with pytest.raises(CallFailed, match="dataEngine") as caught:
        await call.create_volume("pvc-1", handle=DOWNLOAD, parameters={"dataEngine": "v2"})
    assert caught.value.code is StatusCode.INVALID_ARGUMENT


async def test_create_snapshot_api_down_may_be_tried_again(host: World, call: Caller) -> None:
    """CreateSnapshot: API down [differs]."""
    await call.create_volume("pvc-1")

    async def away(_: object) -> BackingImage:
        raise Unavailable("kube-apiserver", "connection refused")

    host.images.create = away  # type: ignore[method-assign,assignment]
    with pytest.raises(CallFailed) as caught:
        await call.create_snapshot("snapshot-1", "pvc-1", type="bi")
    assert caught.value.code is StatusCode.UNAVAILABLE


async def test_create_volume_not_created_in_time_may_be_asked_again(
    host: World, call: Caller
) -> None:
    """CreateVolume: volume not created within its time [differs]."""
    host.web.gate.clear()
    call.deadline_s = 0.5
    with pytest.raises(CallFailed, match="golden is not finished: in-progress 25 %") as caught:
        await call.create_volume("pvc-1", handle=DOWNLOAD)
    assert caught.value.code is StatusCode.ABORTED
    assert host.volumes.cached() == []
    host.web.gate.set()
    call.deadline_s = 20
    assert (await call.create_volume("pvc-1", handle=DOWNLOAD)).volume_id == "pvc-1"
    assert len(host.web.fetched) == 1


@pytest.mark.parametrize(
    "handle",
    [
        pytest.param(DOWNLOAD, id="DeleteSnapshot: BI gone"),
        pytest.param("bi://backing?backingImage=none", id="DeleteSnapshot: BI gone, name only"),
        pytest.param("bi://back ing:x?y", id="DeleteSnapshot: bi unparsable"),
        pytest.param("bak://pvc-1/backup", id="DeleteSnapshot: unknown scheme"),
        pytest.param("nonsense", id="DeleteSnapshot: plain string"),
        pytest.param("snap://pvc-1/none", id="DeleteSnapshot: snapshot gone"),
        pytest.param("snap://", id="DeleteSnapshot: snap without id [differs]"),
    ],
)
async def test_deleting_what_is_not_there_succeeds(call: Caller, handle: str) -> None:
    await call.delete_snapshot(handle)


async def test_deleting_an_image_that_volumes_were_made_from_succeeds(
    host: World, call: Caller
) -> None:
    """DeleteSnapshot: BI used by a replica [differs]: its volumes do not need it."""
    await call.create_volume("pvc-1", handle=DOWNLOAD)
    await call.delete_snapshot(DOWNLOAD)
    assert host.images.cached() == []
    assert host.engine.contents["/pool/volumes/pvc-1/volume.raw"] == "image golden"


@pytest.mark.parametrize(
    ("rpc", "request_"),
    [
        pytest.param(
            "ControllerPublishVolume",
            csi_pb2.ControllerPublishVolumeRequest(),
            id="ControllerPublish: not needed [differs]",
        ),
        pytest.param(
            "ControllerModifyVolume",
            csi_pb2.ControllerModifyVolumeRequest(),
            id="ControllerModifyVolume: always",
        ),
    ],
)
async def test_what_is_not_offered_is_unimplemented(
    call: Caller, rpc: str, request_: object
) -> None:
    with pytest.raises(CallFailed) as caught:
        await call(rpc, request_)
    assert caught.value.code is StatusCode.UNIMPLEMENTED


async def test_lists_and_controller_get_volume_are_implemented(call: Caller) -> None:
    """ListSnapshots, ListVolumes, ControllerGetVolume: always Unimplemented [differs]."""
    await call.create_volume("pvc-1")
    await call.create_snapshot("snapshot-1", "pvc-1", type="bi")
    volumes = await call("ListVolumes", csi_pb2.ListVolumesRequest())
    assert [entry.volume.volume_id for entry in volumes.entries] == ["pvc-1"]
    assert len(await call.list_snapshots("")) == 1
    got = await call("ControllerGetVolume", csi_pb2.ControllerGetVolumeRequest(volume_id="pvc-1"))
    assert got.volume == volumes.entries[0].volume


async def test_a_volume_name_that_is_a_claims_name_names_the_right_handle(
    host: World, call: Caller
) -> None:
    host.claims.handles["test-vol"] = ["pvc-1"]
    handle = (
        "bi://backing?backingImageDataSourceType=export-from-volume&backingImage=test-bi"
        "&volume-name=test-vol&export-type=qcow2"
    )
    with pytest.raises(CallFailed, match="write volume-name=pvc-1") as caught:
        await call.create_volume("pvc-2", handle=handle)
    assert caught.value.code is StatusCode.INVALID_ARGUMENT
    with pytest.raises(CallFailed, match="write volume-name=pvc-1"):
        await call.list_snapshots(handle)


async def test_every_row_that_differs_is_documented() -> None:
    text = DIFFERENCES.read_text()
    marked = [str(row.id) for row in ROWS if "[differs]" in str(row.id)]
    assert marked
    for row in marked:
        title = row.removesuffix(" [differs]")
        assert f"`{title}`" in text, title


async def test_storage_class_parameters_ask_for_an_image_like_a_handle_does(
    host: World, call: Caller
) -> None:
    parameters = {
        "backingImage": "golden",
        "backingImageDataSourceType": "download",
        "backingImageDataSourceParameters": json.dumps({"url": "https://example.org/a.qcow2"}),
        "backingImageMinNumberOfCopies": "2",
        "numberOfReplicas": "3",
        "staleReplicaTimeout": "30",
        "fromBackup": "",
    }
    volume = await call.create_volume("pvc-1", parameters=parameters)
    assert dict(volume.volume_context) == parameters
    assert not volume.HasField("content_source")
    image = host.images.cached()[0]
    assert image.spec.min_number_of_copies == 2


async def test_a_handle_wins_over_the_storage_class(host: World, call: Caller) -> None:
    volume = await call.create_volume(
        "pvc-1",
        handle=DOWNLOAD,
        parameters={"backingImage": "other", "backingImageChecksum": "d" * 128, "fsType": "ext4"},
    )
    assert dict(volume.volume_context) == {
        "fsType": "ext4",
        "backingImage": "golden",
        "backingImageDataSourceType": "download",
        "backingImageChecksum": "",
        "backingImageDataSourceParameters": '{"url": "https://example.org/a.qcow2"}',
    }
    assert volume.content_source.snapshot.snapshot_id == DOWNLOAD


async def test_an_image_made_by_hand_is_used_and_can_be_described(
    host: World, call: Caller
) -> None:
    spec = BackingImageSpec("download", {"url": "https://example.org/a.qcow2"})
    await host.images.create(BackingImage(Meta("golden"), spec))
    handle = "bi://backing?backingImage=golden&backingImageDataSourceType=download"
    volume = await call.create_volume("pvc-1", handle=handle, capabilities=[capability(block=True)])
    assert volume.capacity_bytes == GIB
    (snapshot,) = await call.list_snapshots(handle)
    assert snapshot.ready_to_use
    assert snapshot.size_bytes == IMAGE_BYTES
    assert snapshot.creation_time.seconds > 0


@pytest.mark.parametrize(
    ("size", "capacity"),
    [(0, IMAGE_BYTES), (IMAGE_BYTES, IMAGE_BYTES), (65 * MIB, 66 * MIB)],
)
async def test_a_volume_from_an_image_is_at_least_as_large(
    call: Caller, size: int, capacity: int
) -> None:
    volume = await call.create_volume("pvc-1", handle=DOWNLOAD, size=size)
    assert volume.capacity_bytes == capacity
