"""Export and restore against `qemu-img convert` and `cp`, on the same data, in turn.

Owns one comparison: a volume is filled through the driver, then in each round everybody copies it
once. Every contender starts with a clean page cache for writing (nothing dirty) and, where it
reads, a warm one: that favours the others, who read all the data, while an export reads none. One
is also run cold, as it meets a volume in use: volumes are read and written with direct I/O, so
their data is not in the page cache. A contender has two times: until the command ends, and until
its file is durable as ours is.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench import disks
from bench.figures import Section, median
from bench.workspace import BenchFailed, run, settle
from shorthorn.domain.models import ImageFormat, ImageKey, VolumeSource
from shorthorn.host import extents

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.disks import Disk
    from bench.driver import Driver
    from shorthorn.domain.models import Progress
    from shorthorn.engines.local import LocalEngine

GROWTH_PERCENT_MAX = 5.0
SPEEDUP_MIN = 20.0

CSI_EXPORT = "export: CSI CreateSnapshot"
ENGINE_EXPORT = "export: engine alone"
CONVERT = "qemu-img convert"
CONVERT_COLD = "qemu-img convert, cold"
CONVERT_SHARING = "qemu-img convert -C"
CSI_RESTORE = "restore: CSI CreateVolume"
COPY = "cp --reflink=never"
CLONE = "cp --reflink=always"
DURABLY = ", durably"


@dataclass(slots=True)
class Comparison:
    """One disk, and everybody who copies it."""

    disk: Disk
    driver: Driver
    engine: LocalEngine
    pool: Path
    scratch: Path
    section: Section
    volume_id: str = ""

    @property
    def source(self) -> Path:
        return self.pool / "volumes" / self.volume_id / "volume.raw"


async def compare(
    disk: Disk, driver: Driver, engine: LocalEngine, pool: Path, *, rounds: int, is_timed: bool
) -> Section:
    """Measure `rounds` times; judge the first one's files. `is_timed`: the speed is promised."""
    it = Comparison(disk, driver, engine, pool, pool / "bench", Section(disk.name))
    it.volume_id = await driver.create_volume(f"bench {disk.name}", disk.size_bytes)
    disk.write(it.source)
    for number in range(rounds):
        await _driver_round(it, number)
        if number == 0:  # not before: its clone would share the data already
            await engine.create_volume("source", disk.size_bytes, VolumeSource())
            _clone_over(it.source, Path((await engine.list_volumes())[0].path))
        await _engine_round(it, number)
        _convert_round(it, CONVERT)
        _convert_round(it, CONVERT_COLD, prepare=disks.chill)
        _convert_round(it, CONVERT_SHARING, "-C")
        _copy_round(it, COPY, "never")
        _copy_round(it, CLONE, "always")
    await engine.delete_volume("source")
    await driver.delete_volume(it.volume_id)
    _judge_speed(it.section, is_timed=is_timed)
    return it.section


async def _driver_round(it: Comparison, number: int) -> None:
    """Export and restore through the driver; the checksum is computed beside the restore."""
    name = f"bench-{number}"
    before = settle(it.pool)
    begun = time.perf_counter()
    handle = await it.driver.create_image(name, it.volume_id, "qcow2")
    it.section.took(CSI_EXPORT, time.perf_counter() - begun)
    exported = settle(it.pool)
    begun = time.perf_counter()
    restored_id = await it.driver.create_volume(
        f"bench restored {number}", it.disk.size_bytes, handle=handle
    )
    it.section.took(CSI_RESTORE, time.perf_counter() - begun)
    restored = settle(it.pool)
    if number == 0:
        image = _only(it.pool / "images", "*/*/artifact")
        await _judge_export(it, image, before - exported)
        await _judge_restore(it, image, restored_id, exported - restored)
    await it.driver.delete_volume(restored_id)
    await it.driver.delete_image(handle)
    while list((it.pool / "images").glob("*/*")):
        settle(it.pool)


async def _engine_round(it: Comparison, number: int) -> None:
    key = ImageKey("bench", f"{number}")
    settle(it.pool)
    begun = time.perf_counter()
    await it.engine.begin_export(key, "source", ImageFormat.QCOW2)
    await it.engine.finish_export(key, _ignore)
    it.section.took(ENGINE_EXPORT, time.perf_counter() - begun)
    await it.engine.delete_image(key)


def _convert_round(
    it: Comparison, what: str, *options: str, prepare: Callable[[Path], None] = disks.warm
) -> None:
    target = it.scratch / "converted.qcow2"
    command = ("qemu-img", "convert", *options, "-f", "raw", "-O", "qcow2")
    _contend(it, what, (*command, it.source, target), target, prepare)


