"""The driver as the roles see it: CSI calls over its unix socket, nothing else.

Owns: the channel, deadlines, and telling final refusals from "ask again". Must never: reach round
the socket. Used by the provisioner, the snapshotter and the mount commands.
"""

from __future__ import annotations

from collections.abc import Awaitable
from pathlib import Path
from typing import Any, TypeVar

import grpc
import grpc.aio

from shorthorn.csi.proto import csi_pb2_grpc

Answer = TypeVar("Answer")

CALL_TIMEOUT_S = 60.0
"""Deadline of one call; work goes on behind it and the next call joins it."""

_IN_BACKGROUND = (
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.ABORTED,
)
"""The codes after which external-provisioner assumes that work may go on; all others are final."""


class CsiError(Exception):
    """What the driver answered instead of a result: `code` (a gRPC status name) and its message."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(f"{code.name}: {message}")
        self.code = code
        self.message = message

    @property
    def is_final(self) -> bool:
        return self.code not in _IN_BACKGROUND


class CsiClient:
    """One channel to one driver. Open until `close`."""

    def __init__(self, socket: Path) -> None:
        self._channel = grpc.aio.insecure_channel(f"unix:{socket}")
        self.identity: Any = csi_pb2_grpc.IdentityStub(self._channel)
        self.controller: Any = csi_pb2_grpc.ControllerStub(self._channel)
        self.node: Any = csi_pb2_grpc.NodeStub(self._channel)

    async def close(self) -> None:
        await self._channel.close()


async def answer(call: Awaitable[Answer]) -> Answer:
    """Return what the driver answers. Raises CsiError."""
    try:
        return await call
    except grpc.aio.AioRpcError as exc:
        raise CsiError(exc.code(), exc.details() or "") from exc
