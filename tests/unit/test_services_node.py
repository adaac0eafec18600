"""Staging, publishing and back, on a kernel in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from grpc import StatusCode
from tests.fakes.csi_calls import GIB, Caller, CallFailed, capability
from tests.fakes.memory_node import Killed
from tests.fakes.world import World

from shorthorn.csi.proto import csi_pb2
from shorthorn.domain.errors import (
    AlreadyExists,
    Corrupt,
    InUse,
    InvalidArgument,
    NotFound,
    SizeOutOfRange,
    UnsupportedCapability,
    VolumeModeMismatch,
    WrongState,
)
from shorthorn.domain.models import FormatState, VolumeSource
from shorthorn.services.capabilities import AccessMode, Capability, VolumeMode
from shorthorn.services.node import PublishRequest, StageRequest

STAGING = "/staging/pvc-1"
TARGET = "/pods/1/volume"
VOLUME_FILE = "/pool/volumes/pvc-1/volume.raw"
COPY = "/pool/volumes/pvc-1/read-only.raw"
WRITER = Capability(VolumeMode.FILESYSTEM, AccessMode.SINGLE_NODE_WRITER)
READER = Capability(VolumeMode.FILESYSTEM, AccessMode.SINGLE_NODE_READER_ONLY)
BLOCK = Capability(VolumeMode.BLOCK, AccessMode.SINGLE_NODE_WRITER)
BLOCK_READER = Capability(VolumeMode.BLOCK, AccessMode.SINGLE_NODE_READER_ONLY)


@pytest.fixture
async def host() -> World:
    """A world without controllers, with one blank volume."""
    made = World()
    await made.engine.create_volume("pvc-1", GIB, VolumeSource())
    return made


async def restored(host: World, content: str) -> None:
    """Let pvc-1 be a volume made from an image that holds `content`."""
    await host.engine.delete_volume("pvc-1")
    await host.engine.create_volume("pvc-0", GIB, VolumeSource())
    host.engine.contents["/pool/volumes/pvc-0/volume.raw"] = content
    await host.engine.create_volume("pvc-1", GIB, VolumeSource(volume="pvc-0"))


async def stage(host: World, wanted: Capability = WRITER, path: str = STAGING) -> None:
    await host.node.stage(StageRequest("pvc-1", path, wanted))


async def publish(
    host: World, wanted: Capability = WRITER, target: str = TARGET, *, read_only: bool = False
) -> None:
    await host.node.publish(PublishRequest("pvc-1", STAGING, target, wanted, read_only))


async def test_a_blank_volume_is_formatted_once_and_mounted(host: World) -> None:
    await stage(host)
    record = host.engine.volumes["pvc-1"]
    assert (record.format_state, record.fs_type) == (FormatState.FORMATTED, "ext4")
    assert host.storage.mounts[STAGING].device == "/dev/loop0"
    await host.node.unstage("pvc-1", STAGING)
    await stage(host)
    assert host.storage.formatted == ["/dev/loop0"]


async def test_formatting_is_recorded_before_it_begins(host: World) -> None:
    host.storage.kill_after = 2  # attach, make writable, then mkfs
    host.storage.kill_before_effect = True
    with pytest.raises(Killed):
        await stage(host)
    assert host.engine.volumes["pvc-1"].format_state is FormatState.FORMATTING
    host.engine.contents[VOLUME_FILE] = "xfs"  # half of it
    await stage(host)
    assert host.engine.contents[VOLUME_FILE] == "ext4"


@pytest.mark.parametrize("fs_type", ["ext4", "xfs", "btrfs"])
async def test_the_file_system_asked_for_is_made(host: World, fs_type: str) -> None:
    wanted = Capability(VolumeMode.FILESYSTEM, AccessMode.SINGLE_NODE_WRITER, fs_type, ("noatime",))
    await stage(host, wanted)
    assert host.engine.contents[VOLUME_FILE] == fs_type
    assert host.storage.mount_options[STAGING] == ("noatime",)


async def test_a_volume_with_a_source_keeps_its_file_system(host: World) -> None:
    await restored(host, "xfs")
    await stage(host)
    assert host.storage.formatted == []
    assert host.storage.grown == [STAGING]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("partitions", r"a partition table \(gpt\)"),
        ("", "no file system"),
        ("luks", r"crypto_LUKS \(other\)"),
        ("iso9660", r"iso9660 \(file system\)"),
    ],
)
async def test_a_source_that_is_no_file_system_is_refused_and_left_alone(
    host: World, content: str, found: str
) -> None:
    await restored(host, content)
    with pytest.raises(VolumeModeMismatch, match=f"{found}.*use volumeMode: Block"):
        await stage(host)
    assert host.storage.formatted == []
    assert host.storage.mounts == {}
    await stage(host, BLOCK)


@pytest.mark.parametrize("content", ["noise", "partitions"])
async def test_a_blank_volume_that_was_written_to_as_a_block_device_is_never_formatted(
    host: World, content: str
) -> None:
    host.engine.contents[VOLUME_FILE] = content
    with pytest.raises(VolumeModeMismatch, match="may hold data is never formatted"):
        await stage(host)
    assert host.storage.formatted == []


async def test_a_file_system_that_was_made_and_is_gone_is_an_error(host: World) -> None:
    await stage(host)
    await host.node.unstage("pvc-1", STAGING)
    del host.engine.contents[VOLUME_FILE]
    with pytest.raises(Corrupt, match="its ext4 file system is gone"):
        await stage(host)
    assert len(host.storage.formatted) == 1


async def test_read_only_staging_mounts_a_clean_volume_itself(host: World) -> None:
    await restored(host, "ext4")
    await stage(host, READER)
    assert host.storage.mounts[STAGING].is_read_only
    assert host.storage.read_only_devices == {"/dev/loop0"}
    assert COPY not in host.engine.contents


async def test_read_only_staging_replays_a_journal_in_a_private_copy(host: World) -> None:
    await restored(host, "xfs dirty")
    await stage(host, READER)
    assert host.engine.contents[VOLUME_FILE] == "xfs dirty"
    assert host.engine.contents[COPY] == "xfs"
    assert list(host.storage.attached) == [COPY]
    await publish(host, READER)
    await stage(host, READER)
    await host.node.unpublish("pvc-1", TARGET)
    await host.node.unstage("pvc-1", STAGING)
    assert host.storage.attached == {}
    assert COPY not in host.engine.contents
    assert host.storage.read_only_devices == set()


async def test_a_blank_volume_is_formatted_even_when_it_is_only_to_be_read(host: World) -> None:
    await stage(host, READER)
    assert host.storage.formatted == ["/dev/loop0"]
    assert host.storage.mounts[STAGING].is_read_only
    assert host.storage.read_only_devices == {"/dev/loop0"}


async def test_a_mount_option_makes_read_only_too(host: World) -> None:
    wanted = Capability(VolumeMode.FILESYSTEM, AccessMode.SINGLE_NODE_WRITER, mount_options=("ro",))
    await stage(host, wanted)
    await stage(host, wanted)
    assert host.storage.mounts[STAGING].is_read_only


async def test_a_block_volume_is_staged_by_its_device_node(host: World) -> None:
    await stage(host, BLOCK)
    assert host.storage.mounts[f"{STAGING}/pvc-1"].is_block
    await publish(host, BLOCK)
    assert host.storage.mounts[TARGET].device == "/dev/loop0"
    assert host.storage.formatted == []
    stats = await host.node.stats("pvc-1", TARGET)
    assert (stats.capacity_bytes, stats.file_system) == (GIB, None)


async def test_a_read_only_block_volume_is_read_only_in_the_kernel(host: World) -> None:
    await stage(host, BLOCK_READER)
    assert host.storage.read_only_devices == {"/dev/loop0"}
    with pytest.raises(WrongState, match="staged read-only"):
        await publish(host, BLOCK)
    await publish(host, BLOCK_READER)
    await host.node.unpublish("pvc-1", TARGET)
    await host.node.unstage("pvc-1", STAGING)
    assert host.storage.read_only_devices == set()


async def test_block_publications_share_one_read_only_state(host: World) -> None:
    await stage(host, BLOCK)
    await publish(host, BLOCK)
    with pytest.raises(WrongState, match="the same read-only state"):
        await publish(host, BLOCK, "/pods/2/volume", read_only=True)
    await host.node.unpublish("pvc-1", TARGET)
    await publish(host, BLOCK, "/pods/2/volume", read_only=True)
    assert host.storage.read_only_devices == {"/dev/loop0"}


async def test_a_single_writer_is_published_once(host: World) -> None:
    alone = Capability(VolumeMode.FILESYSTEM, AccessMode.SINGLE_NODE_SINGLE_WRITER)
    await stage(host, alone)
    await publish(host, alone)
    await publish(host, alone)
    with pytest.raises(WrongState, match="published at /pods/1/volume"):
        await publish(host, alone, "/pods/2/volume")
    await publish(host, WRITER, "/pods/2/volume")


async def test_a_path_that_holds_something_else_is_refused(host: World) -> None:
    await host.engine.create_volume("pvc-2", GIB, VolumeSource())
    await stage(host)
    with pytest.raises(AlreadyExists, match="what is mounted there is not pvc-2"):
        await host.node.stage(StageRequest("pvc-2", STAGING, WRITER))
    with pytest.raises(AlreadyExists):
        await host.node.unstage("pvc-2", STAGING)
    await publish(host)
    await host.node.stage(StageRequest("pvc-2", "/staging/pvc-2", WRITER))
    other = PublishRequest("pvc-2", "/staging/pvc-2", TARGET, WRITER)
    with pytest.raises(AlreadyExists, match="something else"):
        await host.node.publish(other)
    with pytest.raises(AlreadyExists):
        await host.node.unpublish("pvc-2", TARGET)


async def test_another_capability_at_the_same_path_is_refused(host: World) -> None:
    await stage(host)
    for other in (READER, BLOCK):
        with pytest.raises(AlreadyExists, match="another capability"):
            await stage(host, other)
    await publish(host)
    with pytest.raises(AlreadyExists, match="another read-only state"):
        await publish(host, read_only=True)


async def test_publishing_needs_staging_in_the_same_mode(host: World) -> None:
    with pytest.raises(WrongState, match="not staged like that"):
        await publish(host)
    await stage(host)
    with pytest.raises(WrongState):
        await publish(host, BLOCK)


async def test_unstaging_a_published_volume_is_refused(host: World) -> None:
    await stage(host)
    await publish(host)
    with pytest.raises(InUse, match=TARGET):
        await host.node.unstage("pvc-1", STAGING)
    assert STAGING in host.storage.mounts


async def test_undoing_what_was_never_done_succeeds(host: World) -> None:
    for volume_id in ("pvc-1", "pvc-none", "../../etc"):
        await host.node.unpublish(volume_id, TARGET)
        await host.node.unstage(volume_id, STAGING)
    assert host.storage.attached == {}


@pytest.mark.parametrize("volume_id", ["pvc-none", "../pvc-1", "PVC"])
async def test_unknown_volumes_are_not_found(host: World, volume_id: str) -> None:
    with pytest.raises(NotFound):
        await host.node.stage(StageRequest(volume_id, STAGING, WRITER))
    with pytest.raises(NotFound):
        await host.node.publish(PublishRequest(volume_id, STAGING, TARGET, WRITER))
    with pytest.raises(NotFound):
        await host.node.stats(volume_id, TARGET)
    with pytest.raises(NotFound):
        await host.node.expand(volume_id, TARGET, 0)
    assert await host.node.find_user(volume_id) is None


async def test_what_is_not_offered_is_refused_before_anything_is_done(host: World) -> None:
    shared = Capability(VolumeMode.FILESYSTEM, AccessMode.MULTI_NODE_MULTI_WRITER)
    with pytest.raises(UnsupportedCapability):
        await stage(host, shared)
    with pytest.raises(UnsupportedCapability):
        await publish(host, Capability(VolumeMode.FILESYSTEM, WRITER.access, "vfat"))
    with pytest.raises(InvalidArgument, match="no absolute path"):
        await stage(host, path="relative")
    assert host.storage.attached == {}


async def test_nothing_is_found_at_a_relative_path_not_even_below_the_working_directory(
    host: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await stage(host)
    await publish(host)
    monkeypatch.chdir("/")
    for volume_id in ("pvc-1", "pvc-none"):
        with pytest.raises(NotFound):
            await host.node.stats(volume_id, TARGET.removeprefix("/"))
        with pytest.raises(NotFound):
            await host.node.expand(volume_id, TARGET.removeprefix("/"), 0)
    assert host.storage.grown == [STAGING]


async def test_expanding_grows_a_writable_file_system_only(host: World) -> None:
    await stage(host)
    await publish(host)
    assert await host.node.expand("pvc-1", TARGET, GIB) == GIB
    assert host.storage.grown == [STAGING, TARGET]
    with pytest.raises(SizeOutOfRange):
        await host.node.expand("pvc-1", TARGET, 2 * GIB)
    with pytest.raises(NotFound, match="volume path"):
        await host.node.expand("pvc-1", "/elsewhere", 0)


async def test_stats_are_of_the_mounted_volume_only(host: World) -> None:
    with pytest.raises(NotFound):
        await host.node.stats("pvc-1", TARGET)
    await stage(host)
    await publish(host)
    stats = await host.node.stats("pvc-1", TARGET)
    assert stats.file_system
    assert stats.file_system.used_bytes == 400


async def test_a_mounted_volume_has_a_user(host: World) -> None:
    assert await host.node.find_user("pvc-1") is None
    await stage(host)
    assert await host.node.find_user("pvc-1") == f"{STAGING} (1 mounts)"


async def whole_life(host: World, wanted: Capability) -> None:
    await stage(host, wanted)
    await publish(host, wanted)
    await host.node.unpublish("pvc-1", TARGET)
    await host.node.unstage("pvc-1", STAGING)


CASES = [
    pytest.param("", WRITER, id="blank file system"),
    pytest.param("xfs", WRITER, id="restored file system"),
    pytest.param("xfs dirty", READER, id="read-only with a journal to replay"),
    pytest.param("ext4", READER, id="read-only"),
    pytest.param("partitions", BLOCK, id="block"),
    pytest.param("partitions", BLOCK_READER, id="read-only block"),
]


@pytest.mark.parametrize("before", [True, False], ids=["before it took effect", "after"])
@pytest.mark.parametrize(("content", "wanted"), CASES)
async def test_a_kill_at_any_step_is_mended_by_calling_again(
    content: str, wanted: Capability, before: bool
) -> None:
    async def new() -> World:
        made = World()
        await made.engine.create_volume("pvc-1", GIB, VolumeSource())
        if content:
            await restored(made, content)
        return made

    steps: list[Callable[[World], Awaitable[None]]] = [
        lambda host: stage(host, wanted),
        lambda host: publish(host, wanted),
        lambda host: host.node.unpublish("pvc-1", TARGET),
        lambda host: host.node.unstage("pvc-1", STAGING),
    ]
    straight = await new()
    seen = []
    for step in steps:
        await step(straight)
        seen.append(straight.storage.mounted_at())
    for number, step in enumerate(steps):
        killed_at = 0
        while True:
            host = await new()
            for earlier in steps[:number]:
                await earlier(host)
            host.storage.kill_after, host.storage.kill_before_effect = killed_at, before
            try:
                await step(host)
            except Killed:
                host.take_over()
                host.storage.kill_after = None
                await step(host)
                assert host.storage.mounted_at() == seen[number], (number, killed_at)
                for later in steps[number + 1 :]:
                    await later(host)
                assert host.storage.attached == {}
                assert host.storage.read_only_devices == set()
                assert COPY not in host.engine.contents
                killed_at += 1
                continue
            break
        assert killed_at > 0


async def test_ten_equal_calls_have_one_effect(host: World) -> None:
    await asyncio.gather(*(stage(host) for _ in range(10)))
    assert host.storage.formatted == ["/dev/loop0"]
    await asyncio.gather(*(publish(host) for _ in range(10)))
    assert set(host.storage.mounts) == {STAGING, TARGET}
    await asyncio.gather(*(host.node.unpublish("pvc-1", TARGET) for _ in range(10)))
    await asyncio.gather(*(host.node.unstage("pvc-1", STAGING) for _ in range(10)))
    assert host.storage.attached == {}


async def test_a_caller_that_gives_up_does_not_stop_the_work(host: World) -> None:
    calling = asyncio.create_task(stage(host))
    for _ in range(3):
        await asyncio.sleep(0)
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    await stage(host)
    assert len(host.storage.formatted) == 1


@pytest.mark.parametrize(
    ("rpc", "request_", "code"),
    [
        pytest.param(
            "NodeStageVolume",
            csi_pb2.NodeStageVolumeRequest(
                staging_target_path=STAGING, volume_capability=capability()
            ),
            StatusCode.INVALID_ARGUMENT,
            id="stage without a volume id",
        ),
        pytest.param(
            "NodeStageVolume",
            csi_pb2.NodeStageVolumeRequest(volume_id="pvc-1", volume_capability=capability()),
            StatusCode.INVALID_ARGUMENT,
            id="stage without a path",
        ),
        pytest.param(
            "NodeStageVolume",
            csi_pb2.NodeStageVolumeRequest(volume_id="pvc-1", staging_target_path=STAGING),
            StatusCode.INVALID_ARGUMENT,
            id="stage without a capability",
        ),
        pytest.param(
            "NodeStageVolume",
            csi_pb2.NodeStageVolumeRequest(
                volume_id="pvc-none", staging_target_path=STAGING, volume_capability=capability()
            ),
            StatusCode.NOT_FOUND,
            id="stage a volume that is not there",
        ),
        pytest.param(
            "NodeStageVolume",
            csi_pb2.NodeStageVolumeRequest(
                volume_id="pvc-1",
                staging_target_path=STAGING,
                volume_capability=capability(mode="MULTI_NODE_MULTI_WRITER"),
            ),
            StatusCode.FAILED_PRECONDITION,
            id="stage with more than is offered",
        ),
        pytest.param(
            "NodeUnstageVolume",
            csi_pb2.NodeUnstageVolumeRequest(volume_id="pvc-1"),
            StatusCode.INVALID_ARGUMENT,
            id="unstage without a path",
        ),
        pytest.param(
            "NodePublishVolume",
            csi_pb2.NodePublishVolumeRequest(volume_id="pvc-1", volume_capability=capability()),
            StatusCode.INVALID_ARGUMENT,
            id="publish without a target",
        ),
        pytest.param(
            "NodePublishVolume",
            csi_pb2.NodePublishVolumeRequest(
                volume_id="pvc-1", target_path=TARGET, volume_capability=capability()
            ),
            StatusCode.FAILED_PRECONDITION,
            id="publish without a staging path",
        ),
        pytest.param(
            "NodePublishVolume",
            csi_pb2.NodePublishVolumeRequest(volume_id="pvc-1", target_path=TARGET),
            StatusCode.INVALID_ARGUMENT,
            id="publish without a capability",
        ),
        pytest.param(
            "NodeUnpublishVolume",
            csi_pb2.NodeUnpublishVolumeRequest(target_path=TARGET),
            StatusCode.INVALID_ARGUMENT,
            id="unpublish without a volume id",
        ),
        pytest.param(
            "NodeGetVolumeStats",
            csi_pb2.NodeGetVolumeStatsRequest(volume_id="pvc-1"),
            StatusCode.INVALID_ARGUMENT,
            id="stats without a path",
        ),
        pytest.param(
            "NodeExpandVolume",
            csi_pb2.NodeExpandVolumeRequest(volume_id="pvc-1"),
            StatusCode.INVALID_ARGUMENT,
            id="expand without a path",
        ),
    ],
)
async def test_a_node_call_answers_its_code(
    host: World, rpc: str, request_: object, code: StatusCode
) -> None:
    with pytest.raises(CallFailed) as caught:
        await Caller(host)(rpc, request_)
    assert caught.value.code is code, caught.value


async def test_node_calls_answer_in_csis_words(host: World) -> None:
    call = Caller(host)
    info = await call("NodeGetInfo", csi_pb2.NodeGetInfoRequest())
    assert info.node_id == "node-a"
    assert dict(info.accessible_topology.segments) == {"topology.shorthorn.io/node": "node-a"}
    await stage(host)
    await publish(host)
    stats = await call(
        "NodeGetVolumeStats",
        csi_pb2.NodeGetVolumeStatsRequest(volume_id="pvc-1", volume_path=TARGET),
    )
    units = [(csi_pb2.VolumeUsage.Unit.Name(u.unit), u.total, u.used) for u in stats.usage]
    assert units == [("BYTES", 1000, 400), ("INODES", 100, 10)]
