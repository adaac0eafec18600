"""CSI calls without a socket: through the real interceptor and servicers, with a fake context."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import grpc

from shorthorn.csi.controller import Controller
from shorthorn.csi.interceptor import CallInterceptor
from shorthorn.csi.node import Node
from shorthorn.csi.proto import csi_pb2

if TYPE_CHECKING:
    from shorthorn.services.node import NodeService
    from shorthorn.services.snapshots import SnapshotService
    from shorthorn.services.volumes import VolumeService

GIB = 1 << 30
MIB = 1 << 20


class CallFailed(Exception):
    """The status that a caller would see."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(f"{code.name}: {text}")
        self.code = code
        self.text = text


class Context:
    """The part of a servicer's context that is used."""

    def __init__(self, remaining_s: float | None) -> None:
        self._remaining_s = remaining_s

    def time_remaining(self) -> float | None:
        return self._remaining_s

    def set_code(self, code: grpc.StatusCode) -> None:
        """What generated code sets before it raises NotImplementedError."""

    def set_details(self, text: str) -> None:
        """As `set_code`."""

    async def abort(self, code: grpc.StatusCode, text: str) -> None:
        raise CallFailed(code, text)


class Services(Protocol):
    """What is called: a world's, or a cluster's."""

    node: NodeService
    snapshot_service: SnapshotService
    volume_service: VolumeService


class Caller:
    """Calls by the RPC's name. `deadline_s` is the caller's; None: it has none."""

    def __init__(self, world: Services, *, deadline_s: float | None = 20.0) -> None:
        self.deadline_s = deadline_s
        self._world = world

    async def __call__(self, rpc: str, request: Any) -> Any:
        world = self._world
        servicer: Any = (
            Node(node_id="node-a", service=world.node)
            if rpc.startswith("Node")
            else Controller(volumes=world.volume_service, snapshots=world.snapshot_service)
        )
        plain: Any = grpc.unary_unary_rpc_method_handler(getattr(servicer, rpc))

        async def continuation(_: Any) -> Any:
            return plain

        details: Any = type("Details", (), {"method": f"/csi.v1.Any/{rpc}"})()
        handler: Any = await CallInterceptor().intercept_service(continuation, details)
        return await handler.unary_unary(request, Context(self.deadline_s))

    async def create_volume(self, name: str, **wanted: Any) -> csi_pb2.Volume:
        response = await self("CreateVolume", create_volume(name, **wanted))
        volume: csi_pb2.Volume = response.volume
        return volume

    async def create_snapshot(
        self, name: str, volume_id: str, **parameters: str
    ) -> csi_pb2.Snapshot:
        given = {key.replace("_", "-"): value for key, value in parameters.items()}
        request = csi_pb2.CreateSnapshotRequest(
            name=name, source_volume_id=volume_id, parameters=given
        )
        snapshot: csi_pb2.Snapshot = (await self("CreateSnapshot", request)).snapshot
        return snapshot

    async def delete_snapshot(self, handle: str) -> None:
        await self("DeleteSnapshot", csi_pb2.DeleteSnapshotRequest(snapshot_id=handle))

    async def delete_volume(self, volume_id: str) -> None:
        await self("DeleteVolume", csi_pb2.DeleteVolumeRequest(volume_id=volume_id))

    async def list_snapshots(self, handle: str) -> list[csi_pb2.Snapshot]:
        request = csi_pb2.ListSnapshotsRequest(snapshot_id=handle)
        return [entry.snapshot for entry in (await self("ListSnapshots", request)).entries]


def capability(
    *, mode: str = "SINGLE_NODE_WRITER", block: bool = False, fs_type: str = "", flags: str = ""
) -> csi_pb2.VolumeCapability:
    """Return a VolumeCapability; `flags` are mount options, separated by commas."""
    message = csi_pb2.VolumeCapability()
    message.access_mode.mode = csi_pb2.VolumeCapability.AccessMode.Mode.Value(mode)  # type: ignore[assignment]
    if block:
        message.block.SetInParent()
    else:
        message.mount.fs_type = fs_type
        message.mount.mount_flags.extend(flags.split(",") if flags else [])
    return message


def create_volume(
    name: str,
    *,
    size: int = GIB,
    limit: int = 0,
    handle: str = "",
    volume_id: str = "",
    parameters: dict[str, str] | None = None,
    capabilities: list[csi_pb2.VolumeCapability] | None = None,
    requisite: list[str] | None = None,
    preferred: list[str] | None = None,
) -> csi_pb2.CreateVolumeRequest:
    """Return a CreateVolumeRequest; `requisite` and `preferred` are node names."""
    request = csi_pb2.CreateVolumeRequest(name=name, parameters=parameters or {})
    request.capacity_range.required_bytes = size
    request.capacity_range.limit_bytes = limit
    request.volume_capabilities.extend([capability()] if capabilities is None else capabilities)
    if handle:
        request.volume_content_source.snapshot.snapshot_id = handle
    if volume_id:
        request.volume_content_source.volume.volume_id = volume_id
    for node in requisite or []:
        topology = request.accessibility_requirements.requisite.add()
        topology.segments["topology.shorthorn.io/node"] = node
    for node in preferred or []:
        topology = request.accessibility_requirements.preferred.add()
        topology.segments["topology.shorthorn.io/node"] = node
    return request
