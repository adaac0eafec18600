"""What the service costs by being there: memory, and the time to be ready.

Called once while nothing has been done yet, and for memory again after all the work.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from bench.figures import Section, median

if TYPE_CHECKING:
    from bench.workspace import Service

RESIDENT_MIB_MAX = 150
START_S_MAX = 2.0


def start(service: Service, *, rounds: int) -> Section:
    """Measure starts on an existing pool that is not mounted, as after a boot."""
    section = Section("start to ready, pool file to be attached and mounted")
    for _ in range(rounds):
        service.release()
        section.took("shorthorn up", service.start())
    found = median(section.seconds["shorthorn up"])
    section.check(
        f"ready in less than {START_S_MAX:.0f} s",
        f"{found:.2f} s",
        kept=found < START_S_MAX,
        timing=True,
    )
    return section


async def memory(service: Service, when: str, *, idle_s: float) -> Section:
    """Measure the resident memory of the process and its children after `idle_s` of nothing."""
    await asyncio.sleep(idle_s)
    found_mib = service.resident_bytes() / (1 << 20)
    section = Section(f"memory {when}, after {idle_s:.0f} s of nothing to do")
    section.check(
        f"resident memory below {RESIDENT_MIB_MAX} MiB",
        f"{found_mib:.0f} MiB",
        kept=found_mib < RESIDENT_MIB_MAX,
    )
    return section
