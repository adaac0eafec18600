"""What the steps of the main job share.

Owns: the run's state (workspace, service, kubectl, what was learned on the way) and the small acts
that several steps make: a measured step, mounting, comparing, lint's mending. Must never: know the
order of steps (`run` does).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, field
from pathlib import Path

from shorthorn.demo import service as services
from shorthorn.demo import tree
from shorthorn.demo.driver import Driver
from shorthorn.demo.failures import StepFailed
from shorthorn.demo.http_server import ImageServer
from shorthorn.demo.kubectl import IMAGES_NAMESPACE, Kubectl
from shorthorn.demo.manifests import FillIn, Manifest
from shorthorn.demo.report import Report, Step, format_bytes
from shorthorn.demo.tree import Tree
from shorthorn.demo.tree_source import Bounds
from shorthorn.demo.workspace import Workspace
from shorthorn.host import extents, mountinfo, syscalls
from shorthorn.kit import process
from shorthorn.kit.threads import in_thread

SOURCE_CLAIM = "test-vol"
RESTORED_CLAIM = "test-restore-pvc"
EXISTING_CLAIM = "test-existing-pvc"
DOWNLOADED_CLAIM = "test-downloaded-pvc"
EXPORTED_CLAIM = "test-exported-pvc"
REFUSED_CLAIM = "test-refused-pvc"
#: The page's name for an image that is not the export of a VolumeSnapshot.
IMAGE = "test-bi"
#: Where the writer works in `test-vol`; not part of the trees that are compared.
JOURNAL = "journal"

_DIFFERENCES_SHOWN = 10


@dataclass(slots=True)
class Job:
    """One run."""

    report: Report
    workspace: Workspace
    service: services.Service
    kubectl: Kubectl
    server: ImageServer
    sources: tuple[Path, ...]
    bounds: Bounds
    driver: Driver | None = None
    writer: process.Child | None = None
    #: the state of `test-vol` when its snapshot was taken
    at_snapshot: Tree = field(default_factory=lambda: Tree({}))
    #: the same volume after it went on
    afterwards: Tree = field(default_factory=lambda: Tree({}))
    #: what the downloaded foreign image holds
    foreign: Tree = field(default_factory=lambda: Tree({}))
    foreign_url: str = ""
    foreign_sha512: str = ""
    #: the BackingImage that the VolumeSnapshot made
    snapshot_image: str = ""

    @contextlib.asynccontextmanager
    async def step(self, title: str) -> AsyncIterator[Step]:
        """Time a step, and measure by how much the pool's allocation grew meanwhile."""
        before = await self._allocated_bytes()
        with self.report.step(title) as step:
            yield step
            after = await self._allocated_bytes()
            if before is not None and after is not None:
                step.moved_bytes = after - before

    def mount_point(self, claim: str) -> Path:
        """Where a claim is mounted."""
        return self.workspace.mounts / claim

    async def mount(self, claim: str) -> Path:
        """Mount a claim as a user does."""
        target = self.mount_point(claim)
        await self.service.run("mount", claim, target)
        return target

    async def unmount(self, claim: str) -> None:
        """Undo `mount`."""
        await self.service.run("umount", self.mount_point(claim))

    async def read(self, root: Path, *, skip: Collection[str] = (JOURNAL,)) -> Tree:
        """Read a tree off the event loop."""
        return await in_thread(tree.read_tree, root, skip=skip)

    async def compare(self, expected: Tree, claim: str, told: str) -> None:
        """Compare every file of a mounted claim. Raises StepFailed naming what differs."""
        found = await self.read(self.mount_point(claim))
        differences = tree.compare(expected, found)
        if differences:
            shown = "\n".join(str(d) for d in differences[:_DIFFERENCES_SHOWN])
            raise StepFailed(
                f"claim {claim} is not {told}; {len(differences)} differences, the first:\n{shown}",
                about=[f"default/pvc/{claim}"],
            )
        self.report.compared.comparisons += 1
        self.report.compared.file_count += found.file_count
        self.report.compared.content_bytes += found.content_bytes
        self.report.proven(
            f"{claim} is {told}: {found.file_count:,} files, "
            f"{format_bytes(found.content_bytes)} equal"
        )

    async def mend(self, manifest: Manifest) -> str:
        """Return what `shorthorn lint --fix` makes of a manifest. Raises StepFailed: errors."""
        status, mended, said = await services.lint(manifest.text, "--fix")
        if status != 0:
            raise StepFailed(f"shorthorn lint --fix {manifest.name}: {said.strip()}")
        return mended

    async def apply_mended(self, manifest: Manifest) -> None:
        """Show what is filled in on a broken sample, mend and apply it."""
        self.report.differences(manifest.name, manifest.differences())
        mended = await self.mend(manifest)
        await self.kubectl.apply_text(
            mended, f"shorthorn lint --fix {manifest.name} | kubectl apply -f -"
        )

    async def apply_edited(self, manifest: Manifest, edit: FillIn) -> None:
        """Mend a broken sample, then make a mistake in it that lint would have mended too, and
        apply that.
        """
        self.report.differences(manifest.name, manifest.differences())
        file = "content.yaml"
        self.report.command(f"shorthorn lint --fix {manifest.name} > {file}")
        mended = Manifest(file, await self.mend(manifest)).fill(edit)
        self.report.note(f"{file}: then edited")
        for line in mended.differences():
            self.report.changed_line(line)
        self.report.command(f"shorthorn lint {file}")
        _, said, _ = await services.lint(mended.text)
        self.report.output(said.replace("-:", f"{file}:"))
        await self.kubectl.apply_text(mended.text, f"kubectl apply -f {file}")

    async def volume_handle(self, claim: str) -> str:
        """Return the volume handle of a bound claim."""
        volume = await self.kubectl.value(f"pvc/{claim}", ".spec.volumeName")
        return await self.kubectl.value(f"pv/{volume}", ".spec.csi.volumeHandle")

    async def volume_file(self, claim: str) -> Path:
        """Return the pool's file of a bound claim."""
        return self.workspace.pool / "volumes" / await self.volume_handle(claim) / "volume.raw"

    async def image_dir(self, image: str) -> Path:
        """Return the pool's directory of a backing image."""
        uuid = await self.kubectl.value(
            f"backingimage/{image}", ".status.uuid", namespace=IMAGES_NAMESPACE
        )
        return self.workspace.pool / "images" / image / uuid

    async def shared_bytes(self, claim: str, image: str, file: str) -> int:
        """Return how much of a claim's volume lies in the very blocks of an image's file."""
        volume = await self.volume_file(claim)
        return await extents.shared_with(volume, await self.image_dir(image) / file)

    async def _allocated_bytes(self) -> int | None:
        """Return what the pool has allocated, everything written out; None while there is none."""
        if not (self.workspace.pool / "pool.json").exists():
            return None
        return await in_thread(self._sync_and_measure)

    def _sync_and_measure(self) -> int:
        mounted = [
            m.target
            for m in mountinfo.read_mounts()
            if m.target.parent.is_relative_to(self.workspace.mounts)
        ]
        for directory in (*mounted, self.workspace.pool):
            descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
            try:
                syscalls.syncfs(descriptor)
            finally:
                os.close(descriptor)
        status = os.statvfs(self.workspace.pool)
        return (status.f_blocks - status.f_bfree) * status.f_frsize