def _copy_round(it: Comparison, what: str, reflink: str) -> None:
    target = it.scratch / "copied.raw"
    _contend(it, what, ("cp", f"--reflink={reflink}", it.source, target), target, disks.warm)


def _contend(
    it: Comparison,
    what: str,
    argv: tuple[str | Path, ...],
    target: Path,
    prepare: Callable[[Path], None],
) -> None:
    prepare(it.source)
    before = settle(it.pool)
    begun = time.perf_counter()
    run(*argv)
    it.section.took(what, time.perf_counter() - begun)
    descriptor = os.open(target, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    it.section.took(what + DURABLY, time.perf_counter() - begun)
    grown = before - settle(it.pool)
    it.section.figures[f"{what}: disk grows by"] = _of_data(it.disk, grown)
    target.unlink()


async def _judge_export(it: Comparison, artifact: Path, grown_bytes: int) -> None:
    section, source = it.section, it.source
    data_bytes = (await extents.usage(source)).allocated_bytes
    info = json.loads(run("qemu-img", "info", "--output=json", artifact))
    section.check(
        "the artifact is qcow2 of the volume's size by qemu-img info",
        f"{info['format']}, {_mib(info['virtual-size'])}",
        kept=(info["format"], info["virtual-size"]) == ("qcow2", it.disk.size_bytes),
    )
    run("qemu-img", "check", "-q", "-f", "qcow2", artifact)
    run("qemu-img", "compare", "-q", "-f", "raw", "-F", "qcow2", source, artifact)
    section.check("qemu-img check and compare find no fault", "none", kept=True)
    shared = await extents.shared_with(source, artifact)
    _judge_sharing(it, "export", shared, data_bytes, grown_bytes)
    section.figures["volume"] = (
        f"{_mib(it.disk.size_bytes)} with {_mib(data_bytes)} of data"
        f" in {(await extents.usage(source)).extent_count} extents"
    )


async def _judge_restore(
    it: Comparison, artifact: Path, restored_id: str, grown_bytes: int
) -> None:
    restored = it.pool / "volumes" / restored_id / "volume.raw"
    run("qemu-img", "compare", "-q", "-f", "raw", "-F", "raw", it.source, restored)
    data_bytes = (await extents.usage(it.source)).allocated_bytes
    shared = await extents.shared_with(artifact, restored)
    _judge_sharing(it, "restore", shared, data_bytes, grown_bytes)


def _judge_sharing(
    it: Comparison, what: str, shared_bytes: int, data_bytes: int, grown_bytes: int
) -> None:
    it.section.check(
        f"{what} shares all data (FIEMAP)",
        f"{_mib(shared_bytes)} of {_mib(data_bytes)}",
        kept=shared_bytes == data_bytes == it.disk.data_bytes,
    )
    it.section.check(
        f"{what} grows the disk by less than {GROWTH_PERCENT_MAX:.0f} %",
        _of_data(it.disk, grown_bytes),
        kept=grown_bytes < it.disk.data_bytes * GROWTH_PERCENT_MAX / 100,
    )


def _judge_speed(section: Section, *, is_timed: bool) -> None:
    section.instead_of = {
        CSI_EXPORT: [CONVERT, CONVERT + DURABLY, CONVERT_COLD, CONVERT_COLD + DURABLY],
        ENGINE_EXPORT: [CONVERT, CONVERT + DURABLY],
        CSI_RESTORE: [COPY],
    }
    if not is_timed:
        return
    # The whole export adds some 40 ms of control plane, whatever the size: against a converter that
    # finds everything in the page cache and does not sync, its speed is reported, not promised.
    promises = ((ENGINE_EXPORT, CONVERT), (CSI_EXPORT, CONVERT_COLD), (CSI_RESTORE, COPY))
    for ours, theirs in promises:
        times = median(section.ratios(ours, theirs))
        section.check(
            f"{ours} is {SPEEDUP_MIN:.0f} times faster than {theirs}",
            f"{times:.0f} times",
            kept=times >= SPEEDUP_MIN,
            timing=True,
        )


def _clone_over(source: Path, target: Path) -> None:
    run("cp", "--reflink=always", source, target)


def _only(directory: Path, pattern: str) -> Path:
    found = list(directory.glob(pattern))
    if len(found) != 1:
        raise BenchFailed(f"{len(found)} files match {directory}/{pattern}, 1 was expected")
    return found[0]


def _ignore(progress: Progress) -> None:
    """Nobody watches."""


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / disks.MIB:.1f} MiB"


def _of_data(disk: Disk, grown_bytes: int) -> str:
    return f"{_mib(grown_bytes)} ({grown_bytes / disk.data_bytes:.2%} of the data)"
