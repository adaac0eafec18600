"""Silent nodes are passed over and waited for; forgotten ones hold nobody up. In virtual time."""

from __future__ import annotations

import asyncio
import dataclasses
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fakes import virtual_time
from tests.fakes.memory_engine import MemoryEngine
from tests.fakes.registries import MemoryRegistry

from shorthorn.controllers.lost_nodes import LostNodes
from shorthorn.controllers.pools import PoolReporter
from shorthorn.domain.errors import NoAccessiblePool, Unavailable
from shorthorn.domain.models import (
    Condition,
    ImageCopy,
    ImageCopySpec,
    Meta,
    Pool,
    PoolSpec,
    PoolStatus,
    Snapshot,
    SnapshotSpec,
    Volume,
    VolumeSpec,
)
from shorthorn.domain.node_loss import (
    NODE_SILENT,
    MarkSilent,
    Release,
    RemovePool,
    SayWaiting,
    is_marked,
    plan_losses,
)
from shorthorn.domain.planning import DATA_FINALIZER
from shorthorn.services.placement import SourcePlaces, TopologyRequirement, choose_pool

if TYPE_CHECKING:
    from collections.abc import Coroutine

LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)
READY = (Condition("Ready", True, "Open", changed_at=LONG_AGO),)
SILENT = (Condition("Ready", False, NODE_SILENT, "quiet", LONG_AGO),)


def pool_of(node: str, *, conditions: tuple[Condition, ...] = READY) -> Pool:
    status = PoolStatus(available_bytes=1 << 30, heartbeat_at=LONG_AGO, conditions=conditions)
    return Pool(Meta(f"pool-{node}"), PoolSpec(node, f"pool-{node}", "/pool"), status)


def volume_of(node: str, name: str = "vol", *, deleting: bool = True) -> Volume:
    meta = Meta(name, finalizers=(DATA_FINALIZER,), deleting=deleting)
    return Volume(meta, VolumeSpec(name, node, f"pool-{node}", 1 << 20))


# ---- The plan -----------------------------------------------------------------------------------


def test_a_silent_pool_is_marked_once() -> None:
    pool, marked = pool_of("a"), pool_of("a", conditions=SILENT)
    told: Any = {"silent": {"pool-a"}, "forgotten": (), "absent": ()}
    assert plan_losses([pool], [], **told) == [MarkSilent(pool)]
    assert plan_losses([marked], [], **told) == []


def test_what_waits_for_a_silent_node_says_so_once() -> None:
    pool, volume = pool_of("a", conditions=SILENT), volume_of("a")
    told: Any = {"silent": {"pool-a"}, "forgotten": (), "absent": ()}
    (step,) = plan_losses([pool], [volume], **told)
    assert isinstance(step, SayWaiting)
    assert "node a has not reported since 2026-01-01 00:00:00 UTC" in step.message
    assert "Node a is deleted" in step.message
    status = dataclasses.replace(volume.status, message=step.message)
    assert plan_losses([pool], [dataclasses.replace(volume, status=status)], **told) == []


def test_a_forgotten_node_gives_up_its_pool_and_what_is_being_deleted_there() -> None:
    pool, volume = pool_of("a", conditions=SILENT), volume_of("a")
    steps = plan_losses([pool], [volume], silent={"pool-a"}, forgotten={"a"}, absent=())
    assert steps == [RemovePool(pool), Release(volume)]


def test_objects_of_a_pool_that_is_absent_for_long_are_let_go() -> None:
    volume = volume_of("a")
    steps = plan_losses([], [volume], silent=(), forgotten=(), absent={"pool-a"})
    assert steps == [Release(volume)]


