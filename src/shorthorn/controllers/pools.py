"""This node's pool as an object: what capacity and placement read.

Owns: creating the Pool object, keeping its numbers near the truth and saying that its node lives.
Must never: change the pool, or what others wrote into the object's spec. Run on its node.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from shorthorn.domain import errors
from shorthorn.domain.labels import node_labels
from shorthorn.domain.models import Condition, Meta, Pool, PoolSpec, PoolStatus, Volume
from shorthorn.domain.ports import Engine, Registry

log = logging.getLogger(__name__)

_INTERVAL_S = 5.0
_STEP_BYTES = 1 << 20
"""Free space is told in whole MiB, so that an idle pool writes nothing but its life signs."""


class PoolReporter:
    """Reports one engine's pool until cancelled.

    Args: spec: what this node says of the pool; `eviction_requested` is others' to say.
        heartbeat_s: how often to say that the node lives; None: never, on the only host.
    """

    def __init__(
        self,
        pools: Registry[Pool],
        volumes: Registry[Volume],
        engine: Engine,
        spec: PoolSpec,
        *,
        heartbeat_s: float | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._pools = pools
        self._volumes = volumes
        self._engine = engine
        self._spec = spec
        self._heartbeat = None if heartbeat_s is None else timedelta(seconds=heartbeat_s)
        self._clock = clock
        self._told = ""

    async def run(self) -> None:
        while True:
            try:
                await self.report()
                self._told = ""
            except errors.Conflict:
                log.debug("pool %s changed meanwhile; again soon", self._spec.pool_uuid)
            except errors.DomainError as exc:
                self._tell(exc)
            await asyncio.sleep(_INTERVAL_S)

    def _tell(self, exc: errors.DomainError) -> None:
        """Log a failure once, not at every attempt."""
        level = logging.DEBUG if str(exc) == self._told else logging.WARNING
        log.log(level, "pool %s is not reported: %s", self._spec.pool_uuid, exc)
        self._told = str(exc)

    async def report(self) -> None:
        """Write what changed of the pool; makes the object when it is missing.

        Raises: WrongState: the cluster knows this pool on another node. Conflict: somebody else
            wrote it in between. Unavailable.
        """
        pool = await self._ensure_object()
        if pool is None:
            return
        spec = dataclasses.replace(
            self._spec,
            node_id=pool.spec.node_id,
            eviction_requested=pool.spec.eviction_requested,
        )
        labels = {**pool.meta.labels, **node_labels(spec.node_id)}
        if (spec, labels) != (pool.spec, dict(pool.meta.labels)):
            meta = dataclasses.replace(pool.meta, labels=labels)
            pool = await self._pools.update(dataclasses.replace(pool, meta=meta, spec=spec))
        status = await self._observed(pool)
        if status != pool.status:
            await self._pools.update_status(dataclasses.replace(pool, status=status))

    async def _ensure_object(self) -> Pool | None:
        name, node_id = self._spec.pool_uuid, self._spec.node_id
        pool = await self._pools.find(name)
        if pool is None:
            with contextlib.suppress(errors.AlreadyExists):
                await self._pools.create(Pool(Meta(name, labels=node_labels(node_id)), self._spec))
            pool = await self._pools.find(name)
        # An only host may change its name: whose else should its pool be.
        if pool is not None and pool.spec.node_id != node_id and self._heartbeat is not None:
            state = f"on node {pool.spec.node_id} for the cluster, and on {node_id} now"
            raise errors.WrongState("pool", name, state, "its old node's name, or a new pool")
        return pool

    async def _observed(self, pool: Pool) -> PoolStatus:
        usage = await self._engine.usage()
        mine = (v for v in self._volumes.cached() if v.spec.pool_uuid == self._engine.pool_uuid)
        now = self._clock()
        return PoolStatus(
            capacity_bytes=usage.capacity_bytes,
            allocated_bytes=usage.allocated_bytes // _STEP_BYTES * _STEP_BYTES,
            available_bytes=usage.available_bytes // _STEP_BYTES * _STEP_BYTES,
            promised_bytes=sum(volume.spec.capacity_bytes for volume in mine),
            engine=self._engine.name,
            clone_method=self._engine.clone_method,
            heartbeat_at=self._life_sign(pool.status.heartbeat_at, now),
            conditions=(Condition("Ready", True, "Open", changed_at=_since(pool, now)),),
        )

    def _life_sign(self, last: datetime | None, now: datetime) -> datetime | None:
        if self._heartbeat is None:
            return None
        # Half an interval early: the next look would be late.
        early = timedelta(seconds=_INTERVAL_S / 2)
        is_due = last is None or not timedelta() <= now - last < self._heartbeat - early
        return now if is_due else last


def _since(pool: Pool, now: datetime) -> datetime:
    """Return since when the pool is ready."""
    for condition in pool.status.conditions:
        if condition.type == "Ready" and condition.is_true and condition.changed_at is not None:
            return condition.changed_at
    return now
