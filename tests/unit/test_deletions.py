"""How DeleteVolume ends where the node, and not the controller, knows who uses a volume."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest
from tests.fakes import virtual_time
from tests.fakes.memory_engine import MemoryEngine
from tests.fakes.registries import MemoryRegistry

from shorthorn.controllers.volumes import VolumeReconciler
from shorthorn.domain.errors import InUse, StillWorking
from shorthorn.domain.models import (
    Meta,
    Volume,
    VolumeSource,
    VolumeSpec,
    VolumeState,
    VolumeStatus,
)
from shorthorn.domain.planning import DATA_FINALIZER
from shorthorn.kit.keyed import KeyedLocks
from shorthorn.services.deletions import UseSeenByNodes, wait_until_gone
from shorthorn.services.failures import Budget

NAME = "vol-1"
IN_USE = VolumeStatus(
    VolumeState.READY, reason="InUse", message="volume vol-1 is in use by a mount"
)


async def make(volumes: MemoryRegistry[Volume]) -> Volume:
    meta = Meta(NAME, finalizers=(DATA_FINALIZER,))
    return await volumes.create(Volume(meta, VolumeSpec(NAME, "node-a", "pool", 1 << 20)))


async def ask(volumes: MemoryRegistry[Volume]) -> Volume:
    """Ask for the deletion; return the volume as it was before."""
    before = await volumes.find(NAME)
    assert before is not None
    await volumes.delete(NAME, uid=before.meta.uid)
    return before


async def report(volumes: MemoryRegistry[Volume], status: VolumeStatus) -> None:
    """Say what the node says, a second from now."""
    await asyncio.sleep(1)
    found = await volumes.find(NAME)
    assert found is not None
    await volumes.update_status(dataclasses.replace(found, status=status))


async def let_go(volumes: MemoryRegistry[Volume], *, in_s: float) -> None:
    await asyncio.sleep(in_s)
    found = await volumes.find(NAME)
    assert found is not None
    await volumes.update(
        dataclasses.replace(found, meta=dataclasses.replace(found.meta, finalizers=()))
    )


def now() -> float:
    return asyncio.get_running_loop().time()


def test_what_the_node_says_is_the_answer_as_soon_as_it_says_so() -> None:
    async def main() -> None:
        volumes = MemoryRegistry(Volume)
        await make(volumes)
        before = await ask(volumes)
        saying = asyncio.create_task(report(volumes, IN_USE))
        with pytest.raises(InUse, match="in use by a mount"):
            await wait_until_gone(volumes, before, budget=Budget(100))
        assert now() == pytest.approx(1, abs=0.1)
        await saying

    virtual_time.run(main())


def test_who_asks_again_waits_a_little_for_it_to_be_let_go() -> None:
    async def main() -> None:
        volumes = MemoryRegistry(Volume)
        await make(volumes)
        await ask(volumes)
        await report(volumes, IN_USE)
        started = now()
        with pytest.raises(InUse):
            await wait_until_gone(volumes, await ask(volumes), budget=Budget(100))
        assert now() - started == pytest.approx(5, abs=0.1)
        letting_go = asyncio.create_task(let_go(volumes, in_s=2))
        await wait_until_gone(volumes, await ask(volumes), budget=Budget(100))
        await letting_go

    virtual_time.run(main())


def test_an_older_refusal_of_something_else_is_no_answer() -> None:
    async def main() -> None:
        volumes = MemoryRegistry(Volume)
        await make(volumes)
        await report(volumes, IN_USE)
        before = await ask(volumes)
        letting_go = asyncio.create_task(let_go(volumes, in_s=20))
        await wait_until_gone(volumes, before, budget=Budget(100))
        await letting_go

    virtual_time.run(main())


def test_a_node_that_says_nothing_leaves_the_work_going_on() -> None:
    async def main() -> None:
        volumes = MemoryRegistry(Volume)
        await make(volumes)
        with pytest.raises(StillWorking, match="its data is being removed"):
            await wait_until_gone(volumes, await ask(volumes), budget=Budget(10))
        assert now() == pytest.approx(10, abs=0.1)

    virtual_time.run(main())


def test_a_namesake_that_was_made_since_is_not_waited_for() -> None:
    async def main() -> None:
        volumes = MemoryRegistry(Volume)
        await make(volumes)
        before = await ask(volumes)
        await let_go(volumes, in_s=0)
        await make(volumes)
        await wait_until_gone(volumes, before, budget=Budget(10))
        assert now() == 0

    virtual_time.run(main())


async def test_nobody_is_known_to_use_a_volume_beforehand() -> None:
    assert await UseSeenByNodes().find_user(NAME) is None


class Bound:
    """A block volume that is bound for a workload and that nobody has open."""

    user: str | None = "/pods/1 (1 mounts)"

    async def find_user(self, volume_id: str) -> str | None:
        return self.user


async def test_the_node_keeps_what_is_published_though_the_engine_would_remove_it() -> None:
    volumes, engine, use = MemoryRegistry(Volume), MemoryEngine(), Bound()
    meta = Meta(NAME, finalizers=(DATA_FINALIZER,))
    await volumes.create(Volume(meta, VolumeSpec(NAME, "node-a", engine.pool_uuid, 1 << 20)))
    await engine.create_volume(NAME, 1 << 20, VolumeSource())
    await volumes.delete(NAME)
    reconciler = VolumeReconciler(volumes, engine, KeyedLocks(), use=use)
    with pytest.raises(InUse, match="/pods/1"):
        await reconciler.reconcile(NAME)
    found = await volumes.find(NAME)
    assert found is not None
    assert found.status.reason == "InUse"
    assert await engine.find_volume(NAME) is not None
    use.user = None
    while await volumes.find(NAME):
        await reconciler.reconcile(NAME)
    assert await engine.find_volume(NAME) is None
