"""CSI Controller: parse, call a service, format.

Must never decide anything: what an argument means is in `convert`, what is done in `services`.
RPCs that are absent here answer UNIMPLEMENTED, and no capability promises them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from google.protobuf.wrappers_pb2 import Int64Value

from shorthorn.csi import convert
from shorthorn.csi.interceptor import budget_s
from shorthorn.csi.proto import csi_pb2, csi_pb2_grpc
from shorthorn.domain.errors import InvalidArgument, UnsupportedCapability
from shorthorn.services.capabilities import check_all_offered
from shorthorn.services.sizes import CAPACITY_BYTES_MIN

if TYPE_CHECKING:
    from grpc import aio

    from shorthorn.services.snapshots import SnapshotService
    from shorthorn.services.volumes import VolumeService

    Context = aio.ServicerContext[Any, Any]

CAPABILITIES: Final = (
    "CREATE_DELETE_VOLUME",
    "LIST_VOLUMES",
    "GET_CAPACITY",
    "CREATE_DELETE_SNAPSHOT",
    "LIST_SNAPSHOTS",
    "GET_SNAPSHOT",
    "CLONE_VOLUME",
    "EXPAND_VOLUME",
    "GET_VOLUME",
    "SINGLE_NODE_MULTI_WRITER",
)


class Controller(csi_pb2_grpc.ControllerServicer):
    """See the module."""

    def __init__(self, *, volumes: VolumeService, snapshots: SnapshotService) -> None:
        self._volumes = volumes
        self._snapshots = snapshots

    async def ControllerGetCapabilities(
        self, request: csi_pb2.ControllerGetCapabilitiesRequest, context: Context
    ) -> csi_pb2.ControllerGetCapabilitiesResponse:
        message = csi_pb2.ControllerServiceCapability
        return csi_pb2.ControllerGetCapabilitiesResponse(
            capabilities=[message(rpc=message.RPC(type=name)) for name in CAPABILITIES]
        )

    # --- volumes

    async def CreateVolume(
        self, request: csi_pb2.CreateVolumeRequest, context: Context
    ) -> csi_pb2.CreateVolumeResponse:
        wanted = convert.create_volume_request(request)
        volume = await self._volumes.create(wanted, timeout_s=budget_s(context))
        return csi_pb2.CreateVolumeResponse(volume=convert.volume(volume))

    async def DeleteVolume(
        self, request: csi_pb2.DeleteVolumeRequest, context: Context
    ) -> csi_pb2.DeleteVolumeResponse:
        convert.require(volume_id=request.volume_id)
        await self._volumes.delete(request.volume_id, timeout_s=budget_s(context))
        return csi_pb2.DeleteVolumeResponse()

    async def ValidateVolumeCapabilities(
        self, request: csi_pb2.ValidateVolumeCapabilitiesRequest, context: Context
    ) -> csi_pb2.ValidateVolumeCapabilitiesResponse:
        convert.require(volume_id=request.volume_id)
        if not request.volume_capabilities:
            raise InvalidArgument("volume_capabilities", "at least one is required")
        await self._volumes.get(request.volume_id)
        response = csi_pb2.ValidateVolumeCapabilitiesResponse()
        try:
            check_all_offered([convert.capability(c) for c in request.volume_capabilities])
        except UnsupportedCapability as exc:
            response.message = str(exc)
            return response
        response.confirmed.volume_capabilities.extend(request.volume_capabilities)
        response.confirmed.volume_context.update(request.volume_context)
        response.confirmed.parameters.update(request.parameters)
        return response

    async def ListVolumes(
        self, request: csi_pb2.ListVolumesRequest, context: Context
    ) -> csi_pb2.ListVolumesResponse:
        volumes, token = await self._volumes.list(
            max_entries=request.max_entries, token=request.starting_token
        )
        entry = csi_pb2.ListVolumesResponse.Entry
        return csi_pb2.ListVolumesResponse(
            entries=[entry(volume=convert.volume(v)) for v in volumes], next_token=token
        )

    async def ControllerGetVolume(
        self, request: csi_pb2.ControllerGetVolumeRequest, context: Context
    ) -> csi_pb2.ControllerGetVolumeResponse:
        convert.require(volume_id=request.volume_id)
        volume = await self._volumes.get(request.volume_id)
        status = csi_pb2.ControllerGetVolumeResponse.VolumeStatus()
        return csi_pb2.ControllerGetVolumeResponse(volume=convert.volume(volume), status=status)

    async def GetCapacity(
        self, request: csi_pb2.GetCapacityRequest, context: Context
    ) -> csi_pb2.GetCapacityResponse:
        least = Int64Value(value=CAPACITY_BYTES_MIN)
        try:
            for wanted in request.volume_capabilities:
                check_all_offered([convert.capability(wanted)])
        except UnsupportedCapability:
            return csi_pb2.GetCapacityResponse(available_capacity=0, minimum_volume_size=least)
        free = await self._volumes.free_bytes(dict(request.accessible_topology.segments))
        return csi_pb2.GetCapacityResponse(available_capacity=free, minimum_volume_size=least)

    async def ControllerExpandVolume(
        self, request: csi_pb2.ControllerExpandVolumeRequest, context: Context
    ) -> csi_pb2.ControllerExpandVolumeResponse:
        convert.require(volume_id=request.volume_id)
        volume = await self._volumes.expand(
            request.volume_id,
            convert.capacity_range(request.capacity_range),
            timeout_s=budget_s(context),
        )
        is_block = request.volume_capability.WhichOneof("access_type") == "block"
        return csi_pb2.ControllerExpandVolumeResponse(
            capacity_bytes=volume.status.capacity_bytes, node_expansion_required=not is_block
        )

    # --- snapshots

    async def CreateSnapshot(
        self, request: csi_pb2.CreateSnapshotRequest, context: Context
    ) -> csi_pb2.CreateSnapshotResponse:
        wanted = convert.create_snapshot_request(request)
        answer = await self._snapshots.create(wanted, timeout_s=budget_s(context))
        return csi_pb2.CreateSnapshotResponse(snapshot=convert.snapshot(answer))

    async def DeleteSnapshot(
        self, request: csi_pb2.DeleteSnapshotRequest, context: Context
    ) -> csi_pb2.DeleteSnapshotResponse:
        convert.require(snapshot_id=request.snapshot_id)
        await self._snapshots.delete(request.snapshot_id, timeout_s=budget_s(context))
        return csi_pb2.DeleteSnapshotResponse()

    async def ListSnapshots(
        self, request: csi_pb2.ListSnapshotsRequest, context: Context
    ) -> csi_pb2.ListSnapshotsResponse:
        answers, token = await self._snapshots.list(
            handle=request.snapshot_id,
            volume_id=request.source_volume_id,
            max_entries=request.max_entries,
            token=request.starting_token,
        )
        entry = csi_pb2.ListSnapshotsResponse.Entry
        return csi_pb2.ListSnapshotsResponse(
            entries=[entry(snapshot=convert.snapshot(a)) for a in answers], next_token=token
        )

    async def GetSnapshot(
        self, request: csi_pb2.GetSnapshotRequest, context: Context
    ) -> csi_pb2.GetSnapshotResponse:
        convert.require(snapshot_id=request.snapshot_id)
        answer = await self._snapshots.get(request.snapshot_id)
        return csi_pb2.GetSnapshotResponse(snapshot=convert.snapshot(answer))
