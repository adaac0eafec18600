"""What a kubelet asks of a driver for a pod's volume, asked by a test.

Owns: staging and publishing over a node's socket, and the directories for it. Must never: mount
anything itself. Called by tests, where no kubelet runs.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc

from shorthorn.csi.proto import csi_pb2, csi_pb2_grpc

CALL_TIMEOUT_S = 60.0


class NodeCalls:
    """Calls to the driver of one node; `directory` is the kubelet's."""

    def __init__(self, socket: Path, directory: Path) -> None:
        self._socket = socket
        self._directory = directory

    def mount(self, volume: Mapping[str, Any], *, read_only: bool = False) -> Path:
        """Stage and publish a PersistentVolume; return the directory or device of its pod."""
        name, wanted = volume["metadata"]["name"], _capability(volume)
        staging, target = self._staging(name), self._target(name)
        staging.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        csi = volume["spec"]["csi"]
        context = csi.get("volumeAttributes", {})
        with self._channel() as channel:
            node = _stub(channel)
            node.NodeStageVolume(
                csi_pb2.NodeStageVolumeRequest(
                    volume_id=csi["volumeHandle"],
                    staging_target_path=str(staging),
                    volume_capability=wanted,
                    volume_context=context,
                ),
                timeout=CALL_TIMEOUT_S,
            )
            node.NodePublishVolume(
                csi_pb2.NodePublishVolumeRequest(
                    volume_id=csi["volumeHandle"],
                    staging_target_path=str(staging),
                    target_path=str(target),
                    volume_capability=wanted,
                    volume_context=context,
                    readonly=read_only,
                ),
                timeout=CALL_TIMEOUT_S,
            )
        return target

    def expand(self, volume: Mapping[str, Any], size_bytes: int) -> int:
        """Grow the file system of a mounted volume; return the size that the driver says."""
        name, csi = volume["metadata"]["name"], volume["spec"]["csi"]
        with self._channel() as channel:
            answer = _stub(channel).NodeExpandVolume(
                csi_pb2.NodeExpandVolumeRequest(
                    volume_id=csi["volumeHandle"],
                    volume_path=str(self._target(name)),
                    staging_target_path=str(self._staging(name)),
                    capacity_range=csi_pb2.CapacityRange(required_bytes=size_bytes),
                    volume_capability=_capability(volume),
                ),
                timeout=CALL_TIMEOUT_S,
            )
        return int(answer.capacity_bytes)

    def unmount(self, volume: Mapping[str, Any]) -> None:
        """Unpublish and unstage."""
        name, handle = volume["metadata"]["name"], volume["spec"]["csi"]["volumeHandle"]
        with self._channel() as channel:
            node = _stub(channel)
            node.NodeUnpublishVolume(
                csi_pb2.NodeUnpublishVolumeRequest(
                    volume_id=handle, target_path=str(self._target(name))
                ),
                timeout=CALL_TIMEOUT_S,
            )
            node.NodeUnstageVolume(
                csi_pb2.NodeUnstageVolumeRequest(
                    volume_id=handle, staging_target_path=str(self._staging(name))
                ),
                timeout=CALL_TIMEOUT_S,
            )

    def unmount_everything(self) -> None:
        """Take away what a failed test left, without asking the driver."""
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        targets = [line.split(" ")[4] for line in mounts]
        for target in reversed(targets):
            if target.startswith(f"{self._directory}/"):
                subprocess.run(["umount", target], check=False, capture_output=True)

    def _channel(self) -> grpc.Channel:
        return grpc.insecure_channel(f"unix:{self._socket}")

    def _staging(self, name: str) -> Path:
        return self._directory / "staged" / name

    def _target(self, name: str) -> Path:
        return self._directory / "pods" / name


def _stub(channel: Any) -> Any:
    """Return the stub; its types know asyncio's channels only."""
    return csi_pb2_grpc.NodeStub(channel)


def _capability(volume: Mapping[str, Any]) -> csi_pb2.VolumeCapability:
    mode = csi_pb2.VolumeCapability.AccessMode(mode="SINGLE_NODE_WRITER")
    if volume["spec"].get("volumeMode") == "Block":
        block = csi_pb2.VolumeCapability.BlockVolume()
        return csi_pb2.VolumeCapability(access_mode=mode, block=block)
    fs_type = volume["spec"]["csi"].get("fsType", "ext4")
    mount = csi_pb2.VolumeCapability.MountVolume(fs_type=fs_type)
    return csi_pb2.VolumeCapability(access_mode=mode, mount=mount)
