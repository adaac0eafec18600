"""On-demand contents: images that are made when the first claim asks for them."""

from __future__ import annotations

from shorthorn.demo import manifests
from shorthorn.demo.failures import expect
from shorthorn.demo.job import DOWNLOADED_CLAIM, EXPORTED_CLAIM, IMAGE, SOURCE_CLAIM, Job
from shorthorn.demo.kubectl import IMAGES_NAMESPACE
from shorthorn.demo.steps_existing import apply_claim, sha512_of
from shorthorn.kit.threads import in_thread

SNAPSHOT = "volumesnapshot/test-snapshot-on-demand-backing"
CONTENT = "volumesnapshotcontent/test-on-demand-backing"


async def download(job: Job) -> None:
    """Download what the snapshot exported, by the page's on-demand content and its checksum."""
    async with job.step("on-demand download of the exported qcow2, and a claim") as step:
        artifact = await job.image_dir(job.snapshot_image) / "artifact"
        recorded = await job.kubectl.value(
            f"backingimage/{job.snapshot_image}", ".status.checksum", namespace=IMAGES_NAMESPACE
        )
        counted = await in_thread(sha512_of, artifact)
        expect(recorded == counted, f"status.checksum is {recorded}, sha512sum says {counted}")
        job.report.proven("the export's status.checksum is the SHA-512 of its bytes")
        content = manifests.read(manifests.DOWNLOAD_CONTENT).fill(
            manifests.url(job.server.offer("test-vol.qcow2", artifact)),
            manifests.checksum(counted),
        )
        await job.apply_mended(content)
        await job.kubectl.apply(manifests.read(manifests.ON_DEMAND_SNAPSHOT))
        await job.kubectl.wait(SNAPSHOT, ".status.readyToUse", "true")
        await apply_claim(job, DOWNLOADED_CLAIM, SNAPSHOT)
        await job.kubectl.show("get", "backingimages", "-n", IMAGES_NAMESPACE)
        step.shared_bytes = await job.shared_bytes(DOWNLOADED_CLAIM, IMAGE, "base.raw")
        await job.mount(DOWNLOADED_CLAIM)
        await job.compare(job.at_snapshot, DOWNLOADED_CLAIM, "the exported point in time")
        await forget(job)


async def export(job: Job) -> None:
    """Export the volume as it is by now, by the page's other on-demand content."""
    async with job.step("on-demand export-from-volume, and a claim") as step:
        handle = await job.volume_handle(SOURCE_CLAIM)
        content = manifests.read(manifests.EXPORT_CONTENT)
        await job.apply_mended(content.fill(manifests.volume_handle(handle)))
        await job.kubectl.apply(manifests.read(manifests.ON_DEMAND_SNAPSHOT))
        await job.kubectl.wait(SNAPSHOT, ".status.readyToUse", "true")
        await apply_claim(job, EXPORTED_CLAIM, SNAPSHOT)
        step.shared_bytes = await job.shared_bytes(EXPORTED_CLAIM, IMAGE, "artifact")
        await job.mount(EXPORTED_CLAIM)
        await job.compare(job.afterwards, EXPORTED_CLAIM, f"{SOURCE_CLAIM} as it is by now")
        await forget(job)


async def forget(job: Job) -> None:
    """Delete the on-demand snapshot, and with it content and image: the next one has its names."""
    await job.kubectl.delete(SNAPSHOT)
    await job.kubectl.wait_gone(CONTENT)
    await job.kubectl.wait_gone(f"backingimage/{IMAGE}", namespace=IMAGES_NAMESPACE)
