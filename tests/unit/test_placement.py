"""What a caller is told when no pool will do."""

from __future__ import annotations

import pytest

from shorthorn.domain.errors import NoAccessiblePool
from shorthorn.domain.models import Condition, Meta, Pool, PoolSpec, PoolStatus
from shorthorn.services.placement import (
    SourcePlaces,
    TopologyRequirement,
    choose_pool,
    segments_of,
)

MIB = 1 << 20


def pool_on(node: str, free_mib: int) -> Pool:
    spec = PoolSpec(node, f"pool-{node}", f"/{node}", peer_address=f"{node}:9750")
    ready = (Condition("Ready", True, "Open"),)
    return Pool(Meta(node), spec, PoolStatus(available_bytes=free_mib * MIB, conditions=ready))


def refusal(free_mib: int) -> str:
    """Return what is said of a volume that must be on `b`, while its source is on `a`."""
    pools = [pool_on("a", 1000), pool_on("b", free_mib)]
    source = SourcePlaces(frozenset({"pool-a"}), needed_bytes=400 * MIB)
    only_b = TopologyRequirement(requisite=(segments_of("b"),))
    with pytest.raises(NoAccessiblePool) as raised:
        choose_pool(pools, only_b, source=source, what="volume v")
    return str(raised.value)


def test_a_node_without_room_for_the_source_is_named_with_what_it_has() -> None:
    said = refusal(free_mib=300)
    assert said.endswith("it can be on a; node b has 300 MiB free, and its source takes 400 MiB")


def test_a_node_without_a_pool_is_not_said_to_be_full() -> None:
    source = SourcePlaces(frozenset({"pool-a"}), needed_bytes=400 * MIB)
    elsewhere = TopologyRequirement(requisite=(segments_of("c"),))
    with pytest.raises(
        NoAccessiblePool, match="it can be on a, and has to be accessible elsewhere"
    ):
        choose_pool([pool_on("a", 1000)], elsewhere, source=source, what="volume v")
