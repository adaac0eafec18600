"""The test cluster itself: what comes up, what our CRDs are worth there, what a kill leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.cluster.control_plane import CRDS, ControlPlane
from tests.e2e.cluster.network import network
from tests.e2e.cluster.processes import ROOT
from tests.integration.daemon_process import poll, processes_naming

CLASS = """
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshotClass
metadata: {name: golden}
driver: driver.longhorn.io
deletionPolicy: Delete
parameters: {type: bi, export-type: qcow2}
"""
IMAGE = """
apiVersion: longhorn.io/v1beta2
kind: BackingImage
metadata: {name: golden, namespace: default}
spec: {sourceType: download, sourceParameters: {url: "http://example.com/a.raw"}}
"""


def test_kubectl_and_server_are_of_one_release(cluster: ControlPlane):
    said = cluster.kubectl("version")
    versions = {line.rsplit(": ", 1)[1] for line in said.splitlines() if "tomize" not in line}
    assert len(versions) == 1
    assert versions.pop().startswith("v1.")


def test_our_crds_are_structural_and_served(cluster: ControlPlane):
    files = sorted(CRDS.glob("*.yaml"))
    assert len(files) >= 8
    for path in files:
        said = cluster.kubectl("get", "-f", str(path), "-o", "yaml")
        assert "NonStructuralSchema" not in said
        assert "type: Established" in said


def test_crds_are_applied_again_without_change(cluster: ControlPlane):
    versions = ("get", "crd", "-o", "jsonpath={.items[*].metadata.resourceVersion}")
    before = cluster.kubectl(*versions)
    cluster.apply(CRDS)
    assert cluster.kubectl(*versions) == before


def test_a_snapshot_class_is_applied(cluster: ControlPlane):
    assert "golden created" in cluster.apply(CLASS)
    assert "golden unchanged" in cluster.apply(CLASS)
    cluster.kubectl("delete", "volumesnapshotclass", "golden")


def test_the_rules_of_our_crds_are_judged_by_the_server(cluster: ControlPlane):
    cluster.apply(IMAGE)
    patch = '{"spec": {"sourceType": "upload"}}'
    refused = cluster.try_kubectl("patch", "backingimage", "golden", "--type=merge", "-p", patch)
    assert "sourceType is immutable" in refused.stderr
    cluster.kubectl("delete", "backingimage", "golden")


def test_the_snapshot_controller_leads_and_has_no_complaint(cluster: ControlPlane):
    assert cluster.processes["snapshot-controller"].is_running
    assert cluster.holder("snapshot-controller-leader")


def test_a_service_account_may_do_what_its_roles_say_and_no_more(cluster: ControlPlane):
    cluster.kubectl("create", "serviceaccount", "reader")
    kubeconfig = cluster.kubeconfig_for_service_account("default", "reader")
    refused = cluster.try_kubectl("get", "backingimages", kubeconfig=kubeconfig)
    assert "is forbidden" in refused.stderr
    rule = ("--verb=list", "--resource=backingimages.longhorn.io")
    cluster.kubectl("create", "role", "reader", *rule)
    cluster.kubectl(
        "create", "rolebinding", "reader", "--role=reader", "--serviceaccount=default:reader"
    )
    poll(
        lambda: cluster.try_kubectl("get", "backingimages", kubeconfig=kubeconfig).returncode == 0,
        what="the role does not count",
    )


def test_a_node_by_hand_is_ready_and_takes_pods(cluster: ControlPlane):
    cluster.add_node("by-hand", labels={"room": "one"})
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p", "namespace": "default"},
        "spec": {"nodeSelector": {"room": "one"}, "containers": [{"name": "c", "image": "none"}]},
    }
    cluster.apply(pod)
    found = cluster.api.wait(
        "Pod", "default", "p", lambda p: bool((p or {})["spec"].get("nodeName"))
    )
    assert found is not None
    assert found["spec"]["nodeName"] == "by-hand"
    cluster.kubectl("delete", "pod", "p", "--force")
    cluster.kubectl("delete", "node,csinode", "by-hand")


@pytest.mark.parametrize("name", ["kube-apiserver", "etcd"])
def test_objects_survive_the_kill_of(own_cluster: ControlPlane, name: str):
    own_cluster.kubectl("create", "configmap", f"before-{name}")
    own_cluster.kill(name)
    if name == "kube-apiserver":
        assert own_cluster.try_kubectl("get", "ns").returncode != 0
    own_cluster.restart(name)
    # The API server finds its etcd again in its own time.
    get = ("get", "configmap", f"before-{name}")
    poll(lambda: own_cluster.try_kubectl(*get).returncode == 0, what=f"the object after {name}")
    own_cluster.kubectl("create", "configmap", f"after-{name}")


def test_the_snapshot_controller_leads_again_after_a_kill(own_cluster: ControlPlane):
    process = own_cluster.processes["snapshot-controller"]
    lease = ("snapshot-controller", "snapshot-controller-leader", "kube-system")
    own_cluster.kill("snapshot-controller")
    assert own_cluster.holder("snapshot-controller-leader")
    assert not own_cluster.leads(process, *lease)
    own_cluster.restart("snapshot-controller")
    assert own_cluster.leads(process, *lease)


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has made a control plane and a network, and waits."""
    code = (
        "import sys; from pathlib import Path\n"
        "from tests.e2e.cluster.control_plane import control_plane\n"
        "from tests.e2e.cluster.network import network\n"
        "with control_plane(Path(sys.argv[1])), network(2) as made:\n"
        "    print(made.nodes[0].name, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "cluster")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_nothing_outlives_a_test_run_that_is_killed(victim: subprocess.Popen[str], tmp_path: Path):
    assert victim.stdout is not None
    namespace = victim.stdout.readline().strip()
    directory = str(tmp_path / "cluster")
    ours = [pid for pid in processes_naming(directory) if pid != victim.pid]
    assert len(ours) == 5
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    poll(lambda: not processes_naming(directory), what="processes outlive their parent")
    with network(0):
        listed = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
    assert namespace not in listed