@given(
    nodes=st.lists(st.sampled_from("abcd"), unique=True, max_size=4),
    silent=st.sets(st.sampled_from("abcd")),
    forgotten=st.sets(st.sampled_from("abcd")),
    absent=st.sets(st.sampled_from("wxyz")),
    held=st.lists(st.sampled_from("abcdwxyz"), max_size=6),
)
def test_nothing_of_a_node_that_reports_is_touched(
    nodes: list[str], silent: set[str], forgotten: set[str], absent: set[str], held: list[str]
) -> None:
    volumes = [volume_of(node, f"vol-{number}") for number, node in enumerate(held)]
    steps = plan_losses(
        [pool_of(node) for node in nodes],
        volumes,
        silent={f"pool-{node}" for node in silent},
        forgotten=forgotten,
        absent={f"pool-{node}" for node in absent},
    )
    for step in steps:
        match step:
            case MarkSilent(pool):
                assert pool.spec.node_id in silent - forgotten
            case RemovePool(pool):
                assert pool.spec.node_id in silent & forgotten
            case Release(obj):
                node = obj.spec.node_id
                assert node in absent or node in silent & forgotten & set(nodes)
            case SayWaiting(obj, _):
                assert obj.spec.node_id in (silent & set(nodes)) - forgotten


# ---- Noticing and carrying out ------------------------------------------------------------------


class Nodes:
    """The machines that the cluster knows; `is_away` as an API server that does not answer."""

    def __init__(self) -> None:
        self.known = {"a", "b"}
        self.asked: list[str] = []
        self.is_away = False

    async def is_known(self, node_id: str) -> bool:
        self.asked.append(node_id)
        if self.is_away:
            raise Unavailable("API server", "away")
        return node_id in self.known


class Scene:
    """Two nodes: `a` reports when a test says so, `b` always does."""

    def __init__(self) -> None:
        self.pools, self.volumes = MemoryRegistry(Pool), MemoryRegistry(Volume)
        self.snapshots, self.copies = MemoryRegistry(Snapshot), MemoryRegistry(ImageCopy)
        self.nodes = Nodes()
        self.reporters = {name: self._reporter(name) for name in ("a", "b")}
        self.tasks: list[asyncio.Task[None]] = []

    def _reporter(self, node: str) -> PoolReporter:
        engine = MemoryEngine()
        spec = PoolSpec(node, f"pool-{node}", "/pool")
        return PoolReporter(
            self.pools, self.volumes, engine, spec, heartbeat_s=15, clock=virtual_now
        )

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self.tasks.append(task)
        return task

    def lead(self) -> asyncio.Task[None]:
        lost = LostNodes(
            self.pools, self.volumes, self.snapshots, self.copies, self.nodes, clock=virtual_now
        )
        return self.spawn(lost.run())

    async def pool(self, node: str) -> Pool:
        found = await self.pools.find(f"pool-{node}")
        assert found is not None
        return found

    async def make_and_delete_data(self, node: str) -> None:
        pool, held = f"pool-{node}", (DATA_FINALIZER,)
        await self.volumes.create(
            Volume(Meta("v", finalizers=held), VolumeSpec("v", node, pool, 1))
        )
        await self.snapshots.create(
            Snapshot(Meta("s", finalizers=held), SnapshotSpec("s", "v", node, pool))
        )
        await self.copies.create(
            ImageCopy(Meta("c", finalizers=held), ImageCopySpec("i", "u", node, pool, "download"))
        )
        for registry in (self.volumes, self.snapshots, self.copies):
            await registry.delete(registry.cached()[0].meta.name)

    def left(self) -> list[Any]:
        return [*self.volumes.cached(), *self.snapshots.cached(), *self.copies.cached()]


def virtual_now() -> datetime:
    """A wall clock a year behind, as a node's may be."""
    return LONG_AGO + timedelta(seconds=asyncio.get_running_loop().time())


def in_scene(main: Any) -> None:
    """Run a test in virtual time, with both nodes reporting for a minute."""

    async def wrapped() -> None:
        scene = Scene()
        reporting = {name: scene.spawn(r.run()) for name, r in scene.reporters.items()}
        await asyncio.sleep(60)
        try:
            await main(scene, reporting["a"])
        finally:
            for task in scene.tasks:
                task.cancel()
            await asyncio.wait(scene.tasks)

    virtual_time.run(wrapped())


