"""The main job from begin to end: the order of its steps, and what happens when one fails.

Owns: set-up, the steps' order, interruption, explaining a failure, and taking everything away that
was started, however it ends. Must never: leave a process, mount, loop device or directory behind,
unless asked to keep a failure's data.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from shorthorn.demo import (
    manifests,
    steps_deletion,
    steps_existing,
    steps_export,
    steps_on_demand,
    steps_refusals,
    steps_volume,
    workspace,
)
from shorthorn.demo.failures import StepFailed
from shorthorn.demo.http_server import ImageServer
from shorthorn.demo.job import Job
from shorthorn.demo.kubectl import Kubectl
from shorthorn.demo.report import Report, format_bytes
from shorthorn.demo.service import Service
from shorthorn.demo.tree_source import Bounds
from shorthorn.demo.workspace import Workspace
from shorthorn.host.errors import HostError
from shorthorn.kit.process import CommandFailed, CommandMissing

_POOL_SIZE = "3G"
_POOL_BYTES = 3 << 30
#: Beside the pool file: the foreign image, what it is made from, database and logs.
_BESIDE_BYTES = 512 << 20
_KUBECTL_TIMEOUT_S = 10.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Options:
    """What a user may choose."""

    parent: Path
    sources: tuple[Path, ...]
    bounds: Bounds
    kubectl: str
    keep: bool


async def run(options: Options, report: Report) -> int:
    """Do the main job. Returns the exit status: 0 if every comparison held, 1 if not, 128 + the
    signal's number when interrupted.
    """
    task = asyncio.current_task()
    assert task is not None
    interrupted: list[signal.Signals] = []
    loop = asyncio.get_running_loop()

    def interrupt(number: signal.Signals) -> None:
        if not interrupted:
            task.cancel()
        interrupted.append(number)

    for number in _SIGNALS:
        loop.add_signal_handler(number, interrupt, number)
    try:
        return await _run(options, report)
    except asyncio.CancelledError:
        if not interrupted:
            raise
        report.problem(f"Interrupted by {interrupted[0].name}.", "everything is taken away again")
        return 128 + interrupted[0]
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)


async def _run(options: Options, report: Report) -> int:
    try:
        for root in await workspace.remove_abandoned(options.parent):
            report.note(f"removed {root}, which a killed run had left")
        _check_space(options.parent)
        async with _job(options, report) as job:
            await _all_steps(job)
    except (StepFailed, CommandFailed, CommandMissing, HostError, OSError) as exc:
        report.problem("The main job failed.", str(exc))
        report.table()
        return 1
    report.table()
    report.console.print(f"All of it held. Nothing is left of it in {options.parent}.")
    return 0


@contextlib.asynccontextmanager
async def _job(options: Options, report: Report) -> AsyncIterator[Job]:
    """Make everything that the steps need, and take it away again."""
    place = workspace.create(options.parent)
    report.note(f"private directory: {place.root}")
    kubectl = Kubectl(
        options.kubectl, place.data_dir / "kubeconfig", place.root / "kubectl-cache", report
    )
    service = Service(place, _POOL_SIZE, report)
    server = ImageServer()
    job = Job(
        report=report,
        workspace=place,
        service=service,
        kubectl=kubectl,
        server=server,
        sources=options.sources,
        bounds=options.bounds,
    )
    keep = False
    try:
        async with server:
            yield job
    except BaseException as exc:
        if not isinstance(exc, asyncio.CancelledError):
            keep = options.keep
            await _explain(job, exc)
        raise
    finally:
        await _uncancelled(_take_away(job, place, keep=keep))


async def _all_steps(job: Job) -> None:
    """The page, from top to bottom."""
    await steps_volume.start_service(job)
    await steps_volume.make_claim(job)
    await steps_volume.fill(job)
    around = await steps_export.take_snapshot(job)
    await steps_export.show_image(job)
    await steps_export.restore(job, around)
    await steps_existing.make_foreign_image(job)
    await steps_existing.make_backing_image(job)
    await steps_existing.bind_existing(job)
    await steps_existing.delete_image_of_claim(job)
    await steps_on_demand.download(job)
    await steps_on_demand.export(job)
    await steps_refusals.misindented(job, manifests.DOWNLOAD_CONTENT, "volumeSnapshotRef")
    await steps_refusals.misindented(job, manifests.EXPORT_CONTENT, "name may not be empty")
    await steps_refusals.wrong_checksum(job)
    await steps_refusals.mismatching_parameter(job)
    await steps_refusals.unknown_source_type(job)
    await steps_refusals.claim_name_as_volume(job)
    await steps_deletion.delete_everything(job)
    await steps_deletion.stop_service(job)


def _check_space(parent: Path) -> None:
    """Raise StepFailed where the run does not fit; better now than in the middle."""
    needed_bytes = _POOL_BYTES + _BESIDE_BYTES
    free_bytes = shutil.disk_usage(parent).free
    if free_bytes < needed_bytes:
        raise StepFailed(
            f"{parent} has {format_bytes(free_bytes)} free, {format_bytes(needed_bytes)} are "
            "needed; choose another directory with --dir"
        )


async def _explain(job: Job, exc: BaseException) -> None:
    """Show what kubectl and the service say about a failure, before everything is taken away."""
    if not isinstance(exc, StepFailed | CommandFailed) or not job.service.is_running:
        log = job.service.log_tail()
    else:
        for target in getattr(exc, "about", ()):
            namespace, _, name = target.partition("/")
            await _ask(job, "describe", name, "-n", namespace)
        await _ask(job, "get", "events", "-A", "--sort-by=.lastTimestamp")
        log = job.service.log_tail()
    if log:
        job.report.problem("the end of the service's log", log)


async def _ask(job: Job, *arguments: str) -> None:
    with contextlib.suppress(TimeoutError, CommandFailed, CommandMissing):
        async with asyncio.timeout(_KUBECTL_TIMEOUT_S):
            answer = await job.kubectl.call(*arguments)
            job.report.problem(f"kubectl {' '.join(arguments)}", answer.said)


async def _take_away(job: Job, place: Workspace, *, keep: bool) -> None:
    """Stop every process, then release and remove the directory, or release and keep it."""
    if job.writer is not None:
        await job.writer.stop()
    if job.driver is not None:
        await job.driver.close()
    await job.service.stop()
    if not keep:
        await workspace.remove(place)
        return
    workspace.keep(place)
    await workspace.release(place)
    place.lock.release()
    job.report.note(f"kept: {place.root}; look into it with")
    job.report.command(f"shorthorn up --data-dir {place.data_dir}")


async def _uncancelled(work: object) -> None:
    """Finish cleaning up whatever else comes: a second Ctrl-C must not leave half of it."""
    assert asyncio.iscoroutine(work)
    task = asyncio.ensure_future(work)
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait({task})
    task.result()


def default_parent() -> Path:
    """Return where temporary files may be large: TMPDIR if it is set, else /var/tmp."""
    return Path(os.environ.get("TMPDIR") or "/var/tmp")
