"""Pre-provisioned contents: an image that was not made through CSI, and a claim from it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from shorthorn.demo import manifests, tree_source
from shorthorn.demo.job import EXISTING_CLAIM, IMAGE, Job
from shorthorn.demo.kubectl import IMAGES_NAMESPACE
from shorthorn.demo.report import format_bytes
from shorthorn.demo.tree import Tree
from shorthorn.demo.tree_source import Bounds
from shorthorn.host import mounts
from shorthorn.kit import process
from shorthorn.kit.threads import in_thread

SNAPSHOT = "volumesnapshot/test-snapshot-existing-backing"

_FOREIGN_BYTES = 96 << 20
_FOREIGN_BOUNDS = Bounds(content_bytes=24 << 20, file_count=1500)
_TOOL_TIMEOUT_S = 60.0


async def make_foreign_image(job: Job) -> None:
    """Make a compressed qcow2 with the system's own tools, and offer it over HTTP."""
    async with job.step("a foreign qcow2 by mkfs.ext4 and qemu-img, on a web server"):
        raw, image = job.workspace.files / "foreign.raw", job.workspace.files / "foreign.qcow2"
        root = job.workspace.files / "root"
        root.mkdir()
        await in_thread(tree_source.fill, root, job.sources, _FOREIGN_BOUNDS)
        await _run(job, "mkfs.ext4", "-q", "-d", root, raw, f"{_FOREIGN_BYTES >> 10}k")
        job.foreign = await _read_raw(job, raw)
        await _run(job, "qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", raw, image)
        job.foreign_sha512 = await in_thread(sha512_of, image)
        job.foreign_url = job.server.offer("parrot.qcow2", image)
        job.report.note(
            f"{job.foreign_url}: {format_bytes(image.stat().st_size)}, "
            f"{job.foreign.file_count:,} files inside"
        )


async def make_backing_image(job: Job) -> None:
    """Make the image by hand: kind BackingImage, source download."""
    async with job.step(f"BackingImage {IMAGE}: made by hand, downloaded"):
        text = manifests.read_own("backing-image.yaml")
        text = text.replace("@URL@", job.foreign_url).replace("@SHA512@", job.foreign_sha512)
        await job.kubectl.apply_text(text, "kubectl apply -f backing-image.yaml")
        await job.kubectl.show(
            *("wait", "--for=condition=Ready", f"backingimage/{IMAGE}"),
            *("-n", IMAGES_NAMESPACE, "--timeout=60s"),
        )
        await job.kubectl.show("get", "backingimages", "-n", IMAGES_NAMESPACE)


async def bind_existing(job: Job) -> None:
    """Bind the page's pre-provisioned content to it, and restore a claim."""
    async with job.step("pre-provisioned content of that image, and a claim") as step:
        content = manifests.read(manifests.EXISTING_CONTENT)
        await job.kubectl.apply(
            content.fill(manifests.url(job.foreign_url), manifests.checksum(job.foreign_sha512))
        )
        await job.kubectl.apply(manifests.read(manifests.EXISTING_SNAPSHOT))
        await job.kubectl.wait(SNAPSHOT, ".status.readyToUse", "true")
        await apply_claim(job, EXISTING_CLAIM, SNAPSHOT)
        step.shared_bytes = await job.shared_bytes(EXISTING_CLAIM, IMAGE, "base.raw")
        await job.mount(EXISTING_CLAIM)
        await job.compare(job.foreign, EXISTING_CLAIM, "the downloaded image")


async def delete_image_of_claim(job: Job) -> None:
    """Delete snapshot and image; the claim made from it keeps its data."""
    async with job.step(f"BackingImage {IMAGE} goes, the claim made from it stays"):
        await job.kubectl.delete(SNAPSHOT)
        await job.kubectl.wait_gone("volumesnapshotcontent/test-existing-backing")
        await job.kubectl.wait_gone(f"backingimage/{IMAGE}", namespace=IMAGES_NAMESPACE)
        await job.compare(job.foreign, EXISTING_CLAIM, "still the downloaded image")


async def apply_claim(job: Job, claim: str, snapshot: str) -> None:
    """Apply the page's claim for another snapshot, and wait until it is bound."""
    manifest = manifests.read(manifests.RESTORE_CLAIM).fill(
        manifests.claim_name(claim),
        manifests.restored_from(snapshot.removeprefix("volumesnapshot/")),
    )
    await job.kubectl.apply(manifest)
    await job.kubectl.wait(f"pvc/{claim}", ".status.phase", "Bound")


def sha512_of(path: Path) -> str:
    """Return the SHA-512 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha512").hexdigest()


async def _read_raw(job: Job, raw: Path) -> Tree:
    """Read what is in a raw image through the system's own mount(8)."""
    target = job.workspace.files / "mnt"
    target.mkdir()
    await process.run(("mount", "-o", "loop,ro", raw, target), timeout_s=_TOOL_TIMEOUT_S)
    try:
        return await job.read(target)
    finally:
        await mounts.unmount(target)


async def _run(job: Job, *argv: str | Path) -> None:
    job.report.command(" ".join(str(word) for word in argv))
    await process.run(argv, timeout_s=_TOOL_TIMEOUT_S)
