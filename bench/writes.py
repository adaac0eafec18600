"""Writes to a volume while the service runs and while it is dead.

The data path is a loop device with direct I/O: the service must make no difference to it.
"""

from __future__ import annotations

import mmap
import os
import time
from typing import TYPE_CHECKING

from bench.disks import MIB
from bench.driver import connected
from bench.figures import Section, median

if TYPE_CHECKING:
    from pathlib import Path

    from bench.workspace import Service

RUNNING, KILLED = "service running", "service killed"
#: Two runs of the same on a busy machine differ by more than that now and then.
_RATIO_MAX = 1.25


async def with_and_without_service(service: Service, *, data_bytes: int, rounds: int) -> Section:
    """Write `data_bytes` to a published volume, in turn with the service running and killed."""
    section = Section(f"{data_bytes // MIB} MiB to a volume's loop device, direct I/O")
    staging, target = service.data_dir / "bench-staging", service.data_dir / "bench-device"
    async with connected(service.csi_socket) as driver:
        volume_id = await driver.create_volume("bench writes", data_bytes)
        await driver.publish(volume_id, staging, target)
    _write(target, data_bytes)  # allocates; from now on all rounds overwrite
    for _ in range(rounds):
        section.took(RUNNING, _write(target, data_bytes))
        service.kill()
        section.took(KILLED, _write(target, data_bytes))
        service.start()
    async with connected(service.csi_socket) as driver:
        await driver.unpublish(volume_id, staging, target)
        await driver.delete_volume(volume_id)
    _judge(section, data_bytes)
    return section


def _judge(section: Section, data_bytes: int) -> None:
    for what, seconds in section.seconds.items():
        section.figures[what] = f"{data_bytes / MIB / median(seconds):.0f} MiB/s"
    ratio = median(section.ratios(KILLED, RUNNING))
    section.check(
        "writing is as fast with the service as without",
        f"{ratio:.2f} times the duration",
        kept=1 / _RATIO_MAX < ratio < _RATIO_MAX,
        timing=True,
    )


def _write(device: Path, data_bytes: int) -> float:
    """Write 1 MiB at a time from one thread, past the page cache; return seconds until durable."""
    block = mmap.mmap(-1, MIB)  # aligned, as O_DIRECT wants it
    block.write(os.urandom(MIB))
    descriptor = os.open(device, os.O_WRONLY | os.O_DIRECT)
    try:
        begun = time.perf_counter()
        for offset in range(0, data_bytes, MIB):
            os.pwrite(descriptor, block, offset)
        os.fsync(descriptor)
        return time.perf_counter() - begun
    finally:
        os.close(descriptor)
        block.close()
