"""A host for tests of the driver: real engine, kernel and socket; registries in memory.

`serving()` starts it on a directory and takes everything away again, mounts too.
"""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.fakes.csi_calls import capability, create_volume
from tests.fakes.world import NODE, Host, running

from shorthorn.csi.controller import Controller
from shorthorn.csi.node import Node
from shorthorn.csi.proto import csi_pb2
from shorthorn.csi.server import CsiServer
from shorthorn.engines.local import LocalEngine
from shorthorn.host.node_storage import HostNodeStorage
from shorthorn.images.checksum import Sha512Checksummer
from shorthorn.images.fetcher import WebImageFetcher
from shorthorn.standalone.csi_client import CsiClient, answer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

MIB = 1 << 20
DRIVER = "driver.longhorn.io"


class CsiHost:
    """Calls over the socket, in few words. Paths below `scratch` are named after what they hold."""

    def __init__(self, host: Host, socket: Path, scratch: Path) -> None:
        self.host = host
        self.socket = socket
        self.scratch = scratch
        self.client = CsiClient(socket)

    def staging(self, volume_id: str) -> Path:
        return self.scratch / "staging" / volume_id

    def target(self, volume_id: str, pod: str = "pod") -> Path:
        return self.scratch / pod / volume_id

    async def create(self, name: str, **wanted: Any) -> csi_pb2.Volume:
        call = self.client.controller.CreateVolume(create_volume(name, **wanted), timeout=60)
        volume: csi_pb2.Volume = (await answer(call)).volume
        return volume

    async def delete(self, volume_id: str) -> None:
        request = csi_pb2.DeleteVolumeRequest(volume_id=volume_id)
        await answer(self.client.controller.DeleteVolume(request, timeout=60))

    async def snapshot(self, name: str, volume_id: str, **parameters: str) -> csi_pb2.Snapshot:
        given = {key.replace("_", "-"): value for key, value in parameters.items()}
        request = csi_pb2.CreateSnapshotRequest(
            name=name, source_volume_id=volume_id, parameters=given
        )
        call = self.client.controller.CreateSnapshot(request, timeout=60)
        snapshot: csi_pb2.Snapshot = (await answer(call)).snapshot
        return snapshot

    async def delete_snapshot(self, handle: str) -> None:
        request = csi_pb2.DeleteSnapshotRequest(snapshot_id=handle)
        await answer(self.client.controller.DeleteSnapshot(request, timeout=60))

    async def stage(self, volume_id: str, wanted: csi_pb2.VolumeCapability | None = None) -> None:
        self.staging(volume_id).mkdir(parents=True, exist_ok=True)
        request = csi_pb2.NodeStageVolumeRequest(
            volume_id=volume_id,
            staging_target_path=str(self.staging(volume_id)),
            volume_capability=wanted or capability(),
        )
        await answer(self.client.node.NodeStageVolume(request, timeout=60))

    async def unstage(self, volume_id: str) -> None:
        request = csi_pb2.NodeUnstageVolumeRequest(
            volume_id=volume_id, staging_target_path=str(self.staging(volume_id))
        )
        await answer(self.client.node.NodeUnstageVolume(request, timeout=60))

    async def publish(
        self,
        volume_id: str,
        wanted: csi_pb2.VolumeCapability | None = None,
        *,
        pod: str = "pod",
        read_only: bool = False,
    ) -> Path:
        target = self.target(volume_id, pod)
        target.parent.mkdir(parents=True, exist_ok=True)
        request = csi_pb2.NodePublishVolumeRequest(
            volume_id=volume_id,
            staging_target_path=str(self.staging(volume_id)),
            target_path=str(target),
            volume_capability=wanted or capability(),
            readonly=read_only,
        )
        await answer(self.client.node.NodePublishVolume(request, timeout=60))
        return target

    async def unpublish(self, volume_id: str, pod: str = "pod") -> None:
        request = csi_pb2.NodeUnpublishVolumeRequest(
            volume_id=volume_id, target_path=str(self.target(volume_id, pod))
        )
        await answer(self.client.node.NodeUnpublishVolume(request, timeout=60))

    async def mount(self, volume_id: str, wanted: csi_pb2.VolumeCapability | None = None) -> Path:
        """Stage and publish; return the target path."""
        await self.stage(volume_id, wanted)
        return await self.publish(volume_id, wanted)

    async def unmount(self, volume_id: str) -> None:
        """Unpublish and unstage."""
        await self.unpublish(volume_id)
        await self.unstage(volume_id)

    async def expand(self, volume_id: str, size: int, *, block: bool = False) -> Any:
        request = csi_pb2.ControllerExpandVolumeRequest(
            volume_id=volume_id, volume_capability=capability(block=block)
        )
        request.capacity_range.required_bytes = size
        return await answer(self.client.controller.ControllerExpandVolume(request, timeout=60))

    async def expand_on_node(self, volume_id: str) -> int:
        request = csi_pb2.NodeExpandVolumeRequest(
            volume_id=volume_id, volume_path=str(self.target(volume_id))
        )
        found = await answer(self.client.node.NodeExpandVolume(request, timeout=60))
        return int(found.capacity_bytes)

    async def usage(self, volume_id: str) -> list[csi_pb2.VolumeUsage]:
        request = csi_pb2.NodeGetVolumeStatsRequest(
            volume_id=volume_id, volume_path=str(self.target(volume_id))
        )
        found = await answer(self.client.node.NodeGetVolumeStats(request, timeout=60))
        return list(found.usage)


@contextlib.asynccontextmanager
async def serving(pool: Path, scratch: Path) -> AsyncIterator[CsiHost]:
    """Serve the pool on a socket in `scratch`."""
    engine = LocalEngine(pool)
    await engine.open()
    host = Host(
        engine=engine,
        storage=HostNodeStorage(),
        fetcher=WebImageFetcher(str(pool)),
        checksummer=Sha512Checksummer(),
    )
    server = CsiServer(
        scratch / "csi.sock",
        driver_name=DRIVER,
        controller=Controller(volumes=host.volume_service, snapshots=host.snapshot_service),
        node=Node(node_id=NODE, service=host.node),
    )
    async with running(host):
        await server.start()
        made = CsiHost(host, scratch / "csi.sock", scratch)
        try:
            yield made
        finally:
            await made.client.close()
            await server.stop(grace_s=0.1)
            unmount_below(scratch)
    await engine.close()


def unmount_below(directory: Path) -> None:
    """Take away every mount below a directory, the latest first."""
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
        target = line.split(" ")[4]
        if target.startswith(f"{directory}/"):
            subprocess.run(["umount", target], check=False, capture_output=True)