def test_nodes_that_report_are_left_alone() -> None:
    async def main(scene: Scene, _: asyncio.Task[None]) -> None:
        await scene.make_and_delete_data("a")
        scene.lead()
        await asyncio.sleep(3600)
        assert (await scene.pool("a")).status.conditions[0].is_true
        assert len(scene.left()) == 3
        assert scene.nodes.asked == []

    in_scene(main)


def test_a_silent_node_is_passed_over_and_comes_back_by_its_own_report() -> None:
    async def main(scene: Scene, reporting: asyncio.Task[None]) -> None:
        scene.lead()
        reporting.cancel()
        await asyncio.sleep(50)
        assert not is_marked(await scene.pool("a"))
        await asyncio.sleep(40)
        pool = await scene.pool("a")
        assert is_marked(pool)
        since = pool.status.conditions[0].changed_at
        pools = await scene.pools.list()
        only_there = SourcePlaces(frozenset({"pool-a"}), needed_bytes=1 << 60)
        with pytest.raises(NoAccessiblePool):
            choose_pool(pools, TopologyRequirement(), source=only_there, what="volume")
        scene.spawn(scene.reporters["a"].run())
        await asyncio.sleep(5)
        pool = await scene.pool("a")
        assert pool.status.conditions[0].is_true
        assert pool.status.conditions[0].changed_at != since
        await asyncio.sleep(600)
        assert not is_marked(await scene.pool("a"))

    in_scene(main)


def test_deletions_wait_for_a_silent_node_and_end_when_its_node_object_is_gone() -> None:
    async def main(scene: Scene, reporting: asyncio.Task[None]) -> None:
        await scene.make_and_delete_data("a")
        scene.lead()
        reporting.cancel()
        await asyncio.sleep(120)
        assert {obj.status.reason for obj in scene.left()} == {NODE_SILENT}
        assert all("has not reported since" in obj.status.message for obj in scene.left())
        writes = len(scene.volumes.writes)
        await asyncio.sleep(600)
        assert len(scene.left()) == 3
        assert len(scene.volumes.writes) == writes, "what is said once is enough"
        scene.nodes.known.discard("a")
        await asyncio.sleep(10)
        assert scene.left() == []
        assert [pool.spec.node_id for pool in scene.pools.cached()] == ["b"]

    in_scene(main)


def test_what_is_deleted_later_on_a_forgotten_node_goes_too() -> None:
    async def main(scene: Scene, reporting: asyncio.Task[None]) -> None:
        reporting.cancel()
        scene.nodes.known.discard("a")
        scene.lead()
        await asyncio.sleep(120)
        assert [pool.spec.node_id for pool in scene.pools.cached()] == ["b"]
        await scene.make_and_delete_data("a")
        await asyncio.sleep(90)
        assert scene.left() == []

    in_scene(main)


def test_a_node_that_the_cluster_forgot_and_that_reports_keeps_its_objects() -> None:
    async def main(scene: Scene, _: asyncio.Task[None]) -> None:
        await scene.make_and_delete_data("a")
        scene.nodes.known.discard("a")
        scene.lead()
        await asyncio.sleep(3600)
        assert len(scene.left()) == 3

    in_scene(main)


def test_nothing_is_decided_while_the_cluster_does_not_say_whether_it_knows_a_node() -> None:
    async def main(scene: Scene, reporting: asyncio.Task[None]) -> None:
        await scene.make_and_delete_data("a")
        scene.nodes.known.discard("a")
        scene.nodes.is_away = True
        scene.lead()
        reporting.cancel()
        await asyncio.sleep(600)
        assert len(scene.left()) == 3
        scene.nodes.is_away = False
        await asyncio.sleep(90)
        assert scene.left() == []

    in_scene(main)


def test_the_next_leader_goes_on_with_what_is_marked() -> None:
    async def main(scene: Scene, reporting: asyncio.Task[None]) -> None:
        await scene.make_and_delete_data("a")
        leading = scene.lead()
        reporting.cancel()
        await asyncio.sleep(120)
        leading.cancel()
        scene.nodes.known.discard("a")
        scene.lead()
        await asyncio.sleep(1)
        assert scene.left() == []

    in_scene(main)
