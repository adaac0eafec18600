"""Real programs of a cluster: what they do together, and through each other's absence."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from tests.fakes.csi_calls import create_volume
from tests.integration import storage
from tests.integration.cluster import Cluster, Node, refusal, running
from tests.integration.daemon_process import loops_below, mounts_of, poll
from tests.integration.service_api import SYSTEM

from shorthorn.csi.proto import csi_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.root, pytest.mark.xfs, pytest.mark.slow]

MIB = 1 << 20
SIZE = 64 * MIB
PASSING = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A controller and two nodes."""
    storage.require(storage.XFS)
    with running() as made:
        yield made


@pytest.fixture(autouse=True)
def _nothing_is_left(cluster: Cluster) -> Iterator[None]:
    """Everything runs before a test, and nothing of it is left behind."""
    for program in (cluster.controller, *cluster.nodes):
        if program.process is None or program.process.poll() is not None:
            program.start()
    yield
    poll(lambda: not [left for node in cluster.nodes for left in node.leftovers()], what="no data")
    # An object goes after its data, and a loop device when the kernel has let go of it.
    for kind in ("Volume", "Snapshot", "ImageCopy", "BackingImage"):
        poll(functools.partial(_is_empty, cluster, kind), what=f"no {kind}")
    for node in cluster.nodes:
        poll(functools.partial(_has_only_its_pool, node), what=f"only the pool of {node.name}")


def _is_empty(cluster: Cluster, kind: str) -> bool:
    return cluster.api.list(kind, SYSTEM) == []


def _has_only_its_pool(node: Node) -> bool:
    return (list(loops_below(node.data_dir).values()), mounts_of(node.data_dir)) == (
        [str(node.data_dir / "pool.xfs")],
        [str(node.data_dir / "pool")],
    )


def create(cluster: Cluster, name: str, **wanted: Any) -> csi_pb2.Volume:
    answer = retried(cluster, "CreateVolume", create_volume(name, size=SIZE, **wanted))
    volume: csi_pb2.Volume = answer.volume
    return volume


def delete(cluster: Cluster, volume_id: str) -> None:
    retried(cluster, "DeleteVolume", csi_pb2.DeleteVolumeRequest(volume_id=volume_id))


def snapshot(cluster: Cluster, name: str, volume_id: str) -> csi_pb2.Snapshot:
    request = csi_pb2.CreateSnapshotRequest(
        name=name,
        source_volume_id=volume_id,
        parameters={"type": "bi", "export-type": "qcow2"},
    )
    made: list[csi_pb2.Snapshot] = []

    def is_ready() -> bool:
        made[:] = [retried(cluster, "CreateSnapshot", request).snapshot]
        return made[0].ready_to_use

    poll(is_ready, what=f"{name} is ready")
    return made[0]


def delete_snapshot(cluster: Cluster, handle: str) -> None:
    retried(cluster, "DeleteSnapshot", csi_pb2.DeleteSnapshotRequest(snapshot_id=handle))


def retried(cluster: Cluster, rpc: str, request: Any) -> Any:
    """Call the controller as sidecars do: what is not final is asked again."""
    answers: list[Any] = []

    def has_answered() -> bool:
        try:
            answers.append(cluster.controller.call(f"Controller.{rpc}", request))
        except grpc.RpcError as exc:
            if exc.code() not in PASSING:
                raise
        return bool(answers)

    poll(has_answered, what=rpc)
    return answers[0]


def volume_object(cluster: Cluster, volume_id: str) -> dict[str, Any]:
    found = cluster.api.find("Volume", SYSTEM, volume_id)
    assert found is not None
    return found


def node_b(cluster: Cluster) -> Node:
    return cluster.nodes[1]


def test_a_volume_of_one_node_becomes_an_image_and_a_volume_again(cluster: Cluster) -> None:
    made = create(cluster, "vol-1", requisite=["node-b"])
    (topology,) = made.accessible_topology
    assert dict(topology.segments) == {"topology.shorthorn.io/node": "node-b"}
    b = node_b(cluster)
    assert b.volume_file(made.volume_id).exists()
    target = b.publish(made.volume_id)
    (target / "data").write_text("golden")
    taken = snapshot(cluster, "snap-1", made.volume_id)
    (target / "data").write_text("later")
    restored = create(cluster, "vol-2", handle=taken.snapshot_id)
    assert b.volume_file(restored.volume_id).exists()
    assert (b.publish(restored.volume_id) / "data").read_text() == "golden"
    for volume_id in (made.volume_id, restored.volume_id):
        b.unpublish(volume_id)
        delete(cluster, volume_id)
    delete_snapshot(cluster, taken.snapshot_id)


def test_killed_programs_are_followed_by_others_that_finish_their_work(cluster: Cluster) -> None:
    b = node_b(cluster)
    made = create(cluster, "vol-1", requisite=["node-b"])
    target = b.publish(made.volume_id)
    (target / "data").write_text("kept")
    b.kill()
    cluster.controller.kill()
    assert (target / "data").read_text() == "kept", "a mounted volume needs no program"
    cluster.controller.launch()
    poll(cluster.controller.is_ready)
    request = csi_pb2.CreateSnapshotRequest(name="snap-1", source_volume_id=made.volume_id)
    code, _ = refusal(cluster.controller, "Controller.CreateSnapshot", request, timeout_s=1)
    assert code in (*PASSING, grpc.StatusCode.DEADLINE_EXCEEDED)
    b.start()
    answer = retried(cluster, "CreateSnapshot", request)
    assert (target / "data").read_text() == "kept"
    delete_snapshot(cluster, answer.snapshot.snapshot_id)
    b.unpublish(made.volume_id)
    delete(cluster, made.volume_id)


