"""The gRPC server on its unix socket.

Owns the socket file: who may connect (its owner alone), and that a living server's socket is never
taken away. Wired by `daemon`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from grpc import aio

from shorthorn.csi.identity import Identity
from shorthorn.csi.interceptor import CallInterceptor
from shorthorn.csi.proto import csi_pb2_grpc
from shorthorn.domain.errors import InUse, InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from shorthorn.csi.controller import Controller
    from shorthorn.csi.node import Node

#: sun_path holds 108 bytes with its end; ours is bound under a longer name first.
_PATH_BYTES_MAX = 107
_NEW_SUFFIX = ".new"
#: Requests are small; answers may be lists of everything.
_OPTIONS: Final = (
    ("grpc.max_receive_message_length", 4 << 20),
    ("grpc.max_send_message_length", 64 << 20),
)


class CsiServer:
    """Serves Identity, and whichever of the other two services it is given. `start` once, `stop`
    once.

    Args: check: called before every call of the Controller service; what it raises is the answer.
    """

    def __init__(
        self,
        socket: Path,
        *,
        driver_name: str,
        controller: Controller | None = None,
        node: Node | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._socket = socket
        self._is_serving = False
        self._server = aio.server(interceptors=(CallInterceptor(check),), options=_OPTIONS)
        identity = Identity(
            driver_name=driver_name, version=version("shorthorn"), is_ready=lambda: self._is_serving
        )
        csi_pb2_grpc.add_IdentityServicer_to_server(identity, self._server)
        if controller is not None:
            csi_pb2_grpc.add_ControllerServicer_to_server(controller, self._server)
        if node is not None:
            csi_pb2_grpc.add_NodeServicer_to_server(node, self._server)

    async def start(self) -> None:
        """Serve on the socket; calls are accepted when this returns.

        Raises: InUse: another process serves there. InvalidArgument: the path is too long, or is
            something else than a socket.
        """
        check_path(self._socket)
        await _remove_dead(self._socket)
        # Bound under another name: the real one exists only with its final mode.
        new = self._socket.with_name(self._socket.name + _NEW_SUFFIX)
        try:
            self._server.add_insecure_port(f"unix:{new}")
        except RuntimeError as exc:  # gRPC tells the reason to stderr only
            problem = f"cannot listen at {self._socket}; is its disk full, or not to be written to?"
            raise InvalidArgument("socket", problem) from exc
        new.chmod(0o600)
        await self._server.start()
        self._is_serving = True
        new.rename(self._socket)

    async def stop(self, *, grace_s: float = 2.0) -> None:
        """Refuse new calls, give running ones `grace_s`, and remove the socket."""
        self._is_serving = False
        with contextlib.suppress(FileNotFoundError):
            self._socket.unlink()
        await self._server.stop(grace_s)


def check_path(socket: Path) -> None:
    """Refuse a path that no unix socket can have. Raises: InvalidArgument."""
    most = _PATH_BYTES_MAX - len(_NEW_SUFFIX)
    if len(os.fsencode(socket)) > most:
        problem = f"{socket} is longer than {most} bytes; choose a directory with a shorter name"
        raise InvalidArgument("socket", problem)


async def _remove_dead(socket: Path) -> None:
    """Remove a socket that nobody listens on."""
    try:
        mode = socket.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise InvalidArgument("socket", f"{socket} exists and is no socket")
    try:
        _, writer = await asyncio.open_unix_connection(socket)
    except ConnectionRefusedError:
        socket.unlink()
        return
    writer.close()
    await writer.wait_closed()
    raise InUse("socket", str(socket), "another process that serves there")
