"""Image bytes into and out of real nodes, from where the web's edge of a cluster will be.

The programs are real, and so are the Secrets by which they trust each other; what asks them is put
together as the controller does.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from tests.integration import storage
from tests.integration.bytes_host import pieces, then_silence
from tests.integration.cluster import Cluster, Node, running
from tests.integration.daemon_process import ROOT, poll
from tests.integration.peers import wait_trusted
from tests.integration.service_api import SYSTEM

from shorthorn.daemon.parts import Registries
from shorthorn.domain import errors
from shorthorn.domain.image_bytes import ArtifactForm, UploadState
from shorthorn.images.peer_bytes import PeerBytes
from shorthorn.kube.client import connect
from shorthorn.kube.peer_identity import PeerIdentity

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

pytestmark = [pytest.mark.root, pytest.mark.xfs, pytest.mark.slow]

MIB = 1 << 20
DATA = random.Random(3).randbytes(12 * MIB) + bytes(20 * MIB)
ASKED_AT = "2026-03-01T10:00:00+02:00"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A controller and two nodes that are peers."""
    storage.require(storage.XFS)
    with running(are_peers=True) as made:
        yield made


@pytest.fixture
async def edge(cluster: Cluster) -> AsyncIterator[PeerBytes]:
    client = connect(cluster.server.kubeconfig, namespace=SYSTEM)
    registries = Registries(client, SYSTEM)
    identity = PeerIdentity(client, namespace=SYSTEM)
    watched = (registries.copies, registries.pools)
    tasks = [asyncio.create_task(work.run()) for work in (*watched, identity)]
    made = PeerBytes(registries.copies, registries.pools, identity)
    async with asyncio.timeout(30):
        await asyncio.gather(*(registry.wait_synced() for registry in watched))
        await wait_trusted(identity)
    yield made
    await made.close()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await client.aclose()


def create(cluster: Cluster, name: str, source: str, **more: Any) -> None:
    meta = {"name": name, "namespace": SYSTEM, "annotations": more.pop("annotations", {})}
    cluster.api.create(
        {
            "apiVersion": "longhorn.io/v1beta2",
            "kind": "BackingImage",
            "metadata": meta,
            "spec": {"sourceType": source, "sourceParameters": more},
        }
    )


def condition(cluster: Cluster, image: str, kind: str) -> dict[str, str]:
    status = cluster.api.get("BackingImage", SYSTEM, image).get("status") or {}
    found = [c for c in status.get("conditions", ()) if c["type"] == kind]
    return found[0] if found else {}


def is_ready(cluster: Cluster, image: str) -> bool:
    return condition(cluster, image, "Ready").get("status") == "True"


def copies_of(cluster: Cluster, image: str) -> list[dict[str, Any]]:
    return [c for c in cluster.api.list("ImageCopy", SYSTEM) if c["spec"]["image"] == image]


def node_of(cluster: Cluster, image: str) -> Node:
    (copy,) = copies_of(cluster, image)
    return next(node for node in cluster.nodes if node.name == copy["spec"]["nodeID"])


async def eventually(ask: Callable[[], Awaitable[UploadState]]) -> UploadState:
    """Ask until bytes are awaited by a node that is there."""
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(errors.NotFound, errors.Unavailable):
                return await ask()
            await asyncio.sleep(0.1)


