"""The end: everything is deleted through kubectl, and nothing is left."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from shorthorn.demo import manifests
from shorthorn.demo.failures import expect
from shorthorn.demo.job import (
    DOWNLOADED_CLAIM,
    EXISTING_CLAIM,
    EXPORTED_CLAIM,
    RESTORED_CLAIM,
    SOURCE_CLAIM,
    Job,
)
from shorthorn.demo.kubectl import IMAGES_NAMESPACE
from shorthorn.demo.workspace import kernel_leftovers

_CLAIMS = (SOURCE_CLAIM, RESTORED_CLAIM, EXISTING_CLAIM, DOWNLOADED_CLAIM, EXPORTED_CLAIM)
#: Not classes: the service makes one for snapshots itself.
_KINDS = ("pvc", "pv", "volumesnapshot", "volumesnapshotcontent")
_OUR_KINDS = (
    "backingimages.longhorn.io",
    "imagecopies.shorthorn.io",
    "volumes.shorthorn.io",
    "snapshots.shorthorn.io",
)
_SETTLE_TIMEOUT_S = 10.0
_POLL_S = 0.1


async def delete_everything(job: Job) -> None:
    """Unmount and delete every object; the pool has to be empty afterwards."""
    async with job.step("deletion: every object, every byte"):
        assert job.writer is not None
        await job.writer.stop()
        for claim in _CLAIMS:
            await job.unmount(claim)
        await job.kubectl.delete(*(f"pvc/{claim}" for claim in _CLAIMS))
        await job.kubectl.delete(f"volumesnapshot/{manifests.PAGE_SNAPSHOT}")
        await job.kubectl.delete("volumesnapshotclass/longhorn-snapshot-vsc")
        for kind in _KINDS:
            await job.kubectl.wait_none(kind)
        for kind in _OUR_KINDS:
            await job.kubectl.wait_none(kind, namespace=IMAGES_NAMESPACE)
        left = await _settled(job.workspace.pool)
        expect(not left, f"the pool still holds {', '.join(map(str, left))}")
        job.report.proven("the pool's images, volumes, snapshots and staging are empty")


async def stop_service(job: Job) -> None:
    """Stop the service and release its pool; neither mount nor loop device may be left."""
    async with job.step("service stops, pool released"):
        assert job.driver is not None
        await job.driver.close()
        await job.service.run("down", "--release")
        await job.service.stop()
        left = kernel_leftovers(job.workspace)
        expect(not left, f"the kernel still holds {', '.join(left)}")
        job.report.proven("no mount and no loop device is left")


def pool_contents(pool: Path) -> list[Path]:
    """Return the data that a pool holds: objects' directories, and anything in staging."""
    found: list[Path] = []
    for kind in ("images", "volumes", "snapshots"):
        found += (pool / kind).iterdir()
    return [*found, *(pool / "staging").glob("*/*")]


async def _settled(pool: Path) -> list[Path]:
    """Return what is left in the pool once removals in the background have had their time."""
    deadline = time.monotonic() + _SETTLE_TIMEOUT_S
    while True:
        left = pool_contents(pool)
        if not left or time.monotonic() > deadline:
            return left
        await asyncio.sleep(_POLL_S)
