"""containerd and a kubelet on each machine: nodes that are Ready and run pods.

Owns their configuration and their processes. Must never: know Shorthorn. Called by `installation`.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from tests.e2e.cluster.control_plane import ControlPlane
from tests.e2e.cluster.pods.machines import Machine
from tests.e2e.cluster.processes import BINARIES, Process, binary
from tests.integration.daemon_process import poll
from tests.integration.service_api import Object

_SOCKET = "/run/containerd/containerd.sock"
_CNI_PROGRAMS = "/usr/lib/cni"
PAUSE = "localhost/pause:e2e"


class KubeNode:
    """A node of a cluster that is one: a kubelet with its containers."""

    def __init__(self, plane: ControlPlane, machine: Machine, pods: str) -> None:
        self.machine = machine
        self.name = machine.name
        self._plane = plane
        self._etc = machine.directory / "etc"
        self._pods = pods
        path = f"{BINARIES}:{os.environ['PATH']}:/usr/sbin:/sbin"
        self.containerd = plane.add(
            f"{self.name}.containerd",
            machine.command(binary("containerd"), f"--config={self._etc / 'containerd.toml'}"),
            lambda: self.ctr("version").returncode == 0,
            environment={"PATH": path},
        )
        self.kubelet = plane.add(
            f"{self.name}.kubelet",
            machine.command(*self._kubelet_command()),
            self.is_ready,
            environment={"PATH": path},
        )

    def launch(self) -> None:
        """Start its programs without waiting for the kubelet."""
        self._write_files()
        self.containerd.start()
        self.kubelet.launch()

    def restart_kubelet(self) -> None:
        """Start the kubelet again; return when it has reported the node anew."""
        since = self._heard_of()
        self.kubelet.launch()
        poll(lambda: self._heard_of() != since, what=self.kubelet.tail())
        self.kubelet.wait_ready()

    def ctr(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run containerd's own client on this node."""
        argv = self.ctr_command(*arguments)
        return subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)

    def ctr_command(self, *arguments: str) -> list[str]:
        client = [binary("ctr"), f"--address={_SOCKET}", "--namespace=k8s.io"]
        return self.machine.command(*client, *arguments)

    def is_ready(self) -> bool:
        """Whether the node's own kubelet says that it is well."""
        return is_ready(self._plane.api.find("Node", "", self.name))

    def _heard_of(self) -> str:
        lease = self._plane.api.get("Lease", "kube-node-lease", self.name)
        return str(lease["spec"]["renewTime"])

    def _kubelet_command(self) -> list[str]:
        user = self._plane.kubeconfig_for_user(f"system:node:{self.name}", ("system:nodes",))
        return [
            binary("kubelet"),
            f"--config={self._etc / 'kubelet.yaml'}",
            f"--kubeconfig={user}",
            f"--hostname-override={self.name}",
            f"--node-ip={self.machine.network.address}",
            "--v=2",
        ]

    def _write_files(self) -> None:
        self._etc.mkdir()
        (self._etc / "cni").mkdir()
        (self._etc / "cni" / "pods.conflist").write_text(json.dumps(self._cni()))
        (self._etc / "kubelet.yaml").write_text(yaml.safe_dump(self._kubelet_configuration()))
        # JSON's strings are TOML's.
        (self._etc / "containerd.toml").write_text(
            _CONTAINERD.format(
                socket=json.dumps(_SOCKET),
                pause=json.dumps(PAUSE),
                programs=json.dumps(_CNI_PROGRAMS),
                networks=json.dumps(str(self._etc / "cni")),
            )
        )

    def _cni(self) -> dict[str, Any]:
        addresses = {
            "type": "host-local",
            "ranges": [[{"subnet": self._pods}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        }
        link = {"type": "ptp", "ipMasq": False, "ipam": addresses}
        return {"cniVersion": "1.0.0", "name": "pods", "plugins": [link]}

    def _kubelet_configuration(self) -> dict[str, Any]:
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(self._plane.authority.certificate)},
            },
            "authorization": {"mode": "Webhook"},
            "containerRuntimeEndpoint": f"unix://{_SOCKET}",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self.machine.cgroup}",
            "enforceNodeAllocatable": [],
            # These machines have version 1; and the kubelet's own adjustment is not permitted.
            "failCgroupV1": False,
            "oomScoreAdj": 0,
            "failSwapOn": False,
            "makeIPTablesUtilChains": False,
            "resolvConf": "",
            "readOnlyPort": 0,
            # A test machine's disk may be fuller than a node's should be.
            "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%"},
            "imageGCHighThresholdPercent": 100,
            # A volume grows at the next look at its pod; once a minute is usual.
            "syncFrequency": "3s",
        }


_CONTAINERD = """version = 3
[grpc]
address = {socket}
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = {pause}
[plugins.'io.containerd.cri.v1.runtime']
# Without CAP_SYS_RESOURCE nobody may lower it, and runc ends in mid-start.
restrict_oom_score_adj = true
# A block volume's device is its pod's user's; else it is root's, and only root can use it.
device_ownership_from_security_context = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = [{programs}]
conf_dir = {networks}
"""


def is_ready(node: Object | None) -> bool:
    """Whether a Node's condition Ready is True."""
    conditions = ((node or {}).get("status") or {}).get("conditions") or []
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


@contextlib.contextmanager
def kubelets(
    plane: ControlPlane, machines: Sequence[Machine], images: Path
) -> Iterator[list[KubeNode]]:
    """Nodes that are Ready and can reach each other's pods; their containers end with them."""
    # Beside 198.18.N.0/24, where the nodes are, is 198.19.N.0/24 for pods: all of it kept for tests.
    third = int(plane.address.split(".")[2])
    ranges = list(ipaddress.ip_network(f"198.19.{third}.0/24").subnets(new_prefix=26))
    made = [KubeNode(plane, m, str(r)) for m, r in zip(machines, ranges, strict=False)]
    for machine, pods in zip(machines, ranges, strict=False):
        _route(["ip"], str(pods), machine.network.address)
        for other in machines:
            if other is not machine:
                ip = ["ip", "-n", other.network.name]
                _route(ip, str(pods), machine.network.address)
    for node in made:
        node.launch()
    importing = [subprocess.Popen(n.ctr_command("images", "import", str(images))) for n in made]
    assert [process.wait() for process in importing] == [0] * len(made)
    for node in made:
        node.kubelet.wait_ready()
    yield made


def _route(ip: Sequence[str], to: str, via: str) -> None:
    said = subprocess.run([*ip, "route", "add", to, "via", via], capture_output=True, check=False)
    assert said.returncode == 0, said.stderr.decode()
