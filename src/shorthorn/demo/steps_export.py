"""The first half of the page: a VolumeSnapshot becomes a backing image, and a claim comes back."""

from __future__ import annotations

import os
from pathlib import Path

from shorthorn.demo import manifests, tree, tree_source, writer
from shorthorn.demo.failures import StepFailed, expect
from shorthorn.demo.job import JOURNAL, RESTORED_CLAIM, SOURCE_CLAIM, Job
from shorthorn.demo.kubectl import IMAGES_NAMESPACE
from shorthorn.demo.report import format_bytes
from shorthorn.demo.writer import Position, TornCopy
from shorthorn.kit import process
from shorthorn.kit.threads import in_thread

_TOOL_TIMEOUT_S = 60.0
_SNAPSHOT = f"volumesnapshot/{manifests.PAGE_SNAPSHOT}"
_RESTORED_BYTES_MIN = int(4.7 * (1 << 30))
"""What statvfs must say of an ext4 on 5 GiB: all but the file system's own tables."""


async def take_snapshot(job: Job) -> tuple[Position, Position]:
    """Take the page's snapshot while files are written.

    Returns: the writer's position before it was asked for, and after it was ready.
    """
    journal = job.mount_point(SOURCE_CLAIM) / JOURNAL
    async with job.step("VolumeSnapshot of the mounted claim (type bi, qcow2)") as step:
        await job.kubectl.apply(manifests.read(manifests.SNAPSHOT_CLASS))
        earliest = writer.read_position(journal)
        await job.kubectl.apply(manifests.read(manifests.SNAPSHOT))
        await job.kubectl.wait(_SNAPSHOT, ".status.readyToUse", "true")
        latest = writer.read_position(journal)
        job.snapshot_image = await _check_handle(job)
        step.shared_bytes = await job.shared_bytes(SOURCE_CLAIM, job.snapshot_image, "artifact")
        job.report.note(
            f"meanwhile {latest.ended - earliest.ended:,} writes went on in the mounted volume"
        )
    return earliest, latest


async def _check_handle(job: Job) -> str:
    """Check that the content's handle reads as the page says, and return the image's name."""
    uid = await job.kubectl.value(_SNAPSHOT, ".metadata.uid")
    content = await job.kubectl.value(_SNAPSHOT, ".status.boundVolumeSnapshotContentName")
    handle = await job.kubectl.value(f"volumesnapshotcontent/{content}", ".status.snapshotHandle")
    image, volume = f"snapshot-{uid}", await job.volume_handle(SOURCE_CLAIM)
    expected = (
        f"bi://backing?backingImageDataSourceType=export-from-volume&backingImage={image}"
        f"&volume-name={volume}&export-type=qcow2"
    )
    expect(content == f"snapcontent-{uid}", f"the content's name is {content}", [_SNAPSHOT])
    expect(handle == expected, f"the handle is {handle} and not {expected}", [_SNAPSHOT])
    job.report.note(f"snapshotHandle: {handle}")
    assert job.driver is not None
    listed = [s.snapshot_id for s in await job.driver.snapshots_of(volume)]
    expect(listed == [handle], f"ListSnapshots names {listed}")
    return image


async def show_image(job: Job) -> None:
    """Show the backing image, and that its artifact is qcow2 without having been copied."""
    async with job.step("BackingImage, as kubectl and qemu-img see it"):
        place = ("-n", IMAGES_NAMESPACE)
        await job.kubectl.show("get", "backingimages", *place)
        await job.kubectl.wait_text(
            f"backingimage/{job.snapshot_image}", ".status.checksum", namespace=IMAGES_NAMESPACE
        )
        artifact = await job.image_dir(job.snapshot_image) / "artifact"
        info = await _qemu_img(job, "info", artifact)
        expect("file format: qcow2" in info, f"{artifact} is no qcow2")
        await _qemu_img(job, "check", artifact)


async def _qemu_img(job: Job, verb: str, artifact: Path) -> str:
    """Ask QEMU's own tool; it finds out by itself what the file is. Raises CommandFailed."""
    job.report.command(f"qemu-img {verb} {artifact}")
    done = await process.run(("qemu-img", verb, artifact), timeout_s=_TOOL_TIMEOUT_S)
    job.report.output(done.text)
    return done.text


async def restore(job: Job, around: tuple[Position, Position]) -> None:
    """Restore the page's claim beside the mounted source, and compare every file."""
    async with job.step(f"claim {RESTORED_CLAIM}: restored, mounted, compared") as step:
        changed = await in_thread(tree_source.change, job.mount_point(SOURCE_CLAIM))
        job.report.note(f"{SOURCE_CLAIM} goes on after the snapshot: {changed}")
        await job.kubectl.apply(manifests.read(manifests.RESTORE_CLAIM))
        await job.kubectl.wait(f"pvc/{RESTORED_CLAIM}", ".status.phase", "Bound")
        step.shared_bytes = await job.shared_bytes(RESTORED_CLAIM, job.snapshot_image, "base.raw")
        await job.mount(RESTORED_CLAIM)
        _check_journal(job, around)
        await job.compare(job.at_snapshot, RESTORED_CLAIM, "the snapshot's point in time")
        await _check_source_went_on(job)
        _check_grown(job)


def _check_journal(job: Job, around: tuple[Position, Position]) -> None:
    """Check that the writer's files are as at one moment between `apply` and readiness."""
    try:
        found = writer.check_copy(
            job.mount_point(RESTORED_CLAIM) / JOURNAL, earliest=around[0], latest=around[1]
        )
    except TornCopy as exc:
        raise StepFailed(f"the journal is not one point in time: {exc}") from exc
    job.report.proven(
        f"the writer's files stand at write {found.ended:,}: all before it, none after it, each "
        "page whole"
    )


async def _check_source_went_on(job: Job) -> None:
    """Check that the source shows its changes, so that the comparison above could have failed."""
    job.afterwards = await job.read(job.mount_point(SOURCE_CLAIM))
    count = len(tree.compare(job.at_snapshot, job.afterwards))
    expect(count > 0, "the changes made after the snapshot are not to be seen in the source")
    assert job.writer is not None
    expect(job.writer.is_running, f"the writer has ended: {job.writer.stderr}")
    job.report.note(
        f"{SOURCE_CLAIM}, still mounted and written to, differs by now in {count} places"
    )


def _check_grown(job: Job) -> None:
    status = os.statvfs(job.mount_point(RESTORED_CLAIM))
    size_bytes = status.f_blocks * status.f_frsize
    expect(
        size_bytes >= _RESTORED_BYTES_MIN,
        f"the restored file system has {format_bytes(size_bytes)}, the claim asks for 5 GiB",
    )
    job.report.note(f"its file system has grown to the claim's 5 GiB ({format_bytes(size_bytes)})")
