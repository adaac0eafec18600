"""A kubelet on each machine: nodes that are Ready and run pods.

Owns its configuration and its process. Must never: know Shorthorn. Called by `installation`.
"""

from __future__ import annotations

from typing import Any

import httpx2
import yaml
from tests.e2e.cluster.control_plane import ControlPlane
from tests.e2e.cluster.pods.runtimes import PATH, SOCKET, Runtime
from tests.e2e.cluster.processes import binary
from tests.integration.daemon_process import poll
from tests.integration.service_api import Object


class KubeNode:
    """A node of a cluster that is one: a machine with containerd and a kubelet."""

    def __init__(self, plane: ControlPlane, runtime: Runtime) -> None:
        self.machine = runtime.machine
        self.name = runtime.machine.name
        self._plane = plane
        self._runtime = runtime
        self._file = self.machine.directory / "etc" / "kubelet.yaml"
        user = plane.kubeconfig_for_user(f"system:node:{self.name}", ("system:nodes",))
        self._arguments = (
            f"--config={self._file}",
            f"--kubeconfig={user}",
            f"--hostname-override={self.name}",
            f"--node-ip={self.machine.network.address}",
        )
        self.kubelet = plane.add(
            f"{self.name}.kubelet",
            (),
            lambda: is_ready(plane.api.find("Node", "", self.name)),
            environment={"PATH": PATH},
        )

    def launch(self) -> None:
        """Start the kubelet without waiting for it."""
        self._file.write_text(yaml.safe_dump(self._configuration()))
        self.kubelet.command = self.machine.command(binary("kubelet"), *self._arguments)
        self.kubelet.launch()

    def wait_ready(self) -> None:
        """Return when the Node is Ready and has all images."""
        self._runtime.wait_for_images()
        self.kubelet.wait_ready()

    def restart_kubelet(self) -> None:
        """Start the kubelet again; return when it knows its pods and can be asked of them."""
        self.launch()
        poll(self._knows_its_pods, what=f"pods of {self.name}; see {self.kubelet.log}")
        self.kubelet.wait_ready()

    def reset(self) -> None:
        """Boot the machine anew without having shut it down; return as `restart_kubelet` does."""
        self.machine.stop()
        self.kubelet.kill()
        self._runtime.stop()
        self.machine.start()
        self._runtime.start_again()
        self.restart_kubelet()

    def _knows_its_pods(self) -> bool:
        try:
            answer = self._plane.api.client.get(f"/api/v1/nodes/{self.name}/proxy/pods")
        except httpx2.TransportError:
            return False
        if answer.status_code != 200:
            return False
        known = {pod["metadata"]["uid"] for pod in answer.json()["items"] or []}
        pods = self._plane.api.list("Pod")
        its = {p["metadata"]["uid"] for p in pods if p["spec"].get("nodeName") == self.name}
        return its <= known

    def _configuration(self) -> dict[str, Any]:
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(self._plane.authority.certificate)},
            },
            "authorization": {"mode": "Webhook"},
            "containerRuntimeEndpoint": f"unix://{SOCKET}",
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


def is_ready(obj: Object | None) -> bool:
    """Whether the condition Ready of a Node or Pod is True."""
    conditions = ((obj or {}).get("status") or {}).get("conditions") or []
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
