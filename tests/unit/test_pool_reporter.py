"""What a node says of its pool, and what it leaves to others."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta

import pytest
from tests.fakes.memory_engine import MemoryEngine
from tests.fakes.registries import MemoryRegistry

from shorthorn.controllers.pools import PoolReporter
from shorthorn.domain.errors import WrongState
from shorthorn.domain.models import Pool, PoolSpec, Volume

START = datetime(2026, 1, 1, tzinfo=UTC)


class Clock:
    """A wall clock that tests set."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def pools() -> MemoryRegistry[Pool]:
    return MemoryRegistry(Pool)


def reporter(
    pools: MemoryRegistry[Pool],
    clock: Clock,
    *,
    heartbeat_s: float | None = 15,
    node_id: str = "node-a",
    **spec: object,
) -> PoolReporter:
    said = PoolSpec(node_id, "uuid", "/pool", **spec)  # type: ignore[arg-type]
    return PoolReporter(
        pools, MemoryRegistry(Volume), MemoryEngine(), said, heartbeat_s=heartbeat_s, clock=clock
    )


async def get(pools: MemoryRegistry[Pool]) -> Pool:
    found = await pools.find("uuid")
    assert found is not None
    return found


async def test_tags_and_address_follow_the_program_and_eviction_its_owner(
    pools: MemoryRegistry[Pool],
) -> None:
    await reporter(pools, Clock(), tags=("old",)).report()
    pool = await get(pools)
    spec = dataclasses.replace(pool.spec, eviction_requested=True)
    await pools.update(dataclasses.replace(pool, spec=spec))
    await reporter(pools, Clock(), tags=("nvme",), node_tags=("big",), peer_address="h:1").report()
    pool = await get(pools)
    assert (pool.spec.tags, pool.spec.node_tags) == (("nvme",), ("big",))
    assert (pool.spec.peer_address, pool.spec.eviction_requested) == ("h:1", True)
    assert pool.meta.labels == {"shorthorn.io/node": "node-a"}


async def test_a_heartbeat_comes_every_fifteen_seconds_and_nothing_else_is_written(
    pools: MemoryRegistry[Pool],
) -> None:
    clock = Clock()
    reports = reporter(pools, clock)
    beats = []
    for _ in range(13):
        await reports.report()
        beats.append((await get(pools)).status.heartbeat_at)
        clock.now += timedelta(seconds=5)
    assert list(dict.fromkeys(beats)) == [START + timedelta(seconds=15 * n) for n in range(5)]
    assert len(pools.writes) == 1 + 5


async def test_a_clock_that_goes_back_does_not_silence_a_node(pools: MemoryRegistry[Pool]) -> None:
    clock = Clock()
    reports = reporter(pools, clock)
    await reports.report()
    clock.now -= timedelta(hours=1)
    await reports.report()
    assert (await get(pools)).status.heartbeat_at == clock.now


async def test_an_only_host_has_no_heartbeat(pools: MemoryRegistry[Pool]) -> None:
    clock = Clock()
    reports = reporter(pools, clock, heartbeat_s=None)
    await reports.report()
    writes = len(pools.writes)
    clock.now += timedelta(hours=1)
    await reports.report()
    assert (await get(pools)).status.heartbeat_at is None
    assert len(pools.writes) == writes


async def test_a_pool_of_another_node_is_not_taken_over(pools: MemoryRegistry[Pool]) -> None:
    await reporter(pools, Clock()).report()
    with pytest.raises(WrongState, match="on node node-a for the cluster, and on node-b now"):
        await reporter(pools, Clock(), node_id="node-b").report()


async def test_an_only_host_may_change_its_name(pools: MemoryRegistry[Pool]) -> None:
    await reporter(pools, Clock(), heartbeat_s=None).report()
    await reporter(pools, Clock(), heartbeat_s=None, node_id="renamed").report()
    assert (await get(pools)).spec.node_id == "node-a"
