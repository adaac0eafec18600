"""CSI Identity: who the driver is and what it can do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from google.protobuf.wrappers_pb2 import BoolValue

from shorthorn.csi.proto import csi_pb2, csi_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Callable

    from grpc import aio

    Context = aio.ServicerContext[Any, Any]


class Identity(csi_pb2_grpc.IdentityServicer):
    """`is_ready` tells whether calls can be served; sidecars wait for it at their start."""

    def __init__(self, *, driver_name: str, version: str, is_ready: Callable[[], bool]) -> None:
        self._driver_name = driver_name
        self._version = version
        self._is_ready = is_ready

    async def GetPluginInfo(
        self, request: csi_pb2.GetPluginInfoRequest, context: Context
    ) -> csi_pb2.GetPluginInfoResponse:
        return csi_pb2.GetPluginInfoResponse(name=self._driver_name, vendor_version=self._version)

    async def GetPluginCapabilities(
        self, request: csi_pb2.GetPluginCapabilitiesRequest, context: Context
    ) -> csi_pb2.GetPluginCapabilitiesResponse:
        message = csi_pb2.PluginCapability
        return csi_pb2.GetPluginCapabilitiesResponse(
            capabilities=[
                message(service=message.Service(type="CONTROLLER_SERVICE")),
                message(service=message.Service(type="VOLUME_ACCESSIBILITY_CONSTRAINTS")),
                message(volume_expansion=message.VolumeExpansion(type="ONLINE")),
            ]
        )

    async def Probe(self, request: csi_pb2.ProbeRequest, context: Context) -> csi_pb2.ProbeResponse:
        return csi_pb2.ProbeResponse(ready=BoolValue(value=self._is_ready()))
