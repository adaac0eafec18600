"""Which pool a new volume goes to.

Owns the topology key and the choice: where the caller prefers; among equals where the volume's
source is, or is coming; then where most space is free. Pure. Pools are thin: promising
more than a pool holds is allowed, a full pool is the engine's to refuse. Called by
`services.volumes`; the node's own segments are told by the CSI edge through `segments_of`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from shorthorn.domain.copy_scene import is_alive
from shorthorn.domain.errors import NoAccessiblePool

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from shorthorn.domain.models import Pool

#: The one topology key: a node of Shorthorn. `kubernetes.io/hostname` is not used, because it need
#: not be the node's name and is not ours to define.
TOPOLOGY_KEY: Final = "topology.shorthorn.io/node"


@dataclass(frozen=True, slots=True)
class TopologyRequirement:
    """CSI's TopologyRequirement: segments that may, and that should rather, be used."""

    requisite: tuple[Mapping[str, str], ...] = ()
    preferred: tuple[Mapping[str, str], ...] = ()

    def accepts(self, node_id: str) -> bool:
        """Whether a volume on `node_id` is accessible from what is required."""
        wanted = self.requisite or self.preferred
        return not wanted or any(_matches(segments, node_id) for segments in wanted)

    def rank(self, node_id: str) -> int:
        """Position of `node_id` among the preferred segments; past their end where it is none."""
        for position, segments in enumerate(self.preferred):
            if _matches(segments, node_id):
                return position
        return len(self.preferred)


@dataclass(frozen=True, slots=True)
class SourcePlaces:
    """Where a volume's source is, by pool UUID: `ready` there, `coming` there, `failed` to come
    there lately, `refused` there. Elsewhere it has to be brought, and takes `needed_bytes`.
    """

    ready: frozenset[str]
    coming: frozenset[str] = frozenset()
    failed: frozenset[str] = frozenset()
    refused: frozenset[str] = frozenset()
    needed_bytes: int = 0


def segments_of(node_id: str) -> dict[str, str]:
    """Return the topology segments of a node."""
    return {TOPOLOGY_KEY: node_id}


def choose_pool(
    pools: Iterable[Pool],
    requirement: TopologyRequirement,
    *,
    source: SourcePlaces | None,
    what: str,
) -> Pool:
    """Return the pool for a new volume.

    The caller's order of topologies counts first, also where the source must be brought. Then come
    pools that hold the source, and those to which it is on its way, so that a retry meets the
    choice that was made before. Least room for the source is asked only where it must be brought.

    Args: source: None: the volume begins blank. what: for the message.
    Raises: NoAccessiblePool.
    """
    usable = [pool for pool in pools if is_alive(pool)]
    fitting = usable if source is None else _with_source(usable, source, what)
    if not usable:
        raise NoAccessiblePool(what, "none is ready")
    accepted = [pool for pool in fitting if requirement.accepts(pool.spec.node_id)]
    if not accepted:
        raise NoAccessiblePool(what, _why_elsewhere(usable, fitting, requirement, source))
    return min(
        accepted,
        key=lambda pool: (
            requirement.rank(pool.spec.node_id),
            0 if source is None else _distance(pool.spec.pool_uuid, source),
            -pool.status.available_bytes,
            pool.meta.name,
        ),
    )


def _why_elsewhere(
    usable: Sequence[Pool],
    fitting: Sequence[Pool],
    requirement: TopologyRequirement,
    source: SourcePlaces | None,
) -> str:
    """Return where the volume can be, and why not where it has to be accessible."""
    nodes = ", ".join(sorted({pool.spec.node_id for pool in fitting}))
    needed = 0 if source is None else source.needed_bytes
    full = [
        f"node {pool.spec.node_id} has {pool.status.available_bytes >> 20} MiB free"
        for pool in usable
        if requirement.accepts(pool.spec.node_id) and pool.status.available_bytes < needed
    ]
    if not full:
        return f"it can be on {nodes}, and has to be accessible elsewhere"
    there = ", ".join(sorted(full))
    return f"it can be on {nodes}; {there}, and its source takes {-(-needed >> 20)} MiB"


def _with_source(usable: Sequence[Pool], source: SourcePlaces, what: str) -> Sequence[Pool]:
    """Return the pools that hold the source, are about to, or can take it from one that does."""
    holding = [pool for pool in usable if pool.spec.pool_uuid in source.ready]
    if not holding:
        raise NoAccessiblePool(what, "its source is on no pool that is ready")
    if not any(pool.spec.peer_address for pool in holding):
        return holding  # they give nothing to others
    further = [
        pool
        for pool in usable
        if pool.spec.pool_uuid not in source.ready
        and pool.spec.pool_uuid not in source.refused
        and not pool.spec.eviction_requested
        and (
            pool.spec.pool_uuid in source.coming
            or pool.status.available_bytes >= source.needed_bytes
        )
    ]
    return [*holding, *further]


def _distance(pool_uuid: str, source: SourcePlaces) -> int:
    if pool_uuid in source.ready:
        return 0
    if pool_uuid in source.coming:
        return 1
    return 3 if pool_uuid in source.failed else 2


def available_bytes(pools: Sequence[Pool], segments: Mapping[str, str]) -> int:
    """Return the free bytes of all usable pools within `segments`; empty means everywhere."""
    return sum(
        pool.status.available_bytes
        for pool in pools
        if is_alive(pool) and _matches(segments, pool.spec.node_id)
    )


def _matches(segments: Mapping[str, str], node_id: str) -> bool:
    own = segments_of(node_id)
    return all(own.get(key) == value for key, value in segments.items())
