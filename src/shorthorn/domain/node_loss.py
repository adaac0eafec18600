"""What becomes of a node that is silent, and of one that the cluster has forgotten.

Owns: the decisions, as pure functions of what was seen. Must never: do I/O or know the time.
`controllers.lost_nodes` observes, calls this and carries it out.

A silent node may come back with all its data, so its objects wait. Nobody waits for a machine whose
Node object is gone, nor for a disk whose Pool object is: objects that are being deleted there are
let go, and their data stays where it is.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from shorthorn.domain.models import ImageCopy, Pool, Snapshot, Volume
from shorthorn.domain.planning import DATA_FINALIZER

SILENT_AFTER_S: Final = 60.0
"""Four heartbeats. A restart of a node's pod takes a few seconds."""

NODE_SILENT: Final = "NodeSilent"
"""Reason of a pool's Ready condition, and of what waits for its node."""

Held: TypeAlias = Volume | Snapshot | ImageCopy
"""What has data in one pool and stays until that is gone."""


@dataclass(frozen=True, slots=True)
class MarkSilent:
    """Say in the pool's status that its node does not report."""

    pool: Pool


@dataclass(frozen=True, slots=True)
class RemovePool:
    """Remove the Pool object: its machine has left the cluster."""

    pool: Pool


@dataclass(frozen=True, slots=True)
class Release:
    """Let go of an object whose data nobody will remove."""

    held: Held


@dataclass(frozen=True, slots=True)
class SayWaiting:
    """Say in the object's status what its deletion waits for."""

    held: Held
    message: str


LossStep: TypeAlias = MarkSilent | RemovePool | Release | SayWaiting


def is_marked(pool: Pool) -> bool:
    """Whether the pool is known to be silent; its node's next report takes that back."""
    return any(c.type == "Ready" and c.reason == NODE_SILENT for c in pool.status.conditions)


def is_held(obj: Held) -> bool:
    """Whether it is being deleted and waits for its node."""
    return obj.meta.deleting and DATA_FINALIZER in obj.meta.finalizers


def plan_losses(
    pools: Sequence[Pool],
    held: Sequence[Held],
    *,
    silent: Collection[str],
    forgotten: Collection[str],
    absent: Collection[str],
) -> list[LossStep]:
    """Return what is to be done, pools first.

    Args: held: objects that `is_held`. silent: names of pools whose nodes do not report.
        forgotten: names of nodes, of those with a silent pool, that the cluster does not know.
        absent: UUIDs of pools that have had no Pool object for as long as makes a node silent.
    """
    steps: list[LossStep] = []
    gone = set(absent)
    quiet: dict[str, Pool] = {}
    for pool in pools:
        if pool.meta.name not in silent:
            continue
        if pool.spec.node_id in forgotten:
            gone.add(pool.spec.pool_uuid)
            steps.append(RemovePool(pool))
            continue
        quiet[pool.spec.pool_uuid] = pool
        if not is_marked(pool):
            steps.append(MarkSilent(pool))
    for obj in held:
        if obj.spec.pool_uuid in gone:
            steps.append(Release(obj))
        elif obj.spec.pool_uuid in quiet:
            message = waiting_for(quiet[obj.spec.pool_uuid])
            if obj.status.message != message:
                steps.append(SayWaiting(obj, message))
    return steps


def silence(pool: Pool) -> str:
    """Return in words since when the pool's node is silent."""
    last = pool.status.heartbeat_at
    when = f"since {last:%Y-%m-%d %H:%M:%S} UTC" if last else "since it joined"
    return f"node {pool.spec.node_id} has not reported {when}"


def waiting_for(pool: Pool) -> str:
    """Return what a deletion waits for, for people."""
    node = pool.spec.node_id
    return (
        f"{silence(pool)}; the data goes when it is back, and is given up when Node {node} is"
        " deleted"
    )
