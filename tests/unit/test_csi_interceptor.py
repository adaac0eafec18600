"""What the calls of a controller that cannot serve yet are answered."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from tests.fakes.csi_calls import CallFailed, Context

from shorthorn.csi.interceptor import CallInterceptor
from shorthorn.csi.proto import csi_pb2
from shorthorn.domain.errors import Unavailable


def refuse() -> None:
    raise Unavailable("controller", "it waits for the API server")


async def answer(method: str, request: Any) -> Any:
    async def behaviour(request: Any, context: Any) -> str:
        return "answered"

    async def continuation(_: Any) -> Any:
        plain: Any = grpc.unary_unary_rpc_method_handler
        return plain(behaviour)

    details: Any = type("Details", (), {"method": method})()
    handler: Any = await CallInterceptor(refuse).intercept_service(continuation, details)
    return await handler.unary_unary(request, Context(20.0))


async def test_who_waits_refuses_the_controllers_work() -> None:
    with pytest.raises(CallFailed) as caught:
        await answer("/csi.v1.Controller/CreateVolume", csi_pb2.CreateVolumeRequest(name="a"))
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("Controller/ControllerGetCapabilities", csi_pb2.ControllerGetCapabilitiesRequest()),
        ("Identity/Probe", csi_pb2.ProbeRequest()),
    ],
)
async def test_who_waits_says_what_sidecars_ask_at_their_start(method: str, request_: Any) -> None:
    assert await answer(f"/csi.v1.{method}", request_) == "answered"
