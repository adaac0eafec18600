"""Real CSI calls over the service's socket.

Owns: the few calls that the main job makes itself, and how they are shown. Must never: interpret an
answer beyond what is asked of it; the sidecars' parts are played by the service.
"""

from __future__ import annotations

from collections.abc import Awaitable
from pathlib import Path
from typing import Any

from shorthorn.csi.proto import csi_pb2
from shorthorn.demo.failures import StepFailed
from shorthorn.demo.report import Report, format_bytes
from shorthorn.standalone.csi_client import CALL_TIMEOUT_S, CsiClient, CsiError, answer


class Driver:
    """A CSI client that shows what it does."""

    def __init__(self, socket: Path, report: Report) -> None:
        self._client = CsiClient(socket)
        self._report = report

    async def close(self) -> None:
        """Close the channel."""
        await self._client.close()

    async def introduce(self) -> None:
        """Probe the driver, and show its name and capacity. Raises StepFailed."""
        probe = await self._call(
            "Identity/Probe", self._client.identity.Probe(csi_pb2.ProbeRequest(), timeout=_LIMIT)
        )
        self._report.output(f"ready: {str(probe.ready.value).lower()}")
        info = await self._call(
            "Identity/GetPluginInfo",
            self._client.identity.GetPluginInfo(csi_pb2.GetPluginInfoRequest(), timeout=_LIMIT),
        )
        self._report.output(f"name: {info.name}, vendor_version: {info.vendor_version}")
        room = await self._call(
            "Controller/GetCapacity",
            self._client.controller.GetCapacity(csi_pb2.GetCapacityRequest(), timeout=_LIMIT),
        )
        self._report.output(f"available_capacity: {format_bytes(room.available_capacity)}")

    async def snapshots_of(self, volume_id: str) -> list[Any]:
        """Return ListSnapshots' entries of one volume. Raises StepFailed."""
        request = csi_pb2.ListSnapshotsRequest(source_volume_id=volume_id)
        found = await self._call(
            f"Controller/ListSnapshots source_volume_id={volume_id}",
            self._client.controller.ListSnapshots(request, timeout=_LIMIT),
        )
        return [entry.snapshot for entry in found.entries]

    async def refusal_of(self, handle: str) -> tuple[str, str]:
        """Return code and message that ListSnapshots refuses a handle with; StepFailed: it does
        not.
        """
        request = csi_pb2.ListSnapshotsRequest(snapshot_id=handle)
        self._report.command(f"csi Controller/ListSnapshots snapshot_id='{handle}'")
        try:
            await answer(self._client.controller.ListSnapshots(request, timeout=_LIMIT))
        except CsiError as exc:
            self._report.output(f"{exc.code.name}: {exc.message}", style="yellow")
            return exc.code.name, exc.message
        raise StepFailed(f"ListSnapshots accepts {handle}")

    async def _call(self, shown: str, call: Awaitable[Any]) -> Any:
        self._report.command(f"csi {shown}")
        try:
            return await answer(call)
        except CsiError as exc:
            raise StepFailed(f"CSI {shown}: {exc}") from exc


_LIMIT = CALL_TIMEOUT_S