def test_volumes_are_served_while_the_api_server_is_away(cluster: Cluster) -> None:
    b = node_b(cluster)
    made = create(cluster, "vol-1", requisite=["node-b"])
    other = create(cluster, "vol-2", requisite=["node-b"])
    target = b.publish(made.volume_id)
    cluster.server.stop()
    try:
        (target / "data").write_text("still here")
        b.unpublish(made.volume_id)
        assert (b.publish(made.volume_id) / "data").read_text() == "still here"
        b.kill()
        b.start()  # also for a node that starts meanwhile
        assert "reconcilers wait for" in b.get("/readyz")[1]
        b.publish(other.volume_id)
        wanted = create_volume("vol-3", size=SIZE)
        code, text = refusal(cluster.controller, "Controller.CreateVolume", wanted)
        assert (code, "API server" in text) == (grpc.StatusCode.UNAVAILABLE, True)
        cluster.controller.kill()
        cluster.controller.launch()
        poll(lambda: "waiting for the API server" in cluster.controller.get("/readyz")[1])
        assert cluster.controller.get("/healthz")[0] == 200
        probed = cluster.controller.call("Identity.Probe", csi_pb2.ProbeRequest())
        assert probed.ready.value, "who waits need not be restarted"
        asked = csi_pb2.ControllerGetCapabilitiesRequest()
        told = cluster.controller.call("Controller.ControllerGetCapabilities", asked)
        assert told.capabilities, "a sidecar that starts meanwhile would end"
        code, text = refusal(cluster.controller, "Controller.CreateVolume", wanted)
        assert (code, "it waits for" in text) == (grpc.StatusCode.UNAVAILABLE, True)
    finally:
        cluster.server.start()
    poll(cluster.controller.is_ready)
    for volume_id in (made.volume_id, other.volume_id):
        b.unpublish(volume_id)
        delete(cluster, volume_id)


def test_a_volume_in_use_is_not_deleted_until_it_is_let_go(cluster: Cluster) -> None:
    b = node_b(cluster)
    made = create(cluster, "vol-1", requisite=["node-b"])
    (b.publish(made.volume_id) / "data").write_text("in use")
    request = csi_pb2.DeleteVolumeRequest(volume_id=made.volume_id)
    for _ in range(2):
        code, text = refusal(cluster.controller, "Controller.DeleteVolume", request)
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert "is in use by" in text
    assert (b.target(made.volume_id) / "data").read_text() == "in use"
    b.unpublish(made.volume_id)
    poll(lambda: not b.volume_file(made.volume_id).exists(), timeout_s=10, what="it goes at once")
    delete(cluster, made.volume_id)


def test_an_orderly_stop_touches_no_volume(cluster: Cluster) -> None:
    b = node_b(cluster)
    made = create(cluster, "vol-1", requisite=["node-b"])
    target = b.publish(made.volume_id)
    (target / "data").write_text("kept")
    before = (mounts_of(b.data_dir), loops_below(b.data_dir))
    assert b.stop() == 0
    assert cluster.controller.stop() == 0
    assert (mounts_of(b.data_dir), loops_below(b.data_dir)) == before
    assert (target / "data").read_text() == "kept"
    b.start()
    cluster.controller.start()
    b.unpublish(made.volume_id)
    delete(cluster, made.volume_id)


def test_nodes_and_controller_say_how_they_are(cluster: Cluster) -> None:
    pools = {pool["spec"]["nodeID"]: pool for pool in cluster.api.list("Pool", SYSTEM)}
    assert set(pools) == {"node-a", "node-b"}
    pool = pools["node-b"]
    assert pool["metadata"]["labels"]["shorthorn.io/node"] == "node-b"
    assert pool["spec"]["nodeTags"] == ["tag-node-b"]
    assert pool["status"]["heartbeatAt"]
    metrics = node_b(cluster).get("/metrics")[1]
    assert (
        f'shorthorn_pool_capacity_bytes{{node="node-b",pool="{pool["metadata"]["name"]}"}}'
        in metrics
    )
    assert "process_resident_memory_bytes" in metrics
    poll(lambda: "shorthorn_leading 1.0" in cluster.controller.get("/metrics")[1])
    assert "leader: controller" in cluster.controller.get("/readyz")[1]


def test_the_controller_refuses_to_live_beside_longhorn(cluster: Cluster) -> None:
    image = {
        "apiVersion": "longhorn.io/v1beta2",
        "kind": "BackingImage",
        "metadata": {
            "name": "foreign",
            "namespace": SYSTEM,
            "labels": {"longhorn.io/component": "backing-image"},
        },
        "spec": {"sourceType": "upload"},
    }
    cluster.controller.stop()
    cluster.api.create(image)
    try:
        cluster.controller.launch()
        assert cluster.controller.process is not None
        assert cluster.controller.process.wait(60) == 1
        last = cluster.controller.said().splitlines()[-1]
        assert last.startswith(
            f"shorthorn: namespace {SYSTEM} has BackingImages that Longhorn made"
        )
        assert "foreign" in last
    finally:
        cluster.api.delete("BackingImage", SYSTEM, "foreign")
