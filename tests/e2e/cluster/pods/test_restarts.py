"""Kubelets, drivers and nodes go away and come back under pods that write."""

from __future__ import annotations

from typing import Any

import pytest
from tests.e2e.cluster.pods.installation import Installation
from tests.e2e.cluster.pods.kubelets import KubeNode, is_ready
from tests.e2e.cluster.pods.test_volumes import IMAGES
from tests.e2e.cluster.pods.workloads import COUNTING, DIRECTORY, PodUser, identity
from tests.e2e.cluster.release import NAMESPACE
from tests.e2e.cluster.users import PATIENCE_S
from tests.integration.daemon_process import poll
from tests.integration.service_api import Object

pytestmark = pytest.mark.root

DAEMONSET = "shorthorn-node"
_MANY = 16


def test_a_pod_outlives_its_kubelet(own: PodUser, installed: Installation) -> None:
    """A kubelet is killed: its pod writes on, is the same one afterwards, and unmounts cleanly."""
    node = installed.node("node-1")
    own.claim("a")
    before = own.start("a", "a", COUNTING, node=node.name)
    node.kubelet.kill()
    writes_on(node, before)
    node.restart_kubelet()
    assert identity(own.ready_pod("a")) == identity(before)
    counted = own.counted("a")
    own.end("a")
    assert mounted_on(node, before) == ""
    own.start("b", "a")
    assert own.counted("b") >= counted


def test_a_pod_deleted_while_its_kubelet_is_away_is_unmounted_later(
    own: PodUser, installed: Installation
) -> None:
    """A kubelet that comes back finds a mounted volume whose pod nobody wants any more."""
    node = installed.node("node-0")
    own.claim("a")
    pod = own.start("a", "a", node=node.name)
    node.kubelet.kill()
    own.plane.kubectl("delete", "pod", "a", "--force", f"--namespace={own.namespace}")
    assert mounted_on(node, pod) != ""
    node.restart_kubelet()
    poll(lambda: not mounted_on(node, pod), timeout_s=PATIENCE_S, what="still mounted")
    own.start("b", "a")


def test_the_driver_is_replaced_under_a_pod(own: PodUser, installed: Installation) -> None:
    """A rolling update replaces the DaemonSet's pods; mounts stay and all works."""
    node = installed.node("node-0")
    own.claim("a")
    before = own.start("a", "a", COUNTING, node=node.name)
    old = installed.driver_on(node.name)["metadata"]
    where = (f"daemonset/{DAEMONSET}", f"--namespace={NAMESPACE}")
    installed.plane.kubectl("rollout", "restart", *where)
    # The other node's may be first.
    gone = {"timeout_s": 120.0}
    own.api.wait("Pod", NAMESPACE, old["name"], lambda pod: pod is None, **gone)
    writes_on(node, before)
    installed.plane.kubectl("rollout", "status", *where, "--timeout=120s")
    assert installed.driver_on(node.name)["metadata"]["uid"] != old["uid"]
    everything_works(own, node, before)


def test_the_driver_is_killed_under_a_pod(own: PodUser, installed: Installation) -> None:
    """The driver's process is killed in its container: the kubelet starts it again."""
    node = installed.node("node-0")
    own.claim("a")
    before = own.start("a", "a", COUNTING, node=node.name)
    kill_driver(installed, node)
    everything_works(own, node, before)


def test_a_node_is_reset_under_a_pod(own: PodUser, installed: Installation) -> None:
    """All of a node ends at once; when it is back, its pod goes on with its volume."""
    node = installed.node("node-1")
    own.claim("a")
    before = own.start("a", "a", COUNTING, node=node.name)
    counted = own.counted("a")
    node.reset()

    def is_again(pod: Object | None) -> bool:
        return pod is not None and is_ready(pod) and identity(pod) != identity(before)

    after = own.api.wait("Pod", own.namespace, "a", is_again, timeout_s=PATIENCE_S)
    assert after is not None
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert own.counted("a") >= counted
    installed.wait_ready()


def test_a_drained_node_gets_its_pod_back(own: PodUser, installed: Installation) -> None:
    """A drain evicts a StatefulSet's pod, which has its volume again after the uncordon."""
    own.api.client.post(
        f"/apis/apps/v1/namespaces/{own.namespace}/statefulsets", json=stateful(own)
    ).raise_for_status()
    first = own.ready_pod("s-0")
    node = first["spec"]["nodeName"]
    counted = own.counted("s-0")
    # What is in the controller's emptyDir, its socket, is made anew elsewhere.
    options = ("--ignore-daemonsets", "--delete-emptydir-data", "--timeout=100s")
    try:
        installed.plane.kubectl("drain", node, *options)
        waiting = own.api.wait("Pod", own.namespace, "s-0", _cannot_be_scheduled)
        assert waiting is not None
        assert waiting["metadata"]["uid"] != first["metadata"]["uid"]
        assert mounted_on(installed.node(node), first) == ""
        assert own.bound("v-s-0")["status"]["phase"] == "Bound"
    finally:
        installed.plane.kubectl("uncordon", node)
    assert own.ready_pod("s-0")["spec"]["nodeName"] == node
    assert len(own.run("s-0", f"cat {DIRECTORY}/count").split()) >= counted
    installed.wait_ready()


