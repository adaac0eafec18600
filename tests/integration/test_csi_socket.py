"""The driver over its real socket, on real pools, loop devices and file systems."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import stat
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from aiohttp import web
from tests.fakes.csi_calls import capability
from tests.fakes.world import NODE
from tests.integration.csi_host import DRIVER, MIB, CsiHost, serving

from shorthorn.csi.controller import Controller
from shorthorn.csi.node import Node
from shorthorn.csi.proto import csi_pb2
from shorthorn.csi.server import CsiServer
from shorthorn.domain.errors import Corrupt, InUse, InvalidArgument, Unavailable
from shorthorn.host import file_systems, reflink
from shorthorn.host.node_storage import HostNodeStorage
from shorthorn.kit import process
from shorthorn.standalone.csi_client import CsiError, answer

READER = "SINGLE_NODE_READER_ONLY"
#: CAP_SYS_RESOURCE, without which the kernel grows no mounted ext4.
MAY_GROW_EXT4 = bool(
    int(Path("/proc/self/status").read_text().partition("CapEff:")[2].split()[0], 16) >> 24 & 1
)
pytestmark = [pytest.mark.root]


@pytest.fixture
async def csi(pool_dir: Path, tmp_path: Path) -> AsyncIterator[CsiHost]:
    async with serving(pool_dir, tmp_path) as made:
        yield made


@pytest.fixture
async def xfs_csi(xfs_dir: Path, tmp_path: Path) -> AsyncIterator[CsiHost]:
    async with serving(xfs_dir, tmp_path) as made:
        yield made


def attached_below(directory: Path) -> list[str]:
    """Return the loop devices of files below a directory."""
    listing = subprocess.run(
        ["losetup", "--list", "--noheadings", "--output", "BACK-FILE"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return [line for line in listing.splitlines() if line.startswith(str(directory))]


async def refused(calling: object) -> CsiError:
    with pytest.raises(CsiError) as caught:
        await calling  # type: ignore[misc]
    return caught.value


# --- file systems


@pytest.mark.parametrize("fs_type", ["ext4", "xfs", "btrfs"])
async def test_a_mounted_volume_is_exported_and_restored_beside_itself(
    csi: CsiHost, pool_dir: Path, fs_type: str
) -> None:
    wanted = capability(fs_type=fs_type)
    await csi.create("pvc-1", size=320 * MIB, capabilities=[wanted])
    target = await csi.mount("pvc-1", wanted)
    data = os.urandom(3 * MIB)
    (target / "file").write_bytes(data)
    made = await csi.snapshot("snapshot-1", "pvc-1", type="bi", export_type="qcow2")
    assert made.ready_to_use
    (target / "file").write_bytes(b"changed")
    restored = await csi.create("pvc-2", size=400 * MIB, handle=made.snapshot_id)
    assert restored.capacity_bytes == 400 * MIB
    other = await csi.mount("pvc-2")
    assert (other / "file").read_bytes() == data
    assert (target / "file").read_bytes() == b"changed"
    (other / "file").write_bytes(b"its own")
    bytes_, inodes = await csi.usage("pvc-2")
    assert bytes_.total > 320 * MIB * 0.8
    assert inodes.unit == csi_pb2.VolumeUsage.Unit.Value("INODES")
    for volume_id in ("pvc-1", "pvc-2"):
        await csi.unmount(volume_id)
        await csi.delete(volume_id)
    await csi.delete_snapshot(made.snapshot_id)
    assert attached_below(pool_dir) == []
    places = ("volumes/*", "images/*", "snapshots/*", "staging/*/*")
    assert [left for place in places for left in pool_dir.glob(place)] == []


async def test_a_btrfs_clone_gets_its_own_uuid_where_the_kernel_needs_that(
    xfs_csi: CsiHost, xfs_dir: Path, tmp_path: Path
) -> None:
    wanted = capability(fs_type="btrfs")
    await xfs_csi.create("pvc-1", size=320 * MIB, capabilities=[wanted])
    (await xfs_csi.mount("pvc-1", wanted) / "file").write_bytes(b"origin")
    made = await xfs_csi.snapshot("snapshot-1", "pvc-1", type="snap")
    await xfs_csi.create("pvc-2", size=320 * MIB, handle=made.snapshot_id)
    storage = HostNodeStorage(kernel_release="6.1.0-28-amd64")  # Debian 12's
    image = str(xfs_dir / "volumes/pvc-2/volume.raw")
    device = Path(await storage.attach(image))
    before = (await file_systems.probe(device)).uuid
    target = tmp_path / "target"
    await storage.mount(str(device), str(target), "btrfs", read_only=False, options=())
    assert (target / "file").read_bytes() == b"origin"
    await storage.unmount(str(target))
    own = (await file_systems.probe(device)).uuid
    assert own != before
    await storage.mount(str(device), str(target), "btrfs", read_only=False, options=())
    await storage.unmount(str(target))
    assert (await file_systems.probe(device)).uuid == own
    await storage.detach(image)
    await xfs_csi.unmount("pvc-1")


async def test_mount_options_reach_the_kernel(xfs_csi: CsiHost) -> None:
    wanted = capability(flags="noatime,nodev")
    await xfs_csi.create("pvc-1", size=64 * MIB)
    target = await xfs_csi.mount("pvc-1", wanted)
    flags = os.statvfs(target).f_flag
    assert flags & os.ST_NOATIME
    assert flags & os.ST_NODEV
    bad = capability(flags="no-such-option")
    await xfs_csi.create("pvc-2", size=64 * MIB)
    error = await refused(xfs_csi.stage("pvc-2", bad))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert not os.path.ismount(xfs_csi.staging("pvc-2"))


async def test_staging_again_by_another_process_finds_what_is_there(xfs_csi: CsiHost) -> None:
    await xfs_csi.create("pvc-1", size=64 * MIB)
    target = await xfs_csi.mount("pvc-1")
    (target / "file").write_text("kept")
    before = Path("/proc/self/mountinfo").read_text().count(str(xfs_csi.scratch))
    await xfs_csi.mount("pvc-1")
    assert Path("/proc/self/mountinfo").read_text().count(str(xfs_csi.scratch)) == before
    assert (target / "file").read_text() == "kept"
    await xfs_csi.unmount("pvc-1")
    assert not target.exists()
    await xfs_csi.unmount("pvc-1")


async def test_a_read_only_publication_refuses_writes(xfs_csi: CsiHost) -> None:
    await xfs_csi.create("pvc-1", size=64 * MIB)
    target = await xfs_csi.mount("pvc-1")
    (target / "file").write_text("data")
    second = await xfs_csi.publish("pvc-1", pod="reader", read_only=True)
    assert (second / "file").read_text() == "data"
    with pytest.raises(OSError, match="Read-only file system"):
        (second / "file").write_text("no")
    (target / "file").write_text("still writable")
    assert (second / "file").read_text() == "still writable"
    error = await refused(xfs_csi.unstage("pvc-1"))
    assert error.code is grpc.StatusCode.FAILED_PRECONDITION
    await xfs_csi.unpublish("pvc-1", "reader")
    await xfs_csi.unmount("pvc-1")


@pytest.mark.parametrize("fs_type", ["ext4", "xfs", "btrfs"])
async def test_a_read_only_volume_with_a_journal_is_not_written_to(
    xfs_csi: CsiHost, xfs_dir: Path, fs_type: str
) -> None:
    wanted = capability(fs_type=fs_type)
    await xfs_csi.create("pvc-1", size=320 * MIB, capabilities=[wanted])
    target = await xfs_csi.mount("pvc-1", wanted)
    with (target / "file").open("wb") as file:
        file.write(b"data")
        file.flush()
        os.fsync(file.fileno())  # a log that is not written back
        await torn_clone(xfs_csi, xfs_dir)
    reader = capability(mode=READER)
    before = hashlib.sha512((xfs_dir / "volumes/pvc-2/volume.raw").read_bytes()).digest()
    copy = await xfs_csi.mount("pvc-2", reader)
    assert (copy / "file").read_bytes() == b"data"
    with pytest.raises(OSError, match="Read-only file system"):
        (copy / "other").write_bytes(b"no")
    await xfs_csi.stage("pvc-2", reader)
    await xfs_csi.unmount("pvc-2")
    after = hashlib.sha512((xfs_dir / "volumes/pvc-2/volume.raw").read_bytes()).digest()
    assert after == before
    assert sorted(p.name for p in (xfs_dir / "volumes/pvc-2").iterdir()) == [
        "volume.json",
        "volume.raw",
    ]
    await xfs_csi.unmount("pvc-1")
    assert attached_below(xfs_dir) == []


async def torn_clone(csi: CsiHost, pool: Path) -> None:
    """Make pvc-2 a clone of pvc-1 as a power cut would have left it: mounted, not frozen."""
    await csi.create("pvc-2", size=320 * MIB, volume_id="pvc-1")
    volumes = pool / "volumes"
    (volumes / "pvc-2/volume.raw").unlink()
    await reflink.clone_file(volumes / "pvc-1/volume.raw", volumes / "pvc-2/volume.raw")


async def test_growing_reaches_the_file_system(xfs_csi: CsiHost) -> None:
    for fs_type in ("ext4", "xfs", "btrfs"):
        volume_id, wanted = f"pvc-{fs_type}", capability(fs_type=fs_type)
        await xfs_csi.create(volume_id, size=320 * MIB, capabilities=[wanted])
        target = await xfs_csi.mount(volume_id, wanted)
        (target / "file").write_text("kept")
        grown = await xfs_csi.expand(volume_id, 500 * MIB)
        assert (grown.capacity_bytes, grown.node_expansion_required) == (500 * MIB, True)
        if fs_type != "ext4" or MAY_GROW_EXT4:
            assert await xfs_csi.expand_on_node(volume_id) == 500 * MIB
        else:
            error = await refused(xfs_csi.expand_on_node(volume_id))
            assert error.code is grpc.StatusCode.FAILED_PRECONDITION
            assert "grows at the next mount" in error.message
            await xfs_csi.unmount(volume_id)
            target = await xfs_csi.mount(volume_id, wanted)
        size = os.statvfs(target)
        assert size.f_blocks * size.f_frsize > 400 * MIB
        assert (target / "file").read_text() == "kept"
        await xfs_csi.unmount(volume_id)


# --- block volumes


def partition(device: Path) -> None:
    """Write a partition table by which blkid knows one (MBR with one Linux partition)."""
    entry = bytes([0x80, 0, 2, 0, 0x83, 0, 0, 0]) + (2048).to_bytes(4, "little")
    table = bytearray(512)
    table[446 : 446 + 16] = entry + (8192).to_bytes(4, "little")
    table[510:] = b"\x55\xaa"
    with device.open("r+b") as disk:
        disk.write(table)
        os.fsync(disk.fileno())


async def test_a_partitioned_disk_goes_by_block_only(csi: CsiHost, pool_dir: Path) -> None:
    block = capability(block=True)
    await csi.create("pvc-1", size=64 * MIB, capabilities=[block])
    target = await csi.mount("pvc-1", block)
    assert stat.S_ISBLK(target.stat().st_mode)
    partition(target)
    made = await csi.snapshot("snapshot-1", "pvc-1", type="bi", export_type="qcow2")
    await csi.create("pvc-2", size=64 * MIB, handle=made.snapshot_id)
    error = await refused(csi.stage("pvc-2"))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "a partition table (dos)" in error.message
    assert "use volumeMode: Block" in error.message
    other = await csi.mount("pvc-2", block)
    assert other.read_bytes()[446:512] == target.read_bytes()[446:512]
    (size,) = await csi.usage("pvc-2")
    assert size.total == 64 * MIB
    grown = await csi.expand("pvc-2", 80 * MIB, block=True)
    assert not grown.node_expansion_required
    (size,) = await csi.usage("pvc-2")
    assert size.total == 80 * MIB
    for volume_id in ("pvc-1", "pvc-2"):
        await csi.unmount(volume_id)
        assert not csi.target(volume_id).exists()
    assert attached_below(pool_dir) == []


async def test_a_read_only_block_volume_refuses_writes_however_it_is_opened(
    xfs_csi: CsiHost,
) -> None:
    reader = capability(block=True, mode=READER)
    await xfs_csi.create("pvc-1", size=64 * MIB, capabilities=[capability(block=True)])
    target = await xfs_csi.mount("pvc-1", reader)
    number = os.stat(target).st_rdev
    same = Path(
        f"/dev/{Path(f'/sys/dev/block/{os.major(number)}:{os.minor(number)}').resolve().name}"
    )
    assert os.stat(same).st_rdev == number
    for path in (target, same):
        assert path.read_bytes()[:4] == bytes(4)
        with path.open("r+b", buffering=0) as disk, pytest.raises(PermissionError):
            disk.write(b"data")
    await xfs_csi.unmount("pvc-1")
    writer = capability(block=True)
    target = await xfs_csi.mount("pvc-1", writer)
    with target.open("r+b") as disk:
        disk.write(b"data")
    await xfs_csi.unmount("pvc-1")


async def test_a_blank_volume_written_to_as_a_block_device_is_never_formatted(
    xfs_csi: CsiHost, xfs_dir: Path
) -> None:
    block = capability(block=True)
    await xfs_csi.create("pvc-1", size=64 * MIB)
    target = await xfs_csi.mount("pvc-1", block)
    with target.open("r+b") as disk:
        disk.seek(MIB)
        disk.write(b"precious")
        os.fsync(disk.fileno())
    await xfs_csi.unmount("pvc-1")
    error = await refused(xfs_csi.stage("pvc-1"))
    assert "never formatted" in error.message
    assert b"precious" in (xfs_dir / "volumes/pvc-1/volume.raw").read_bytes()


async def test_a_published_volume_is_not_deleted(xfs_csi: CsiHost) -> None:
    await xfs_csi.create("pvc-1", size=64 * MIB)
    await xfs_csi.mount("pvc-1")
    error = await refused(xfs_csi.delete("pvc-1"))
    assert error.code is grpc.StatusCode.FAILED_PRECONDITION
    assert str(xfs_csi.scratch) in error.message
    await xfs_csi.unmount("pvc-1")
    await xfs_csi.delete("pvc-1")


async def test_ten_equal_calls_over_the_socket_have_one_effect(
    xfs_csi: CsiHost, xfs_dir: Path
) -> None:
    made = await asyncio.gather(*(xfs_csi.create("pvc-1", size=64 * MIB) for _ in range(10)))
    assert all(volume == made[0] for volume in made)
    await asyncio.gather(*(xfs_csi.stage("pvc-1") for _ in range(10)))
    await asyncio.gather(*(xfs_csi.publish("pvc-1") for _ in range(10)))
    mounts = Path("/proc/self/mountinfo").read_text().count(str(xfs_csi.scratch))
    assert mounts == 2
    taken = await asyncio.gather(
        *(xfs_csi.snapshot("snapshot-1", "pvc-1", type="bi") for _ in range(10))
    )
    assert all(snapshot == taken[0] for snapshot in taken)
    await asyncio.gather(*(xfs_csi.unpublish("pvc-1") for _ in range(10)))
    await asyncio.gather(*(xfs_csi.unstage("pvc-1") for _ in range(10)))
    await asyncio.gather(*(xfs_csi.delete("pvc-1") for _ in range(10)))
    assert list((xfs_dir / "volumes").iterdir()) == []


# --- on-demand downloads


async def test_a_volume_from_the_web_and_a_wrong_checksum(xfs_csi: CsiHost, tmp_path: Path) -> None:
    image = os.urandom(2 * MIB)
    requests: list[str] = []

    async def serve(request: web.Request) -> web.Response:
        requests.append(request.path)
        return web.Response(body=image)

    app = web.Application()
    app.router.add_get("/a.raw", serve)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    handle = (
        "bi://backing?backingImageDataSourceType=download&backingImage=golden"
        f"&url=http%3A%2F%2F127.0.0.1%3A{port}%2Fa.raw&backingImageChecksum="
    )
    right = hashlib.sha512(image).hexdigest()
    try:
        error = await refused(xfs_csi.create("pvc-1", size=64 * MIB, handle=handle + "0" * 128))
        assert error.code is grpc.StatusCode.DATA_LOSS
        assert right in error.message
        fetched = len(requests)
        await refused(xfs_csi.create("pvc-1", size=64 * MIB, handle=handle + "0" * 128))
        assert len(requests) == fetched
        block = [capability(block=True)]
        await xfs_csi.create("pvc-1", size=64 * MIB, handle=handle + right, capabilities=block)
    finally:
        await runner.cleanup()
    target = await xfs_csi.mount("pvc-1", capability(block=True))
    content = target.read_bytes()
    assert content[: len(image)] == image
    assert content.count(b"\0") >= 62 * MIB
    await xfs_csi.unmount("pvc-1")


# --- the server itself


async def test_the_driver_says_who_it_is(xfs_csi: CsiHost) -> None:
    client = xfs_csi.client
    info = await answer(client.identity.GetPluginInfo(csi_pb2.GetPluginInfoRequest()))
    assert (info.name, bool(info.vendor_version)) == (DRIVER, True)
    probe = await answer(client.identity.Probe(csi_pb2.ProbeRequest()))
    assert probe.ready.value
    plugin = await answer(
        client.identity.GetPluginCapabilities(csi_pb2.GetPluginCapabilitiesRequest())
    )
    assert len(plugin.capabilities) == 3
    rpcs = csi_pb2.ControllerServiceCapability.RPC.Type
    found = await answer(
        client.controller.ControllerGetCapabilities(csi_pb2.ControllerGetCapabilitiesRequest())
    )
    names = {rpcs.Name(c.rpc.type) for c in found.capabilities}
    assert {"LIST_SNAPSHOTS", "GET_SNAPSHOT", "CLONE_VOLUME", "EXPAND_VOLUME"} <= names
    assert "PUBLISH_UNPUBLISH_VOLUME" not in names
    node = await answer(client.node.NodeGetInfo(csi_pb2.NodeGetInfoRequest()))
    assert node.node_id == NODE
    verbs = await answer(client.node.NodeGetCapabilities(csi_pb2.NodeGetCapabilitiesRequest()))
    assert len(verbs.capabilities) == 4


async def test_only_the_owner_may_connect(xfs_csi: CsiHost) -> None:
    assert stat.S_IMODE(xfs_csi.socket.stat().st_mode) == 0o600
    assert [p.name for p in xfs_csi.scratch.glob("csi.sock*")] == ["csi.sock"]


def another_server(csi: CsiHost, path: Path) -> CsiServer:
    return CsiServer(
        path,
        driver_name=DRIVER,
        controller=Controller(volumes=csi.host.volume_service, snapshots=csi.host.snapshot_service),
        node=Node(node_id=NODE, service=csi.host.node),
    )


async def test_a_living_servers_socket_is_not_taken(xfs_csi: CsiHost) -> None:
    server = another_server(xfs_csi, xfs_csi.socket)
    with pytest.raises(InUse, match="another process"):
        await server.start()
    await server.stop(grace_s=0)


async def test_a_dead_socket_is_replaced_and_nothing_else(xfs_csi: CsiHost, tmp_path: Path) -> None:
    dead = tmp_path / "dead.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(dead))
    server = another_server(xfs_csi, dead)
    await server.start()
    assert stat.S_ISSOCK(dead.stat().st_mode)
    await server.stop(grace_s=0)
    assert not dead.exists()
    file = tmp_path / "file.sock"
    file.write_text("not ours")
    server = another_server(xfs_csi, file)
    with pytest.raises(InvalidArgument, match="no socket"):
        await server.start()
    assert file.read_text() == "not ours"


async def test_a_path_that_is_too_long_is_refused_plainly(xfs_csi: CsiHost, tmp_path: Path) -> None:
    server = another_server(xfs_csi, tmp_path / ("x" * 100))
    with pytest.raises(InvalidArgument, match="longer than 103 bytes"):
        await server.start()


async def test_what_is_not_offered_is_unimplemented(xfs_csi: CsiHost) -> None:
    request = csi_pb2.ControllerPublishVolumeRequest()
    calling = answer(xfs_csi.client.controller.ControllerPublishVolume(request))
    assert (await refused(calling)).code is grpc.StatusCode.UNIMPLEMENTED


async def test_secrets_and_credentials_are_never_logged(
    xfs_csi: CsiHost, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "shorthorn")
    request = csi_pb2.DeleteSnapshotRequest(
        snapshot_id="bi://backing?backingImage=none&url=https%3A%2F%2Fuser:hunter2@host",
        secrets={"password": "hunter2"},
    )
    await answer(xfs_csi.client.controller.DeleteSnapshot(request))
    listing = csi_pb2.ListSnapshotsRequest(
        snapshot_id="bi://backing?backingImage=ab&backingImageDataSourceType=upload&k=hunter2",
        secrets={"password": "hunter2"},
    )
    await refused(answer(xfs_csi.client.controller.ListSnapshots(listing)))
    assert "DeleteSnapshot snapshot_id=bi://backing?backingImage=none:" in caplog.text
    assert "hunter2" not in caplog.text


async def test_a_short_deadline_is_answered_within_it(
    xfs_csi: CsiHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    await xfs_csi.create("pvc-1", size=64 * MIB)
    held = asyncio.Event()
    original = xfs_csi.host.engine.begin_export

    async def slow(*arguments: object) -> object:
        await held.wait()
        return await original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(xfs_csi.host.engine, "begin_export", slow)
    request = csi_pb2.CreateSnapshotRequest(
        name="snapshot-1", source_volume_id="pvc-1", parameters={"type": "bi"}
    )
    error = await refused(answer(xfs_csi.client.controller.CreateSnapshot(request, timeout=5)))
    assert error.code is grpc.StatusCode.ABORTED
    held.set()
    assert (await xfs_csi.snapshot("snapshot-1", "pvc-1", type="bi")).ready_to_use


async def test_the_kernels_view_is_told_truly(xfs_csi: CsiHost, tmp_path: Path) -> None:
    storage = HostNodeStorage()
    assert await storage.find_mount(str(tmp_path)) is None
    assert await storage.find_device(str(tmp_path / "none")) is None
    await storage.detach(str(tmp_path / "none"))
    await storage.remove_file(str(tmp_path / "none"))
    await storage.remove_mount_point(str(tmp_path / "none"))
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").touch()
    await storage.remove_mount_point(str(full))
    assert (full / "file").exists()
    (full / "file").write_text("somebody's own")
    with pytest.raises(InUse):
        await storage.remove_mount_point(str(full / "file"))
    assert (full / "file").read_text() == "somebody's own"
    await xfs_csi.create("pvc-1", size=64 * MIB)
    target = await xfs_csi.mount("pvc-1")
    with (target / "file").open("w"), pytest.raises(InUse):
        await storage.unmount(str(target))
    mount = await storage.find_mount(str(target))
    assert mount is not None
    found = {m.target for m in await storage.list_mounts(mount.device)}
    assert found == {str(target), str(xfs_csi.staging("pvc-1"))}
    await xfs_csi.unmount("pvc-1")


async def test_a_volume_that_is_only_read_can_be_exported_and_snapshotted(
    xfs_csi: CsiHost, xfs_dir: Path
) -> None:
    await xfs_csi.create("pvc-1", size=64 * MIB)
    target = await xfs_csi.mount("pvc-1")
    (target / "file").write_text("data")
    await xfs_csi.unmount("pvc-1")
    reader = capability(mode=READER)
    await xfs_csi.mount("pvc-1", reader)
    exported = await xfs_csi.snapshot("snapshot-1", "pvc-1", type="bi", export_type="qcow2")
    snapshot = await xfs_csi.snapshot("snapshot-2", "pvc-1", type="snap")
    for name, handle in (("pvc-2", exported.snapshot_id), ("pvc-3", snapshot.snapshot_id)):
        await xfs_csi.create(name, size=64 * MIB, handle=handle)
        assert (await xfs_csi.mount(name) / "file").read_text() == "data"
        await xfs_csi.unmount(name)
    await xfs_csi.unmount("pvc-1")
    assert attached_below(xfs_dir) == []


async def test_a_device_left_attached_does_not_keep_its_volume(
    xfs_csi: CsiHost, xfs_dir: Path
) -> None:
    await xfs_csi.create("pvc-1", size=64 * MIB)
    await HostNodeStorage().attach(str(xfs_dir / "volumes/pvc-1/volume.raw"))
    await xfs_csi.delete("pvc-1")
    assert attached_below(xfs_dir) == []


async def test_a_damaged_file_system_is_data_loss_and_left_alone(
    xfs_csi: CsiHost, xfs_dir: Path
) -> None:
    await xfs_csi.create("pvc-1", size=64 * MIB)
    await xfs_csi.mount("pvc-1")
    await xfs_csi.unmount("pvc-1")
    volume = xfs_dir / "volumes/pvc-1/volume.raw"
    with volume.open("r+b") as file:
        file.write(bytes(4096))  # the superblock
    error = await refused(xfs_csi.stage("pvc-1"))
    assert error.code is grpc.StatusCode.DATA_LOSS
    assert "its ext4 file system is gone" in error.message


async def test_without_reflinks_unused_volumes_are_copied(ext4_dir: Path, tmp_path: Path) -> None:
    async with serving(ext4_dir, tmp_path) as csi:
        await csi.create("pvc-1", size=64 * MIB)
        target = await csi.mount("pvc-1")
        (target / "file").write_text("data")
        await csi.unmount("pvc-1")
        made = await csi.snapshot("snapshot-1", "pvc-1", type="bi", export_type="qcow2")
        await csi.create("pvc-2", size=64 * MIB, handle=made.snapshot_id)
        assert (await csi.mount("pvc-2") / "file").read_text() == "data"
        await csi.unmount("pvc-2")
        for volume_id in ("pvc-1", "pvc-2"):
            await csi.delete(volume_id)
        await csi.delete_snapshot(made.snapshot_id)


async def test_what_the_kernel_refuses_becomes_what_it_means(
    xfs_csi: CsiHost, xfs_dir: Path, tmp_path: Path
) -> None:
    storage = HostNodeStorage()
    await xfs_csi.create("pvc-1", size=320 * MIB)
    image = str(xfs_dir / "volumes/pvc-1/volume.raw")
    device = await storage.attach(image)
    target = str(tmp_path / "target")

    async def mount(fs_type: str, at: str = target, *, read_only: bool = False) -> None:
        await storage.mount(device, at, fs_type, read_only=read_only, options=())

    with pytest.raises(InvalidArgument, match="mount options"):
        await mount("ext4")  # nothing is there
    with pytest.raises(Unavailable):
        await mount("nosuchfs")
    with pytest.raises(InvalidArgument, match="not one of"):
        await storage.format(device, "vfat")
    (tmp_path / "file").touch()
    with pytest.raises(InvalidArgument, match="is no directory"):
        await mount("ext4", str(tmp_path / "file"))
    with pytest.raises(InvalidArgument, match="cannot bind"):
        await storage.bind(str(tmp_path / "none"), str(tmp_path / "new"), read_only=False)
    await storage.format(device, "xfs")
    await mount("xfs")
    with pytest.raises(InUse):
        await storage.detach(image)
    with pytest.raises(InUse):
        await mount("xfs", str(tmp_path / "second"), read_only=True)
    await storage.unmount(target)
    # A sandbox that starts elsewhere may hold the mount for a moment; a detached device tells that
    # the file system is gone, and not found again in memory.
    await storage.detach(image)
    damage(Path(image))
    device = await storage.attach(image)
    with pytest.raises(Corrupt):
        await mount("xfs")
    await storage.detach(image)
    await storage.detach(image)


def damage(volume: Path) -> None:
    """Overwrite the headers of all allocation groups of an XFS, but not its superblocks."""
    with volume.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        for group in range(4):
            file.seek(size // 4 * group + 512)
            file.write(b"\xff" * 1536)
        file.flush()
        os.fsync(file.fileno())


async def test_contradicting_signatures_are_nothing_to_mount(
    xfs_csi: CsiHost, xfs_dir: Path
) -> None:
    await xfs_csi.create("pvc-1", size=320 * MIB)
    volume = xfs_dir / "volumes/pvc-1/volume.raw"
    await process.run(["mkfs.xfs", "-q", "-f", "-K", volume], timeout_s=60)
    superblock = volume.read_bytes()[:512]
    await process.run(["mkfs.ext4", "-q", "-F", volume], timeout_s=60)
    with volume.open("r+b") as file:
        file.write(superblock)  # ext4 has its own at 1 KiB
    error = await refused(xfs_csi.stage("pvc-1"))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "several contradicting signatures" in error.message
    assert "never formatted" in error.message


async def test_without_reflinks_a_journal_is_replayed_in_a_real_copy(
    ext4_dir: Path, tmp_path: Path
) -> None:
    async with serving(ext4_dir, tmp_path) as csi:
        await csi.create("pvc-1", size=64 * MIB)
        target = await csi.mount("pvc-1")
        with (target / "file").open("wb") as file:
            file.write(b"data")
            file.flush()
            os.fsync(file.fileno())
            torn = (ext4_dir / "volumes/pvc-1/volume.raw").read_bytes()
        await csi.unmount("pvc-1")
        (ext4_dir / "volumes/pvc-1/volume.raw").write_bytes(torn)
        reader = capability(mode=READER)
        assert (await csi.mount("pvc-1", reader) / "file").read_bytes() == b"data"
        assert (ext4_dir / "volumes/pvc-1/volume.raw").read_bytes() == torn
        await csi.unmount("pvc-1")
        assert attached_below(ext4_dir) == []


async def test_without_reflinks_a_volume_in_use_is_refused_rather_than_torn(
    ext4_dir: Path, tmp_path: Path
) -> None:
    async with serving(ext4_dir, tmp_path) as csi:
        await csi.create("pvc-1", size=64 * MIB)
        await csi.mount("pvc-1")
        for kind in ("snap", "bi"):
            error = await refused(csi.snapshot("snapshot-1", "pvc-1", type=kind))
            assert error.code is grpc.StatusCode.FAILED_PRECONDITION
            assert "in use" in error.message
        error = await refused(csi.create("pvc-2", size=64 * MIB, volume_id="pvc-1"))
        assert error.code is grpc.StatusCode.FAILED_PRECONDITION
        await csi.unmount("pvc-1")
        await csi.create("pvc-2", size=64 * MIB, volume_id="pvc-1")
        assert (await csi.snapshot("snapshot-1", "pvc-1", type="bi")).ready_to_use
