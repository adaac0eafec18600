"""Sends an upload into a pool until killed. Arguments: pool, length in bytes, seconds to live.

The time counts from the first byte; the kernel's timer strikes wherever the upload happens to be.
"""

from __future__ import annotations

import asyncio
import random
import signal
import sys
from pathlib import Path

from tests.fakes.registries import MemoryRegistry
from tests.integration.bytes_host import KEY, MIB, Host, pieces

from shorthorn.domain.models import ImageCopy


async def main(root: Path, length: int, delay_s: float) -> None:
    data = random.Random(length).randbytes(length)
    host = Host(root, MemoryRegistry(ImageCopy))
    await host.open()
    await host.begin(length)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, delay_s)
    for start in range(0, length, 8 * MIB):
        await host.bytes.append(KEY.name, start, pieces(data[start : start + 8 * MIB], MIB))
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