@pytest.mark.full
def test_many_pods_come_and_go_while_drivers_do(own: PodUser, installed: Installation) -> None:
    """Drivers are deleted again and again in mid-mount; all pods start, and all volumes go."""
    names = [f"p{i}" for i in range(_MANY)]
    for i, name in enumerate(names):
        own.claim(name, volumeMode="Block" if i % 4 == 3 else "Filesystem")
        own.create(name, name)
    for node in installed.nodes * 2:
        delete_driver(installed, node)
    for name in names:
        own.ready_pod(name)
    for name in names:
        own.api.delete("Pod", own.namespace, name)
        own.api.delete("PersistentVolumeClaim", own.namespace, name)
    for node in installed.nodes:
        delete_driver(installed, node)
    for name in names:
        own.api.wait_gone("Pod", own.namespace, name)
        own.api.wait_gone("PersistentVolumeClaim", own.namespace, name)


def everything_works(own: PodUser, node: KubeNode, before: Object) -> None:
    """A pod went on writing in its mounts of before; snapshots, new mounts and unmounting work."""
    count = own.counted("a")
    poll(lambda: own.counted("a") > count, what="it writes no more")
    assert identity(own.ready_pod("a")) == identity(before)
    own.snapshot("image", "a", IMAGES)
    own.image_of("image")
    own.claim("restored", snapshot="image")
    own.start("reader", "restored", node=node.name)
    assert own.counted("reader") >= count
    own.end("a")
    assert mounted_on(node, before) == ""
    own.start("again", "a")
    assert own.counted("again") > count


def delete_driver(installed: Installation, node: KubeNode) -> None:
    """Delete the driver's pod; return when its successor is ready."""
    name = installed.driver_on(node.name)["metadata"]["name"]
    installed.api.delete("Pod", NAMESPACE, name)
    installed.api.wait_gone("Pod", NAMESPACE, name)
    installed.driver_on(node.name)


def kill_driver(installed: Installation, node: KubeNode) -> None:
    """Kill the driver's process as `kill -9` does; return when its container is another one."""
    pod = installed.driver_on(node.name)
    found = node.machine.run("pgrep", "--full", f"shorthorn node --node-id={node.name}")
    assert len(found.stdout.split()) == 1, found
    assert node.machine.run("kill", "-KILL", *found.stdout.split()).returncode == 0

    def is_new() -> bool:
        return _driver(installed.driver_on(node.name)) != _driver(pod)

    poll(is_new, timeout_s=PATIENCE_S, what="the driver's container is not started again")


def _driver(pod: Object) -> tuple[Any, ...]:
    (status,) = (s for s in pod["status"]["containerStatuses"] if s["name"] == "shorthorn")
    return status["containerID"], status["restartCount"]


def writes_on(node: KubeNode, pod: Object) -> None:
    """Wait until the count of a pod goes on; read on its node, without any kubelet."""

    def count() -> int:
        file = f"{mounted_on(node, pod)}/count"
        return len(node.machine.run("cat", file).stdout.split())

    before = count()
    poll(lambda: count() > before + 5, what="it writes no more")


def mounted_on(node: KubeNode, pod: Object) -> str:
    """Return where a pod's volume is mounted on its node, or nothing."""
    uid = pod["metadata"]["uid"]
    said = node.machine.run(
        "grep", "-o", f"[^ ]*{uid}/volumes/kubernetes.io.csi[^ ]*", "/proc/mounts"
    )
    return said.stdout.strip()


def stateful(own: PodUser) -> Object:
    """Return a StatefulSet of one pod that counts in a volume of its own."""
    labels = {"app": "s"}
    spec = own.pod_spec({}, COUNTING)
    del spec["volumes"]
    claim = {
        "storageClassName": "longhorn",
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "64Mi"}},
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": "s", "namespace": own.namespace},
        "spec": {
            "serviceName": "s",
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": spec},
            "volumeClaimTemplates": [{"metadata": {"name": "v"}, "spec": claim}],
        },
    }


def _cannot_be_scheduled(pod: Object | None) -> bool:
    conditions = ((pod or {}).get("status") or {}).get("conditions") or []
    return any(c.get("reason") == "Unschedulable" for c in conditions)
