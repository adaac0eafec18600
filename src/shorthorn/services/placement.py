"""Which pool a new volume goes to.

Owns the topology key and the choice: a volume made from something lies where that something is,
every other one where the caller prefers and most space is free. Pure. Pools are thin: promising
more than a pool holds is allowed, a full pool is the engine's to refuse. Called by
`services.volumes`; the node's own segments are told by the CSI edge through `segments_of`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from shorthorn.domain.errors import NoAccessiblePool

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

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


def segments_of(node_id: str) -> dict[str, str]:
    """Return the topology segments of a node."""
    return {TOPOLOGY_KEY: node_id}


def choose_pool(
    pools: Iterable[Pool],
    requirement: TopologyRequirement,
    *,
    among: Collection[str] | None,
    what: str,
) -> Pool:
    """Return the pool for a new volume.

    Args: among: UUIDs of the pools that hold its source; None: it has none. what: for the message.
    Raises: NoAccessiblePool.
    """
    usable = [pool for pool in pools if _is_usable(pool)]
    holding = [pool for pool in usable if among is None or pool.spec.pool_uuid in among]
    if not holding:
        where = "none is ready" if among is None else "its source is on no pool that is ready"
        raise NoAccessiblePool(what, where)
    accepted = [pool for pool in holding if requirement.accepts(pool.spec.node_id)]
    if not accepted:
        nodes = ", ".join(sorted({pool.spec.node_id for pool in holding}))
        raise NoAccessiblePool(what, f"it can be on {nodes}, and has to be accessible elsewhere")
    return min(
        accepted,
        key=lambda pool: (
            requirement.rank(pool.spec.node_id),
            -pool.status.available_bytes,
            pool.meta.name,
        ),
    )


def available_bytes(pools: Sequence[Pool], segments: Mapping[str, str]) -> int:
    """Return the free bytes of all usable pools within `segments`; empty means everywhere."""
    return sum(
        pool.status.available_bytes
        for pool in pools
        if _is_usable(pool) and _matches(segments, pool.spec.node_id)
    )


def _is_usable(pool: Pool) -> bool:
    if pool.meta.deleting:
        return False
    return all(c.is_true for c in pool.status.conditions if c.type == "Ready")


def _matches(segments: Mapping[str, str], node_id: str) -> bool:
    own = segments_of(node_id)
    return all(own.get(key) == value for key, value in segments.items())
