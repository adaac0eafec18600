"""Steps 1 to 3: the service, a claim, and a volume that is written to all the time."""

from __future__ import annotations

import sys

from shorthorn.demo import tree_source
from shorthorn.demo.driver import Driver
from shorthorn.demo.failures import StepFailed
from shorthorn.demo.job import JOURNAL, SOURCE_CLAIM, Job
from shorthorn.demo.manifests import read_own
from shorthorn.demo.report import format_bytes
from shorthorn.kit import process
from shorthorn.kit.threads import in_thread


async def start_service(job: Job) -> None:
    """Start `shorthorn up` on a private directory, and ask the driver who it is."""
    async with job.step("service starts on a private data directory"):
        await job.service.start()
        await job.kubectl.show("get", "storageclass")
        job.driver = Driver(job.workspace.data_dir / "csi.sock", job.report)
        await job.driver.introduce()


async def make_claim(job: Job) -> None:
    """Make the page's `test-vol`, and mount it as a pod's kubelet would."""
    async with job.step(f"claim {SOURCE_CLAIM}: made, bound, mounted"):
        await job.kubectl.apply_text(read_own("claim.yaml"), "kubectl apply -f claim.yaml")
        await job.kubectl.wait(f"pvc/{SOURCE_CLAIM}", ".status.phase", "Bound")
        await job.mount(SOURCE_CLAIM)


async def fill(job: Job) -> None:
    """Fill it with a part of this machine, start a writer, and note the state."""
    root = job.mount_point(SOURCE_CLAIM)
    async with job.step(f"claim {SOURCE_CLAIM}: filled with this machine's files"):
        try:
            copied = await in_thread(tree_source.fill, root, job.sources, job.bounds)
        except tree_source.NothingToCopy as exc:
            raise StepFailed(str(exc)) from exc
        marked = await in_thread(tree_source.mark, root)
        sources = ", ".join(str(source) for source in copied.sources)
        job.report.note(
            f"{copied.file_count:,} files, {format_bytes(copied.content_bytes)} of {sources}; "
            f"and sparse, linked, setuid, unreadable and oddly named ones; {marked} have extended "
            "attributes"
        )
        (root / JOURNAL).mkdir()  # before the state is noted: it changes the root's time
        job.at_snapshot = await job.read(root)
        _start_writer(job)


def _start_writer(job: Job) -> None:
    journal = job.mount_point(SOURCE_CLAIM) / JOURNAL
    job.writer = process.start((sys.executable, "-m", "shorthorn.demo.writer", journal))
    job.report.note(
        f"process {job.writer.pid} writes to {journal} from now on: numbered, without fsync"
    )
