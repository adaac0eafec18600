"""CSI Node: parse, call `services.node`, format. Must never decide anything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from shorthorn.csi import convert
from shorthorn.csi.proto import csi_pb2, csi_pb2_grpc

if TYPE_CHECKING:
    from grpc import aio

    from shorthorn.services.node import NodeService

    Context = aio.ServicerContext[Any, Any]

CAPABILITIES: Final = (
    "STAGE_UNSTAGE_VOLUME",
    "GET_VOLUME_STATS",
    "EXPAND_VOLUME",
    "SINGLE_NODE_MULTI_WRITER",
)


class Node(csi_pb2_grpc.NodeServicer):
    """See the module. `node_id` is the value of our topology key, too."""

    def __init__(self, *, node_id: str, service: NodeService) -> None:
        self._node_id = node_id
        self._service = service

    async def NodeGetInfo(
        self, request: csi_pb2.NodeGetInfoRequest, context: Context
    ) -> csi_pb2.NodeGetInfoResponse:
        return csi_pb2.NodeGetInfoResponse(
            node_id=self._node_id, accessible_topology=convert.topology(self._node_id)
        )

    async def NodeGetCapabilities(
        self, request: csi_pb2.NodeGetCapabilitiesRequest, context: Context
    ) -> csi_pb2.NodeGetCapabilitiesResponse:
        message = csi_pb2.NodeServiceCapability
        return csi_pb2.NodeGetCapabilitiesResponse(
            capabilities=[message(rpc=message.RPC(type=name)) for name in CAPABILITIES]
        )

    async def NodeStageVolume(
        self, request: csi_pb2.NodeStageVolumeRequest, context: Context
    ) -> csi_pb2.NodeStageVolumeResponse:
        await self._service.stage(convert.stage_request(request))
        return csi_pb2.NodeStageVolumeResponse()

    async def NodeUnstageVolume(
        self, request: csi_pb2.NodeUnstageVolumeRequest, context: Context
    ) -> csi_pb2.NodeUnstageVolumeResponse:
        path = request.staging_target_path
        convert.require(volume_id=request.volume_id, staging_target_path=path)
        await self._service.unstage(request.volume_id, path)
        return csi_pb2.NodeUnstageVolumeResponse()

    async def NodePublishVolume(
        self, request: csi_pb2.NodePublishVolumeRequest, context: Context
    ) -> csi_pb2.NodePublishVolumeResponse:
        await self._service.publish(convert.publish_request(request))
        return csi_pb2.NodePublishVolumeResponse()

    async def NodeUnpublishVolume(
        self, request: csi_pb2.NodeUnpublishVolumeRequest, context: Context
    ) -> csi_pb2.NodeUnpublishVolumeResponse:
        convert.require(volume_id=request.volume_id, target_path=request.target_path)
        await self._service.unpublish(request.volume_id, request.target_path)
        return csi_pb2.NodeUnpublishVolumeResponse()

    async def NodeGetVolumeStats(
        self, request: csi_pb2.NodeGetVolumeStatsRequest, context: Context
    ) -> csi_pb2.NodeGetVolumeStatsResponse:
        convert.require(volume_id=request.volume_id, volume_path=request.volume_path)
        stats = await self._service.stats(request.volume_id, request.volume_path)
        return csi_pb2.NodeGetVolumeStatsResponse(usage=convert.usage(stats))

    async def NodeExpandVolume(
        self, request: csi_pb2.NodeExpandVolumeRequest, context: Context
    ) -> csi_pb2.NodeExpandVolumeResponse:
        convert.require(volume_id=request.volume_id, volume_path=request.volume_path)
        required_bytes = convert.capacity_range(request.capacity_range).required_bytes
        capacity_bytes = await self._service.expand(
            request.volume_id, request.volume_path, required_bytes
        )
        return csi_pb2.NodeExpandVolumeResponse(capacity_bytes=capacity_bytes)
