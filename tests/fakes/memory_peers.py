"""Peers in memory: `domain.ports.PeerSource` between memory engines.

A transfer has two halves: bytes are staged, then the record is given. `gate` holds every transfer
between them, so that a test can end a process or a peer there; staged bytes count when it goes on.
"""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING

from tests.fakes.memory_engine import CHECKSUM, MemoryEngine

from shorthorn.domain.errors import ChecksumMismatch, NotFound, Unavailable
from shorthorn.domain.models import ImageFormat, ImageRecord, Progress

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from shorthorn.domain.models import ImageKey, Peer
    from shorthorn.domain.ports import ReportProgress


class MemoryPeers:
    """The network of all nodes; `at(engine)` is what one node sees of it."""

    def __init__(self) -> None:
        self.engines: dict[str, MemoryEngine] = {}
        #: Pools whose node does not answer.
        self.away: set[str] = set()
        #: Pools that send other bytes than they promise.
        self.lying: set[str] = set()
        #: Transfers that moved bytes: from pool, to pool, what.
        self.sent: list[tuple[str, str, str]] = []
        self.faults: list[Exception] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self._begun = asyncio.Condition()

    def at(self, engine: MemoryEngine) -> MemoryPeerSource:
        return MemoryPeerSource(self, engine)

    async def begun(self, count: int) -> None:
        """Return as soon as that many transfers have moved bytes."""
        async with self._begun, asyncio.timeout(60):
            await self._begun.wait_for(lambda: len(self.sent) >= count)

    async def move(self, sender: str, receiver: str, what: str) -> None:
        async with self._begun:
            self.sent.append((sender, receiver, what))
            self._begun.notify_all()
        await self.gate.wait()
        if self.faults:
            raise self.faults.pop(0)
        if sender in self.away:
            raise Unavailable(f"peer {sender}", "the connection broke")


class MemoryPeerSource:
    """See domain.ports.PeerSource."""

    def __init__(self, network: MemoryPeers, engine: MemoryEngine) -> None:
        self._network = network
        self._engine = engine

    def _first_there(self, peers: Sequence[Peer]) -> MemoryEngine:
        for peer in peers:
            if peer.pool_uuid not in self._network.away:
                return self._network.engines[peer.pool_uuid]
        raise Unavailable("peers", f"none of {len(peers)} answers")

    async def fetch_image(
        self,
        key: ImageKey,
        peers: Sequence[Peer],
        expected_checksum: str,
        staging: Path,
        report: ReportProgress,
    ) -> ImageRecord:
        assert self._engine.pool_uuid not in {peer.pool_uuid for peer in peers}
        sender = self._first_there(peers)
        record = sender.images.get(key)
        if record is None:
            raise Unavailable(f"peer {sender.pool_uuid}", "it has no such image")
        self._engine.staged[key] = sender.contents.get(record.base_path, "")
        report(Progress(record.size_bytes // 2, record.size_bytes))
        await self._network.move(sender.pool_uuid, self._engine.pool_uuid, key.name)
        checksum = "0" * 128 if sender.pool_uuid in self._network.lying else CHECKSUM
        if expected_checksum not in ("", checksum):
            self._engine.staged.pop(key, None)
            raise ChecksumMismatch(key.name, expected_checksum, checksum)
        return dataclasses.replace(record, checksum=checksum)

    async def fetch_snapshot(
        self,
        snapshot_id: str,
        peers: Sequence[Peer],
        key: ImageKey,
        staging: Path,
        report: ReportProgress,
    ) -> ImageRecord:
        sender = self._first_there(peers)
        snapshot = sender.snapshots.get(snapshot_id)
        if snapshot is None:
            raise NotFound("snapshot", snapshot_id)
        size_bytes = snapshot.size_bytes
        self._engine.staged[key] = sender.contents.get(snapshot.path, "")
        report(Progress(size_bytes // 2, size_bytes))
        await self._network.move(sender.pool_uuid, self._engine.pool_uuid, snapshot_id)
        return ImageRecord(
            key,
            ImageFormat.RAW,
            size_bytes,
            size_bytes,
            CHECKSUM,
            {"type": "snapshot"},
            snapshot.point_in_time,
            snapshot.point_in_time,
            "",
            "",
        )
