"""This node's pool as an object: what capacity and placement read.

Owns: creating the Pool object and keeping its numbers near the truth. Must never: change the pool.
Run on its node.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from datetime import UTC, datetime

from shorthorn.domain import errors
from shorthorn.domain.labels import node_labels
from shorthorn.domain.models import Condition, Meta, Pool, PoolSpec, PoolStatus, Volume
from shorthorn.domain.ports import Engine, Registry

log = logging.getLogger(__name__)

_INTERVAL_S = 5.0
_STEP_BYTES = 1 << 20
"""Free space is told in whole MiB, so that an idle pool writes nothing."""


class PoolReporter:
    """Reports one engine's pool until cancelled."""

    def __init__(
        self, pools: Registry[Pool], volumes: Registry[Volume], engine: Engine, spec: PoolSpec
    ) -> None:
        self._pools = pools
        self._volumes = volumes
        self._engine = engine
        self._spec = spec

    async def run(self) -> None:
        while True:
            try:
                await self.report()
            except errors.DomainError as exc:
                log.warning("pool %s is not reported: %s", self._spec.pool_uuid, exc)
            await asyncio.sleep(_INTERVAL_S)

    async def report(self) -> None:
        """Write the pool's numbers where they changed; makes the object when it is missing."""
        name = self._spec.pool_uuid
        pool = await self._pools.find(name)
        if pool is None:
            with contextlib.suppress(errors.AlreadyExists):
                await self._pools.create(
                    Pool(Meta(name, labels=node_labels(self._spec.node_id)), self._spec)
                )
            pool = await self._pools.find(name)
        if pool is None:
            return
        status = await self._observed(pool)
        if status != pool.status:
            await self._pools.update_status(dataclasses.replace(pool, status=status))

    async def _observed(self, pool: Pool) -> PoolStatus:
        usage = await self._engine.usage()
        mine = (v for v in self._volumes.cached() if v.spec.pool_uuid == self._engine.pool_uuid)
        before = next(iter(pool.status.conditions), None)
        since = before.changed_at if before else datetime.now(UTC)
        return PoolStatus(
            capacity_bytes=usage.capacity_bytes,
            allocated_bytes=usage.allocated_bytes // _STEP_BYTES * _STEP_BYTES,
            available_bytes=usage.available_bytes // _STEP_BYTES * _STEP_BYTES,
            promised_bytes=sum(volume.spec.capacity_bytes for volume in mine),
            engine=self._engine.name,
            clone_method=self._engine.clone_method,
            conditions=(Condition("Ready", True, "Open", changed_at=since),),
        )