async def test_an_image_goes_through_a_killed_node_is_verified_cloned_and_read(
    cluster: Cluster, edge: PeerBytes
) -> None:
    length = str(len(DATA))
    create(cluster, "golden", "upload", annotations={"shorthorn.io/upload-length": length})
    assert await eventually(lambda: edge.upload_state("golden")) == UploadState(0, len(DATA))
    await edge.append("golden", 0, pieces(DATA[: 5 * MIB]))
    node, begun = node_of(cluster, "golden"), asyncio.Event()
    sending = asyncio.create_task(
        edge.append("golden", 5 * MIB, then_silence(DATA[5 * MIB : 9 * MIB], begun))
    )
    await begun.wait()
    node.kill()
    with pytest.raises(errors.Unavailable):
        await sending
    await asyncio.to_thread(node.start)
    state = await eventually(lambda: edge.upload_state("golden"))
    assert 5 * MIB <= state.offset_bytes <= 9 * MIB
    await edge.append("golden", state.offset_bytes, pieces(DATA[state.offset_bytes :]))
    await asyncio.to_thread(poll, lambda: is_ready(cluster, "golden"), what="it is ready")
    artifact = await edge.describe("golden", ArtifactForm.ARTIFACT)
    assert artifact.etag == hashlib.sha512(DATA).hexdigest()
    await _is_verified_when_asked(cluster)
    create(cluster, "second", "clone", **{"backing-image": "golden"})
    await asyncio.to_thread(poll, lambda: is_ready(cluster, "second"), what="its clone is ready")
    for image in ("golden", "second"):
        async with edge.read(image, ArtifactForm.RAW, start=MIB) as opened:
            assert b"".join([chunk async for chunk in opened.chunks]) == DATA[MIB:]
    for image in ("golden", "second"):
        cluster.api.delete("BackingImage", SYSTEM, image)
        await asyncio.to_thread(cluster.api.wait_gone, "BackingImage", SYSTEM, image)
    with pytest.raises(errors.NotFound):
        await edge.describe("golden", ArtifactForm.RAW)
    assert [left for each in cluster.nodes for left in each.leftovers()] == []


async def _is_verified_when_asked(cluster: Cluster) -> None:
    before = condition(cluster, "golden", "ChecksumVerified")["lastTransitionTime"]
    asked = {"metadata": {"annotations": {"shorthorn.io/verify-at": ASKED_AT}}}
    cluster.api.merge("BackingImage", SYSTEM, "golden", asked)

    def is_done() -> bool:
        told = [copy["status"].get("verifyAt") for copy in copies_of(cluster, "golden")]
        now = condition(cluster, "golden", "ChecksumVerified")
        return told == [ASKED_AT] and now["lastTransitionTime"] > before

    await asyncio.to_thread(poll, is_done, what="it is verified")
    assert condition(cluster, "golden", "ChecksumVerified")["status"] == "True"


async def test_an_upload_that_is_given_up_fails_and_leaves_nothing(
    cluster: Cluster, edge: PeerBytes
) -> None:
    create(cluster, "unwanted", "upload", annotations={"shorthorn.io/upload-length": "1048576"})
    await eventually(lambda: edge.upload_state("unwanted"))
    await edge.append("unwanted", 0, pieces(bytes(1000)))
    await edge.abandon("unwanted")
    await asyncio.to_thread(
        poll,
        lambda: condition(cluster, "unwanted", "Failed").get("status") == "True",
        what="it has failed",
    )
    assert "given up" in condition(cluster, "unwanted", "Failed")["message"]
    assert [left for each in cluster.nodes for left in each.leftovers()] == []
    cluster.api.delete("BackingImage", SYSTEM, "unwanted")
    await asyncio.to_thread(cluster.api.wait_gone, "BackingImage", SYSTEM, "unwanted")


def test_an_image_is_sent_and_fetched_by_way_of_the_controller(
    cluster: Cluster, tmp_path: Path
) -> None:
    disk, back = tmp_path / "disk", tmp_path / "back"
    disk.write_bytes(random.Random(3).randbytes(9 * MIB))

    def image(*arguments: str | Path) -> str:
        argv = [sys.executable, "-m", "shorthorn", "image", *arguments]
        argv += ["--kubeconfig", cluster.server.kubeconfig]
        ran = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    edge = ("--server", f"http://{cluster.web}")
    image("upload", "golden", disk, *edge)
    image("download", "golden", back, *edge)
    assert back.read_bytes() == disk.read_bytes()
    image("verify", "golden", "--wait")
    image("rm", "golden", "--yes")
