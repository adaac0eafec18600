"""Nodes that do not report: their pools are passed over, and nobody waits for those that are gone.

Owns: noticing silence, and carrying out `domain.node_loss`. Must never: touch an object of a node
that reports. Run by the controller that leads.

Clocks of other machines are not believed: a pool is silent when its heartbeat has not changed for a
minute by our clock. While the API server is away nobody can say anything, so that time counts for
nothing.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime
from typing import TypeVar

from shorthorn.controllers.finalizers import release
from shorthorn.domain import errors
from shorthorn.domain.models import Condition, ImageCopy, Pool, Snapshot, Volume
from shorthorn.domain.node_loss import (
    NODE_SILENT,
    SILENT_AFTER_S,
    Held,
    LossStep,
    MarkSilent,
    Release,
    RemovePool,
    SayWaiting,
    is_held,
    is_marked,
    plan_losses,
    silence,
)
from shorthorn.domain.ports import NodeDirectory, Registry

log = logging.getLogger(__name__)

_INTERVAL_S = 10.0
HeldT = TypeVar("HeldT", Volume, Snapshot, ImageCopy)


class LostNodes:
    """Looks at all pools every 10 s until cancelled. `clock` tells the time, in UTC."""

    def __init__(
        self,
        pools: Registry[Pool],
        volumes: Registry[Volume],
        snapshots: Registry[Snapshot],
        copies: Registry[ImageCopy],
        nodes: NodeDirectory,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._pools = pools
        self._volumes = volumes
        self._snapshots = snapshots
        self._copies = copies
        self._nodes = nodes
        self._clock = clock
        #: By pool: its last heartbeat, and when that was first seen (the loop's time).
        self._heard: dict[str, tuple[datetime | None, float]] = {}
        #: By UUID of a pool without an object: since when that is known (the loop's time).
        self._missed: dict[str, float] = {}

    async def run(self) -> None:
        while True:
            try:
                await self.look()
            except errors.DomainError as exc:
                log.warning("silent nodes cannot be looked for: %s", exc)
                self._heard.clear()
                self._missed.clear()
            await asyncio.sleep(_INTERVAL_S)

    async def look(self) -> None:
        """Look once. Raises: Unavailable: nothing can be said of anybody."""
        pools = await self._pools.list()
        held = self._held()
        silent = self._silent(pools)
        steps = plan_losses(
            pools,
            held,
            silent=silent,
            forgotten=await self._forgotten(pools, silent),
            absent=self._absent(pools, held),
        )
        for step in steps:
            try:
                await self._take(step)
            except (errors.Conflict, errors.NotFound):
                continue  # somebody was faster, perhaps the node itself

    def _held(self) -> list[Held]:
        everything: list[Held] = [
            *self._volumes.cached(),
            *self._snapshots.cached(),
            *self._copies.cached(),
        ]
        return [obj for obj in everything if is_held(obj)]

    def _silent(self, pools: Sequence[Pool]) -> set[str]:
        now = asyncio.get_running_loop().time()
        heard = {}
        for pool in pools:
            name, heartbeat_at = pool.meta.name, pool.status.heartbeat_at
            last = self._heard.get(name)
            is_same = last is not None and last[0] == heartbeat_at
            heard[name] = last if last is not None and is_same else (heartbeat_at, now)
        self._heard = heard
        return {
            pool.meta.name
            for pool in pools
            if is_marked(pool)
            or (pool.status.heartbeat_at and now - heard[pool.meta.name][1] >= SILENT_AFTER_S)
        }

    async def _forgotten(self, pools: Sequence[Pool], silent: Collection[str]) -> set[str]:
        reporting = {pool.spec.node_id for pool in pools if pool.meta.name not in silent}
        suspects = {pool.spec.node_id for pool in pools if pool.meta.name in silent} - reporting
        return {node for node in sorted(suspects) if not await self._nodes.is_known(node)}

    def _absent(self, pools: Sequence[Pool], held: Sequence[Held]) -> set[str]:
        now = asyncio.get_running_loop().time()
        there = {pool.spec.pool_uuid for pool in pools}
        missing = {obj.spec.pool_uuid for obj in held} - there
        self._missed = {uuid: self._missed.get(uuid, now) for uuid in missing}
        return {uuid for uuid, since in self._missed.items() if now - since >= SILENT_AFTER_S}

    # --- what a step does

    async def _take(self, step: LossStep) -> None:
        match step:
            case MarkSilent(pool):
                await self._mark(pool)
            case RemovePool(pool):
                log.warning(
                    "node %s has left the cluster: pool %s is given up; its data stays at %s there",
                    pool.spec.node_id,
                    pool.meta.name,
                    pool.spec.path,
                )
                await self._pools.delete(pool.meta.name, uid=pool.meta.uid)
            case Release(held):
                await self._release(held)
            case SayWaiting(held, message):
                await self._say(held, message)

    async def _mark(self, pool: Pool) -> None:
        log.warning("%s: pool %s is passed over", silence(pool), pool.meta.name)
        ready = Condition("Ready", False, NODE_SILENT, silence(pool), self._clock())
        others = tuple(c for c in pool.status.conditions if c.type != "Ready")
        status = dataclasses.replace(pool.status, conditions=(ready, *others))
        await self._pools.update_status(dataclasses.replace(pool, status=status))

    async def _release(self, held: Held) -> None:
        log.warning(
            "%s %s is let go: pool %s of node %s is gone; its data stays on that machine's disk",
            type(held).__name__,
            held.meta.name,
            held.spec.pool_uuid,
            held.spec.node_id,
        )
        match held:
            case Volume():
                await release(self._volumes, held)
            case Snapshot():
                await release(self._snapshots, held)
            case ImageCopy():
                await release(self._copies, held)

    async def _say(self, held: Held, message: str) -> None:
        match held:
            case Volume():
                await _say(self._volumes, held, message)
            case Snapshot():
                await _say(self._snapshots, held, message)
            case ImageCopy():
                await _say(self._copies, held, message)


async def _say(registry: Registry[HeldT], held: HeldT, message: str) -> None:
    status = dataclasses.replace(held.status, reason=NODE_SILENT, message=message)
    await registry.update_status(dataclasses.replace(held, status=status))
