"""Shorthorn in a test cluster: exactly what the chart renders, as processes of this machine.

Owns: rendering and applying the chart, and the processes of its pods. There is no kubelet, so this
plays one for our own pods: each container's program runs with the arguments and the environment of
its manifest, under its pod's service account, with the pod's volumes as directories. Must never:
give a program a right, an option or a file that its manifest does not name; what is added is what a
pod has mounted, the way to the API server and its namespace, and short leases. Called by tests.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.e2e.chart import ValueSet, find_helm, render
from tests.e2e.cluster.control_plane import ControlPlane, control_plane
from tests.e2e.cluster.network import Network, NetworkNode, network
from tests.e2e.cluster.node_calls import NodeCalls
from tests.e2e.cluster.processes import ROOT, Process, binary, on_host
from tests.integration import storage
from tests.integration.daemon_process import poll, release

NAMESPACE = "longhorn-system"
SNAPSHOT_CRDS = ROOT / "deploy" / "manifests" / "snapshot-crds.yaml"
DRIVER = "driver.longhorn.io"
TOPOLOGY = "topology.shorthorn.io/node"
NODE_LABELS = {"kubernetes.io/os": "linux"}
_REFERENCE = re.compile(r"\$\(([A-Z_]+)\)")
#: They speak to a kubelet.
_NOT_RUN = ("node-driver-registrar", "livenessprobe")
#: A sidecar finds its namespace in a file that a kubelet mounts; and a lease that its holder has
#: left is to be taken over after seconds.
_FOR_SIDECARS = (
    f"--leader-election-namespace={NAMESPACE}",
    "--leader-election-lease-duration=6s",
    "--leader-election-renew-deadline=4s",
    "--leader-election-retry-period=1s",
)


Documents = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Machine:
    """A node before anything of ours is on it.

    Args: disk: what is mounted at its data directory; None: the machine's own file system is there.
    """

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    disk: storage.Storage | None = None
    disk_bytes: int = 0

    @property
    def all_labels(self) -> dict[str, str]:
        return {**NODE_LABELS, TOPOLOGY: self.name, **self.labels}


@dataclass(frozen=True)
class Layout:
    """What the chart is told, and the nodes that it finds."""

    values: Mapping[str, Any]
    machines: tuple[Machine, ...]


#: For most tests. A claim of 5 GiB, as the page has it, is scheduled only where so much is free.
THREE_NODES = Layout(
    {"node": {"poolSize": "6G"}}, tuple(Machine(f"node-{index}") for index in range(3))
)


@dataclass
class Pod:
    """One pod of ours: where its volumes are, and its containers' processes by their names."""

    name: str
    directory: Path
    network: NetworkNode
    socket: Path
    processes: dict[str, Process] = field(default_factory=dict)

    @property
    def driver(self) -> Process:
        """The container with our own program."""
        return self.processes["shorthorn"]

    def start(self) -> None:
        """Start every container, the driver first: sidecars wait for its socket."""
        for process in self.processes.values():
            process.launch()
        for process in self.processes.values():
            process.wait_ready()

    def kill(self) -> None:
        for process in self.processes.values():
            process.kill()


class Node(Pod):
    """A pod of the DaemonSet, with what a kubelet does on its node."""

    @property
    def data_dir(self) -> Path:
        return self.directory / "data"

    @property
    def pool(self) -> Path:
        return self.data_dir / "pool"

    @property
    def calls(self) -> NodeCalls:
        return NodeCalls(self.socket, self.directory / "kubelet")


