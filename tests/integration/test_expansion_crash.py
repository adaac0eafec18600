"""An expansion that is killed at any of its steps: the next process lets the device grow too."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.fakes.registries import MemoryRegistry
from tests.integration.attached_volumes import MIB, attached

from shorthorn.controllers.volumes import VolumeReconciler
from shorthorn.domain.models import Meta, Volume, VolumeSpec
from shorthorn.engines.local import LocalEngine
from shorthorn.host import loop_devices
from shorthorn.kit.keyed import KeyedLocks


class Killed(BaseException):
    """Stands for kill -9: no handler of errors runs after it."""


def dying_at(wanted: str) -> Callable[[str], None]:
    def reached(step: str) -> None:
        if step == wanted:
            raise Killed

    return reached


async def settle(
    volumes: MemoryRegistry[Volume], pool_dir: Path, reached: Callable[[str], None] = lambda _: None
) -> Volume:
    """Reconcile the volume as a new process of its node does."""
    engine = LocalEngine(pool_dir, reached=reached)
    await engine.open()
    try:
        reconciler = VolumeReconciler(volumes, engine, KeyedLocks())
        while await reconciler.reconcile("v") == 0:
            pass
    finally:
        await engine.close()
    volume = await volumes.find("v")
    assert volume is not None
    return volume


@pytest.mark.parametrize("step", ["volume grown", "volume.json replaced", "loop device grown"])
async def test_the_device_grows_with_its_volume_whenever_the_node_was_killed(
    pool_dir: Path, step: str
) -> None:
    volumes: MemoryRegistry[Volume] = MemoryRegistry(Volume)
    engine = LocalEngine(pool_dir)
    await engine.open()
    spec = VolumeSpec("v", "node-a", engine.pool_uuid, 4 * MIB)
    await engine.close()
    await volumes.create(Volume(Meta("v"), spec))
    volume = await settle(volumes, pool_dir)
    async with attached(pool_dir / "volumes" / "v" / "volume.raw") as device:
        wanted = dataclasses.replace(spec, capacity_bytes=8 * MIB)
        await volumes.update(dataclasses.replace(volume, spec=wanted))
        with pytest.raises(Killed):
            await settle(volumes, pool_dir, dying_at(step))
        volume = await settle(volumes, pool_dir)
        assert volume.status.capacity_bytes == 8 * MIB
        assert await loop_devices.size_bytes(device.path) == 8 * MIB
