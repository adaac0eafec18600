"""How long the local engine's operations take on volumes of 1 GiB, on an XFS of its own.

Run as root: `python bench/engine_latency.py [ROUNDS]`. Prints medians. Each volume holds 256 MiB of
data; exports and restores should not notice. Makes a sparse pool file below /tmp and takes it away.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from shorthorn.domain.models import ImageFormat, ImageKey, Progress, VolumeSource
from shorthorn.engines.local import LocalEngine
from shorthorn.host import loop_devices, mounts

GIB = 1 << 30
MIB = 1 << 20
times: dict[str, list[float]] = {}


@contextlib.contextmanager
def timed(what: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    times.setdefault(what, []).append(time.perf_counter() - start)


def ignore(progress: Progress) -> None:
    """Nobody watches."""


async def one_round(engine: LocalEngine, number: int, mounted: str) -> None:
    name = f"r{number}"
    with timed("create a blank volume"):
        volume = await engine.create_volume(name, GIB, VolumeSource())
    with open(volume.path, "r+b") as file:
        file.write(os.urandom(64 * MIB) * 4)
        os.fsync(file.fileno())
    with timed("clone a volume"):
        await engine.create_volume(f"{name}-clone", GIB, VolumeSource(volume=name))
    with timed("snapshot an idle volume"):
        await engine.create_snapshot(f"{name}-snap", name)
    with timed("snapshot a mounted ext4"):
        await engine.create_snapshot(f"{name}-live", mounted)
    with timed("restore a snapshot"):
        await engine.create_volume(f"{name}-back", GIB, VolumeSource(snapshot=f"{name}-snap"))
    for kind in ImageFormat:
        key = ImageKey(name, str(kind))
        with timed(f"export to {kind}: begin"):
            await engine.begin_export(key, name, kind)
        with timed(f"export to {kind}: finish"):
            await engine.finish_export(key, ignore)
    with timed("restore an image"):
        source = VolumeSource(image=name, image_uuid="qcow2")
        await engine.create_volume(f"{name}-new", GIB, source)
    with timed("delete a volume"):
        await engine.delete_volume(f"{name}-new")
    for kind in ImageFormat:
        await engine.delete_image(ImageKey(name, str(kind)))
    for suffix in ("", "-clone", "-back"):
        await engine.delete_volume(name + suffix)
    for suffix in ("-snap", "-live"):
        await engine.delete_snapshot(name + suffix)


@contextlib.asynccontextmanager
async def mounted_volume(engine: LocalEngine, target: Path) -> AsyncIterator[str]:
    volume = await engine.create_volume("mounted", GIB, VolumeSource())
    device = await loop_devices.ensure_attached(Path(volume.path))
    mkfs = await asyncio.create_subprocess_exec("mkfs.ext4", "-q", device.path)
    await mkfs.wait()
    target.mkdir()
    await mounts.mount(device.path, target, "ext4")
    try:
        yield "mounted"
    finally:
        await mounts.ensure_unmounted(target)
        await loop_devices.detach(device)


async def measure(pool: Path, scratch: Path, rounds: int) -> None:
    engine = LocalEngine(pool)
    with timed("open the pool"):
        await engine.open()
    async with mounted_volume(engine, scratch / "mounted") as mounted:
        for number in range(rounds):
            await one_round(engine, number, mounted)
    await engine.close()


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    with tempfile.TemporaryDirectory(prefix="engine-latency-") as directory:
        scratch = Path(directory)
        image, pool = scratch / "pool.xfs", scratch / "pool"
        pool.mkdir()
        with image.open("wb") as file:
            file.truncate(8 * GIB)
        subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", image], check=True)
        subprocess.run(["mount", "-o", "loop,noatime", image, pool], check=True)
        try:
            asyncio.run(measure(pool, scratch, rounds))
        finally:
            subprocess.run(["umount", pool], check=True)
    for what, seconds in times.items():
        median, worst = statistics.median(seconds) * 1000, max(seconds) * 1000
        print(f"{what:28} {median:8.1f} ms   (worst {worst:.1f} ms of {len(seconds)})")


if __name__ == "__main__":
    main()
