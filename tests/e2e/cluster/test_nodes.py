"""Several nodes: volumes where the scheduler put their pods, image bytes from node to node."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest
from tests.e2e.cluster.release import NAMESPACE, Release
from tests.e2e.cluster.users import User
from tests.integration.daemon_process import poll

pytestmark = pytest.mark.root

MIB = 1 << 20


def fill(directory: Path, seed: int, megabytes: int = 16) -> str:
    """Write a file of random bytes; return its SHA-512."""
    content = random.Random(seed).randbytes(megabytes * MIB)
    (directory / "file").write_bytes(content)
    return hashlib.sha512(content).hexdigest()


def digest(directory: Path) -> str:
    return hashlib.sha512((directory / "file").read_bytes()).hexdigest()


def ready_nodes(user: User, image: str) -> set[str]:
    """Return the nodes that have a complete copy of an image."""
    return {
        copy["spec"]["nodeID"]
        for copy in user.api.list("ImageCopy", NAMESPACE)
        if copy["spec"]["image"] == image and (copy.get("status") or {}).get("state") == "ready"
    }


def test_a_snapshot_is_restored_on_another_node(release: Release, own: User) -> None:
    own.claim("source", "320Mi")
    with own.mounted("source", "node-0") as directory:
        wanted = fill(directory, 1)
        own.snapshot("s", "source", own.snapshot_class("bi", type="bi", export_type="qcow2"))
        image = own.image_of("s")["metadata"]["name"]
    assert ready_nodes(own, image) == {"node-0"}
    own.claim("copy", "400Mi", snapshot="s")
    with own.mounted("copy", "node-1") as directory:
        assert digest(directory) == wanted
    assert ready_nodes(own, image) == {"node-0", "node-1"}
    sums = {
        hashlib.sha512(path.read_bytes()).hexdigest()
        for node in release.nodes
        for path in node.pool.glob(f"images/{image}/*/artifact")
    }
    assert sums == {checksum_of(own, image)}


def checksum_of(user: User, image: str) -> str:
    """Return the checksum in an image's status once it is known."""

    def found() -> str:
        status = user.api.get("BackingImage", NAMESPACE, image).get("status") or {}
        return str(status.get("checksum", ""))

    poll(found, what=f"the checksum of {image}")
    return found()


@pytest.mark.parametrize("kind", ["snap", "clone"])
def test_what_is_no_image_is_restored_on_another_node(own: User, kind: str) -> None:
    own.claim("source", "64Mi")
    with own.mounted("source", "node-2") as directory:
        wanted = fill(directory, 2)
        if kind == "snap":
            own.snapshot("s", "source", own.snapshot_class("snap", type="snap"))
            own.ready("s")
    if kind == "snap":
        own.claim("copy", "64Mi", snapshot="s")
    else:
        source = {"kind": "PersistentVolumeClaim", "name": "source"}
        own.claim("copy", "64Mi", dataSource=source)
    with own.mounted("copy", "node-0") as directory:
        assert digest(directory) == wanted


def test_a_node_is_restarted_while_volumes_are_staged(release: Release, own: User) -> None:
    own.claim("a", "64Mi")
    with own.mounted("a", "node-1") as directory:
        wanted = fill(directory, 3)
        node = release.node("node-1")
        node.kill()
        assert digest(directory) == wanted
        (directory / "more").write_text("written while nobody was there")
        node.start()
        assert digest(directory) == wanted


def test_a_namespace_is_deleted_with_all_in_it(release: Release, own: User) -> None:
    own.claim("a", "64Mi")
    with own.mounted("a", "node-0") as directory:
        fill(directory, 4, megabytes=1)
        own.snapshot("s", "a", own.snapshot_class("bi", type="bi"))
        own.snapshot("t", "a", own.snapshot_class("snap", type="snap"))
        own.ready("s")
        own.ready("t")
    own.claim("b", "64Mi", snapshot="s")
    own.use("b", "node-2")
    own.remove()
    poll(lambda: not release.left(), what=f"an empty pool, and not {release.left()}")