class Release:
    """The chart's objects in a cluster, and its pods. Made by `installed`."""

    def __init__(
        self, plane: ControlPlane, net: Network, machines: Sequence[Machine], documents: Documents
    ) -> None:
        self.plane = plane
        self.documents = documents
        self.controllers: list[Pod] = []
        self.nodes: list[Node] = []
        self._machines = machines
        self._network = net

    def install(self) -> None:
        """Apply what was rendered, then run the pods that Kubernetes made of it."""
        plane = self.plane
        plane.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
        kinds = [d for d in self.documents if d["kind"] == "CustomResourceDefinition"]
        plane.apply(kinds)
        # As clusters have them: those of the embedded server also take what no cluster takes.
        plane.apply(SNAPSHOT_CRDS)
        plane.kubectl("wait", "crd", "--all", "--for=condition=Established", "--timeout=30s")
        networks = iter(self._network.nodes)
        places = [(machine, next(networks)) for machine in self._machines]
        for machine, node in places:
            self._add_node(machine, node)
        plane.apply([d for d in self.documents if d["kind"] != "CustomResourceDefinition"])
        for machine, node in places:
            pod = Node(machine.name, *self._places(machine.name, node, "kubelet", "plugins"))
            self._add_containers(pod, self._daemon_set_for(machine), node_name=pod.name)
            self.nodes.append(pod)
        deployment = controllers_of(self.documents)
        for name in self._pods_of("controller", deployment["spec"]["replicas"]):
            made = Pod(name, *self._places(f"c{len(self.controllers)}", next(networks), "socket"))
            self._add_containers(made, deployment, node_name="")
            self.controllers.append(made)
        for one in (*self.nodes, *self.controllers):
            one.start()
        poll(lambda: len(self.pools()) == len(self.nodes), what="pools of all nodes")

    def _places(self, name: str, node: NetworkNode, *where: str) -> tuple[Path, NetworkNode, Path]:
        directory = self.plane.directory / name
        plugin = Path(*where) / (DRIVER if len(where) > 1 else "") / "csi.sock"
        return directory, node, directory / plugin

    def _add_node(self, machine: Machine, node: NetworkNode) -> None:
        driver = {"name": DRIVER, "nodeID": machine.name, "topologyKeys": [TOPOLOGY]}
        self.plane.add_node(
            machine.name, address=node.address, labels=machine.all_labels, drivers=[driver]
        )

    def _daemon_set_for(self, machine: Machine) -> dict[str, Any]:
        """Return the one DaemonSet that chooses a node."""
        labels = machine.all_labels.items()
        (found,) = (
            d
            for d in self.documents
            if d["kind"] == "DaemonSet"
            and d["spec"]["template"]["spec"]["nodeSelector"].items() <= labels
        )
        return dict(found)

    def _pods_of(self, component: str, count: int) -> list[str]:
        """Return the names of the pods that the Deployment's controller made."""

        def found() -> list[str]:
            return [
                pod["metadata"]["name"]
                for pod in self.plane.api.list("Pod", NAMESPACE)
                if pod["metadata"]["labels"].get("app.kubernetes.io/component") == component
            ]

        poll(lambda: len(found()) == count, what=f"pods of the {component}")
        return sorted(found())

    def _add_containers(self, pod: Pod, workload: Mapping[str, Any], *, node_name: str) -> None:
        spec = workload["spec"]["template"]["spec"]
        kubeconfig = self.plane.kubeconfig_for_service_account(
            NAMESPACE, spec["serviceAccountName"]
        )
        facts = {
            "metadata.name": pod.name,
            "metadata.namespace": NAMESPACE,
            "spec.nodeName": node_name,
            "status.podIP": pod.network.address,
        }
        for container in spec["containers"]:
            if container["name"] in _NOT_RUN:
                continue
            environment = _environment(container, facts)
            arguments = [
                _mapped(_REFERENCE.sub(lambda m: environment[m[1]], text), container, pod.directory)  # noqa: B023
                for text in container["args"]
            ]
            is_ours = container["name"] == "shorthorn"
            program = (
                [sys.executable, "-m", "shorthorn"] if is_ours else [binary(container["name"])]
            )
            more = () if is_ours else _FOR_SIDECARS
            argv = [*program, *arguments, f"--kubeconfig={kubeconfig}", *more]
            process = self.plane.add(
                f"{pod.name}.{container['name']}",
                pod.network.command(*on_host(pod.name, argv)),
                environment=environment,
            )
            if is_ours:
                process.is_ready = _has_said(process, "ready: ")
            pod.processes[container["name"]] = process

    def pools(self) -> list[dict[str, Any]]:
        return [p for p in self.plane.api.list("Pool", NAMESPACE) if p.get("status")]

    def node(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)

    def node_of(self, volume_id: str) -> Node:
        """Return the node that a volume is on."""
        volume = self.plane.api.get("Volume", NAMESPACE, volume_id)
        return self.node(volume["spec"]["nodeID"])

    def left(self) -> list[str]:
        """Return what is in the pools."""
        kinds = ("volumes", "snapshots", "images", "staging/*")
        return [
            str(path)
            for node in self.nodes
            for kind in kinds
            for path in node.pool.glob(f"{kind}/*")
        ]

    def leader(self) -> Pod:
        """Return the controller pod that holds the lease."""
        holder = self.plane.holder("shorthorn-controller", NAMESPACE)
        return next(pod for pod in self.controllers if pod.name == holder)


def controllers_of(documents: Documents) -> dict[str, Any]:
    """Return the one Deployment of controllers."""
    (found,) = (d for d in documents if d["kind"] == "Deployment")
    return dict(found)


def _has_said(process: Process, text: str) -> Callable[[], bool]:
    return lambda: text in process.said()


def _environment(container: Mapping[str, Any], facts: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of a container, as a kubelet sets them."""
    return {
        entry["name"]: entry.get("value") or facts[entry["valueFrom"]["fieldRef"]["fieldPath"]]
        for entry in container.get("env", [])
    }


def _mapped(argument: str, container: Mapping[str, Any], directory: Path) -> str:
    """Return an argument with its path in a volume of the pod as the path on this machine."""
    option, is_option, value = argument.partition("=")
    mounts = sorted(container["volumeMounts"], key=lambda m: -len(m["mountPath"]))
    for mount in mounts:
        if is_option and f"{value}/".startswith(f"{mount['mountPath']}/"):
            place = directory / mount["name"]
            return f"{option}={place}{value.removeprefix(mount['mountPath'])}"
    return argument


@contextlib.contextmanager
def installed(directory: Path, layout: Layout = THREE_NODES) -> Iterator[Release]:
    """A control plane with the chart in it, whose nodes and controllers run.

    Everything is gone at the end: processes, mounts, loop devices, namespaces.
    """
    helm = find_helm()
    assert helm is not None, "run scripts/e2e-tools helm"
    documents = render(helm, ValueSet("e2e", layout.values), scratch=directory)
    controllers = controllers_of(documents)["spec"]["replicas"]
    with (
        network(len(layout.machines) + controllers) as net,
        control_plane(directory / "k", address=net.address) as plane,
        contextlib.ExitStack() as disks,
    ):
        for machine in layout.machines:
            if machine.disk is not None:
                place = plane.directory / machine.name
                place.mkdir()
                disk = storage.mounted(
                    machine.disk, place, size_bytes=machine.disk_bytes, name="data"
                )
                disks.enter_context(disk)
        made = Release(plane, net, layout.machines, documents)
        try:
            made.install()
            yield made
        finally:
            for pod in (*made.controllers, *made.nodes):
                pod.kill()
            for node in made.nodes:
                node.calls.unmount_everything()
                release(node.data_dir)
