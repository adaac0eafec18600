"""The reader of the page: applies its manifests, and looks at what became of them.

Owns: the page's objects, whose names are fixed, in namespace `default`, and a foreign image on a
web server. Must never: change a manifest but where the page tells its reader to, or by `shorthorn
lint --fix`. Called by `test_page`.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.cluster.processes import ROOT
from tests.e2e.cluster.release import NAMESPACE, Release
from tests.e2e.cluster.users import PATIENCE_S, User
from tests.fakes.image_server import Served, serve
from tests.integration.daemon_process import poll
from tests.integration.service_api import Object, error_of

from shorthorn.demo import manifests, tree, tree_source
from shorthorn.demo.manifests import FillIn, Manifest
from shorthorn.demo.tree import Tree
from shorthorn.demo.tree_source import Bounds

SOURCE = "test-vol"
IMAGE = "test-bi"
EXISTING = ("test-snapshot-existing-backing", "test-existing-backing")
ON_DEMAND = ("test-snapshot-on-demand-backing", "test-on-demand-backing")
BOUNDS = Bounds(content_bytes=16 << 20, file_count=600)
_TREES = (ROOT / "src", ROOT / "tests", Path("/etc"))
_FOREIGN_KIB = 64 << 10


@dataclass(frozen=True)
class Foreign:
    """An image of somebody else's tools: where it is, and what is in it."""

    url: str
    sha512: str
    tree: Tree

    @property
    def fill_ins(self) -> tuple[FillIn, FillIn]:
        return manifests.url(self.url), manifests.checksum(self.sha512)


class Page(User):
    """Somebody who works through the page in namespace `default`."""

    def __init__(self, release: Release) -> None:
        super().__init__(release, "default")

    def apply_page(self, name: str, *fill_ins: FillIn) -> None:
        """Apply one of the page's manifests that is sound as it stands."""
        self.apply(manifests.read(name).fill(*fill_ins).text)

    def apply_mended(self, name: str, *fill_ins: FillIn) -> None:
        """Apply one that the API server refuses, by way of `shorthorn lint --fix`."""
        self.apply(mended(manifests.read(name).fill(*fill_ins)))

    def refusal(self, name: str) -> str:
        """Apply one that has to be refused; return what kubectl says."""
        said = self.release.plane.try_kubectl("apply", "-f", "-", stdin=manifests.read(name).text)
        assert said.returncode != 0, f"{name} was accepted: {said.stdout}"
        return said.stderr

    def restore(self, claim: str, snapshot: str) -> None:
        """Apply the page's claim, for another snapshot and under another name."""
        names = manifests.claim_name(claim), manifests.restored_from(snapshot)
        self.apply_page(manifests.RESTORE_CLAIM, *names)

    def compare(self, claim: str, wanted: Tree, *, at_least_bytes: int = 0) -> None:
        """Mount a claim, and compare every file."""
        with self.mounted(claim) as directory:
            differences = tree.compare(wanted, tree.read_tree(directory))
            size = size_bytes(directory)
        assert differences == []
        assert size >= at_least_bytes, f"the file system has {size} bytes"

    def handle_of(self, claim: str) -> str:
        return str(self.bound(claim)["spec"]["csi"]["volumeHandle"])

    def error(self, snapshot: str, *words: str) -> str:
        """Return the error in the status of a VolumeSnapshot, once it has all of these words.

        The snapshot controller may have complained before, of a content that it had not seen yet.
        """

        def is_told(found: Object | None) -> bool:
            said = error_of(found)
            return bool(said) and all(word in said for word in words)

        found = self.api.wait("VolumeSnapshot", "default", snapshot, is_told, timeout_s=PATIENCE_S)
        return error_of(found)

    def has_image(self, name: str = IMAGE) -> bool:
        return self.api.find("BackingImage", NAMESPACE, name) is not None

    def make_image(self, foreign: Foreign) -> None:
        """Make the image that the page takes for granted, and wait for it."""
        text = manifests.read_own("backing-image.yaml")
        self.apply(text.replace("@URL@", foreign.url).replace("@SHA512@", foreign.sha512))
        place = f"--namespace={NAMESPACE}"
        ready = ("--for=condition=Ready", "--timeout=100s")
        self.release.plane.kubectl("wait", f"backingimage/{IMAGE}", place, *ready)

    def forget(self, snapshot: str, content: str) -> None:
        """Delete a snapshot; its content and the page's image have to go with it."""
        self.release.plane.kubectl("delete", "volumesnapshot", snapshot)
        self.api.wait_gone("VolumeSnapshotContent", "", content)
        self.api.wait_gone("BackingImage", NAMESPACE, IMAGE)

    def clean(self, *, keep: tuple[str, ...] = ()) -> None:
        """Delete all that the page makes, but the claims of these names, and wait for it."""
        for kind in ("Pod", "PersistentVolumeClaim", "VolumeSnapshot"):
            for one in self.api.list(kind, "default"):
                name = one["metadata"]["name"]
                if name.removeprefix("uses-") not in keep:
                    force = ("--force",) if kind == "Pod" else ()
                    gone = "--ignore-not-found"  # what was being deleted
                    self.release.plane.kubectl("delete", kind, name, gone, *force)
        for content in ("test-existing-backing", "test-on-demand-backing"):
            self.api.delete("VolumeSnapshotContent", "", content)
            self.api.wait_gone("VolumeSnapshotContent", "", content)
        self.api.delete("BackingImage", NAMESPACE, IMAGE)
        poll(lambda: self._images() == [], what=f"no images, and not {self._images()}")

    def _images(self) -> list[str]:
        return [image["metadata"]["name"] for image in self.api.list("BackingImage", NAMESPACE)]


def mended(manifest: Manifest) -> str:
    """Return what `shorthorn lint --fix` makes of a manifest."""
    ran = subprocess.run(
        [sys.executable, "-m", "shorthorn", "lint", "--fix", "-"],
        input=manifest.text,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def fill(directory: Path) -> None:
    """Copy some of this machine's files, rarities too."""
    tree_source.fill(directory, _TREES, BOUNDS)


@contextmanager
def foreign_image(directory: Path, address: str) -> Iterator[tuple[Foreign, Served]]:
    """A compressed qcow2 that mkfs.ext4 and qemu-img made, on a web server at `address`."""
    root, raw, image = directory / "root", directory / "foreign.raw", directory / "foreign.qcow2"
    root.mkdir()
    fill(root)
    _run("mkfs.ext4", "-q", "-d", str(root), str(raw), f"{_FOREIGN_KIB}k")
    _run("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", str(raw), str(image))
    content = image.read_bytes()
    with serve(content, name="parrot.qcow2", address=address) as served:
        sha512 = hashlib.sha512(content).hexdigest()
        yield Foreign(served.url, sha512, _read_raw(raw, directory / "mnt")), served


def _read_raw(raw: Path, target: Path) -> Tree:
    target.mkdir()
    _run("mount", "-o", "loop,ro", str(raw), str(target))
    try:
        return tree.read_tree(target)
    finally:
        _run("umount", str(target))


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True, timeout=60)


def size_bytes(directory: Path) -> int:
    """Return the size of the file system that is mounted there."""
    status = os.statvfs(directory)
    return status.f_blocks * status.f_frsize
