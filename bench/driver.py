"""The CSI calls that are measured, over the service's socket.

Owns: requests, and asking again as the sidecars do until an image is ready. Must never look at the
pool: what the driver answered is checked elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from shorthorn.csi.proto import csi_pb2
from shorthorn.standalone.csi_client import CsiClient, CsiError, answer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

_TIMEOUT_S = 60.0
_AGAIN_S = 0.005


class Driver:
    """The calls of one channel; volumes are block devices, so that nothing is formatted."""

    def __init__(self, client: CsiClient) -> None:
        self._client = client

    async def create_volume(self, name: str, size_bytes: int, *, handle: str = "") -> str:
        """Make a volume, blank or from the snapshot `handle`; return its id."""
        request = csi_pb2.CreateVolumeRequest(name=name, volume_capabilities=[_block()])
        request.capacity_range.required_bytes = size_bytes
        if handle:
            request.volume_content_source.snapshot.snapshot_id = handle
        made = await self._patiently(self._client.controller.CreateVolume, request)
        return str(made.volume.volume_id)

    async def delete_volume(self, volume_id: str) -> None:
        request = csi_pb2.DeleteVolumeRequest(volume_id=volume_id)
        await self._patiently(self._client.controller.DeleteVolume, request)

    async def create_image(self, name: str, volume_id: str, export_format: str) -> str:
        """Export a volume to an image; return the handle once it is ready to use."""
        request = csi_pb2.CreateSnapshotRequest(
            name=name,
            source_volume_id=volume_id,
            parameters={"type": "bi", "export-type": export_format},
        )
        while True:
            made = await self._patiently(self._client.controller.CreateSnapshot, request)
            if made.snapshot.ready_to_use:
                return str(made.snapshot.snapshot_id)
            await asyncio.sleep(_AGAIN_S)

    async def delete_image(self, handle: str) -> None:
        request = csi_pb2.DeleteSnapshotRequest(snapshot_id=handle)
        await self._patiently(self._client.controller.DeleteSnapshot, request)

    async def publish(self, volume_id: str, staging: Path, target: Path) -> None:
        """Make a volume's block device appear at `target`."""
        staging.mkdir()
        stage = csi_pb2.NodeStageVolumeRequest(
            volume_id=volume_id, staging_target_path=str(staging), volume_capability=_block()
        )
        await self._patiently(self._client.node.NodeStageVolume, stage)
        publish = csi_pb2.NodePublishVolumeRequest(
            volume_id=volume_id,
            staging_target_path=str(staging),
            target_path=str(target),
            volume_capability=_block(),
        )
        await self._patiently(self._client.node.NodePublishVolume, publish)

    async def unpublish(self, volume_id: str, staging: Path, target: Path) -> None:
        """Undo `publish`."""
        unpublish = csi_pb2.NodeUnpublishVolumeRequest(volume_id=volume_id, target_path=str(target))
        await self._patiently(self._client.node.NodeUnpublishVolume, unpublish)
        unstage = csi_pb2.NodeUnstageVolumeRequest(
            volume_id=volume_id, staging_target_path=str(staging)
        )
        await self._patiently(self._client.node.NodeUnstageVolume, unstage)

    async def _patiently(self, call: Any, request: Any) -> Any:
        """Call until the driver no longer says that work goes on. Raises CsiError."""
        while True:
            try:
                return await answer(call(request, timeout=_TIMEOUT_S))
            except CsiError as exc:
                if exc.is_final:
                    raise
            await asyncio.sleep(_AGAIN_S)


@contextlib.asynccontextmanager
async def connected(socket: Path) -> AsyncIterator[Driver]:
    """Yield the driver behind `socket`."""
    client = CsiClient(socket)
    try:
        yield Driver(client)
    finally:
        await client.close()


def _block() -> csi_pb2.VolumeCapability:
    capability = csi_pb2.VolumeCapability()
    capability.block.SetInParent()
    capability.access_mode.mode = csi_pb2.VolumeCapability.AccessMode.SINGLE_NODE_WRITER
    return capability
