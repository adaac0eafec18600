"""The one door for turning a raw disk into a qcow2 file.

Owns the choice between the two ways of doing it, which yield the same guest bytes and share the
same blocks. Must never copy where sharing was possible, and never decide what to convert. Called
by the engines.

Measured on XFS over a loop device, two cores: contiguous 2 GiB: direct 5 ms, backup job 79 ms;
contiguous 8 GiB: 27 ms and 150 ms; 20,000 scattered 4 KiB blocks: 0.49 s and 0.80 s (all of it the
file system's, 20 to 40 µs for each extent). Both grow the disk by tables only, 0.1 to 1.2 MiB.
Direct is the default: it needs no QEMU, no unstable option of it, and packs without gaps. The
backup job is there for those who trust QEMU's writer more, and keeps the direct one honest in the
tests.
"""

from __future__ import annotations

import asyncio
import time
from enum import StrEnum
from typing import TYPE_CHECKING

from shorthorn.host.qcow2_writer import write_qcow2
from shorthorn.host.qemu_storage_daemon import back_up_to_qcow2

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

REPORT_INTERVAL_S = 0.1


class Qcow2Method(StrEnum):
    """How the qcow2 file comes about."""

    #: Its tables are written here, its data handed over by the kernel.
    DIRECT = "direct"
    #: A backup job in qemu-storage-daemon.
    BACKUP_JOB = "backup-job"


async def raw_to_qcow2(
    source: Path,
    target: Path,
    *,
    virtual_size_bytes: int,
    method: Qcow2Method = Qcow2Method.DIRECT,
    on_bytes: Callable[[int, int], None] | None = None,
) -> None:
    """Write the raw disk `source` into the existing empty file `target` as qcow2.

    On one file system with reflinks the two come to share every block of data; elsewhere bytes are
    copied. Nobody may change `source` meanwhile. Nothing is synced: the caller does that.

    Args:   virtual_size_bytes: length of `source`; a multiple of 512.
        on_bytes: told (done, total) a few times a second, from the event loop.
    Raises: OSError: ENOSPC and others. ValueError: the disk is too large for qcow2. QemuFailed and
        QemuTimedOut for the backup job.
    State:  after an error or cancellation `target` is to be thrown away.
    """
    if method is Qcow2Method.BACKUP_JOB:
        await back_up_to_qcow2(
            source, target, virtual_size_bytes=virtual_size_bytes, on_bytes=on_bytes
        )
        return
    relay = _to_event_loop(on_bytes) if on_bytes else None
    await write_qcow2(source, target, virtual_size_bytes=virtual_size_bytes, on_bytes=relay)


def _to_event_loop(on_bytes: Callable[[int, int], None]) -> Callable[[int, int], None]:
    """Return a listener for another thread that passes on a few reports a second, and the last."""
    loop = asyncio.get_running_loop()
    due = 0.0

    def relay(done: int, total: int) -> None:
        nonlocal due
        now = time.monotonic()
        if now >= due or done >= total:
            due = now + REPORT_INTERVAL_S
            loop.call_soon_threadsafe(on_bytes, done, total)

    return relay
