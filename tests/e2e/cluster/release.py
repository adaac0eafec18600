"""Shorthorn in a test cluster: exactly what the chart renders, as processes of this machine.

Owns: rendering and applying the chart, and the processes of its pods. There is no kubelet, so this
plays one for our own pods: each container's program runs with the arguments and the environment of
its manifest, under its pod's service account, with the pod's volumes as directories. Must never:
give a program a right, an option or a file that its manifest does not name; what is added is what a
pod has mounted, the way to the API server and its namespace, and short leases. Called by tests.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.e2e.chart import ValueSet, find_helm, render
from tests.e2e.cluster import rights
from tests.e2e.cluster.control_plane import ControlPlane, control_plane
from tests.e2e.cluster.network import Network, NetworkNode, network
from tests.e2e.cluster.node_calls import NodeCalls
from tests.e2e.cluster.processes import ROOT, Process, binary, cared_for, on_host
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
#: Why sidecars end by themselves, as they say: a kubelet starts them again.
_SIDECARS_END = ("stopped leading", "Lost connection to CSI driver")
#: The lease of each container of a controller's pod that leads.
LEASES = {
    "shorthorn": "shorthorn-controller",
    "csi-provisioner": "driver-longhorn-io",
    "csi-snapshotter": "external-snapshotter-leader-driver-longhorn-io",
    "csi-resizer": "external-resizer-driver-longhorn-io",
}
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
    """What the chart is told, and the nodes that it finds.

    Args: environment: of the sidecars, beyond what their manifests say.
    """

    values: Mapping[str, Any]
    machines: tuple[Machine, ...]
    environment: Mapping[str, str] = field(default_factory=dict)

    def rendered(self, scratch: Path) -> list[dict[str, Any]]:
        """Return every document of the chart, in the order of installation."""
        helm = find_helm()
        assert helm is not None, "run scripts/e2e-tools helm"
        return render(helm, ValueSet("e2e", self.values), scratch=scratch)


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
        self, plane: ControlPlane, net: Network, layout: Layout, documents: Documents
    ) -> None:
        self.plane = plane
        self.documents = documents
        self.controllers: list[Pod] = []
        self.nodes: list[Node] = []
        self._machines = layout.machines
        self._for_sidecars = layout.environment
        self._network = net

    def install(self, write: Callable[[Release], None]) -> None:
        """Make the namespace and the nodes, have the chart's objects written, and run its pods."""
        meta = {"name": NAMESPACE}
        self.plane.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": meta})
        for machine, network_node in zip(self._machines, self._network.nodes, strict=False):
            self._add_node(machine, network_node)
        write(self)
        self.run_pods()

    def run_pods(self) -> None:
        """Run the pods that Kubernetes made of the chart's objects, as they are now."""
        networks = iter(self._network.nodes)
        for machine in self._machines:
            places = self._places(machine.name, next(networks), "kubelet", "plugins")
            self._add_containers(node := Node(machine.name, *places), self._chosen_for(machine))
            self.nodes.append(node)
        for index, name in enumerate(self._pods_of_controllers()):
            made = Pod(name, *self._places(f"c{index}", next(networks), "socket"))
            self._add_containers(made, controllers_of(self.documents))
            self.controllers.append(made)
        for node in self.nodes:
            node.start()
        # The provisioner asks for a node's capacity when it starts, and not again for a minute.
        poll(lambda: len(self.pools()) == len(self.nodes), what="pools of all nodes")
        for controller in self.controllers:
            controller.start()

    def end_pods(self) -> None:
        """End every pod; what it has on its node stays. `run_pods` may follow."""
        for pod in (*self.controllers, *self.nodes):
            for process in pod.processes.values():
                self.plane.forget(process.name)
        self.controllers.clear()
        self.nodes.clear()
        # What the kubelets would say of them now.
        every = ("delete", "pods", "--all", f"--namespace={NAMESPACE}")
        self.plane.kubectl(*every, "--force", "--grace-period=0")

    def clean_up(self) -> None:
        """Take away everything of ours on the nodes."""
        for pod in (*self.controllers, *self.nodes):
            pod.kill()
        for machine in self._machines:
            directory = self.plane.directory / machine.name
            NodeCalls(directory, directory / "kubelet").unmount_everything()
            release(directory / "data")

    def _places(self, name: str, node: NetworkNode, *where: str) -> tuple[Path, NetworkNode, Path]:
        directory = self.plane.directory / name
        plugin = Path(*where) / (DRIVER if len(where) > 1 else "") / "csi.sock"
        return directory, node, directory / plugin

    def _add_node(self, machine: Machine, node: NetworkNode) -> None:
        driver = {"name": DRIVER, "nodeID": machine.name, "topologyKeys": [TOPOLOGY]}
        self.plane.add_node(
            machine.name, address=node.address, labels=machine.all_labels, drivers=[driver]
        )

    def join(self, node: Node) -> None:
        """Have a machine that was taken out of the cluster in it again."""
        machine = next(m for m in self._machines if m.name == node.name)
        self._add_node(machine, node.network)

    def _chosen_for(self, machine: Machine) -> Mapping[str, Any]:
        """Return the one DaemonSet that chooses a node."""
        labels = machine.all_labels.items()
        (found,) = (
            d
            for d in self.documents
            if d["kind"] == "DaemonSet"
            and d["spec"]["template"]["spec"]["nodeSelector"].items() <= labels
        )
        return found

    def _pods_of_controllers(self) -> list[str]:
        """Return the names of the pods of the Deployment, once all are of its present template."""
        name = controllers_of(self.documents)["metadata"]["name"]

        pods: list[str] = []

        def is_rolled_out() -> bool:
            wanted = ("get", "deployment", name, f"--namespace={NAMESPACE}", "--output=json")
            found = json.loads(self.plane.kubectl(*wanted))
            status, replicas = found["status"], found["spec"]["replicas"]
            counts = (status.get("updatedReplicas"), status.get("replicas"))
            is_seen = status.get("observedGeneration") == found["metadata"]["generation"]
            # What the status says may be of pods that were just taken away.
            pods[:] = self._live_pods("controller")
            return is_seen and counts == (replicas, replicas) and len(pods) == replicas

        poll(is_rolled_out, what=f"pods of {name}", interval_s=0.2)
        return sorted(pods)

    def _live_pods(self, component: str) -> list[str]:
        """Return the names of a component's pods that are not going."""
        return [
            pod["metadata"]["name"]
            for pod in self.plane.api.list("Pod", NAMESPACE)
            if pod["metadata"]["labels"].get("app.kubernetes.io/component") == component
            and "deletionTimestamp" not in pod["metadata"]
        ]

    def _add_containers(self, pod: Pod, workload: Mapping[str, Any]) -> None:
        spec = workload["spec"]["template"]["spec"]
        kubeconfig = self.plane.kubeconfig_for_service_account(
            NAMESPACE, spec["serviceAccountName"]
        )
        facts = {
            "metadata.name": pod.name,
            "metadata.namespace": NAMESPACE,
            "spec.nodeName": pod.name if isinstance(pod, Node) else "",
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
            environment.update({} if is_ours else self._for_sidecars)
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

    def objects_left(self) -> list[str]:
        """Return which of our objects of data there are."""
        kinds = ("BackingImage", "ImageCopy", "Snapshot", "Volume")
        return [
            f"{kind} {found['metadata']['name']}"
            for kind in kinds
            for found in self.plane.api.list(kind, NAMESPACE)
        ]

    def leading(self, container: str) -> Pod | None:
        """Return the controller pod whose container leads now, if one does."""
        for pod in self.controllers:
            if self.plane.leads(pod.processes[container], pod.name, LEASES[container], NAMESPACE):
                return pod
        return None

    def leader(self, container: str = "shorthorn") -> Pod:
        """Return the controller pod whose container leads, once one does."""
        found: list[Pod] = []

        def is_led() -> bool:
            pod = self.leading(container)
            found[:] = [] if pod is None else [pod]
            return pod is not None

        poll(is_led, what=f"a {container} that leads")
        return found[0]

    def sidecars(self) -> list[Process]:
        """Return the processes of all controllers but our own program's."""
        return [
            process
            for pod in [*self.controllers]
            for name, process in [*pod.processes.items()]
            if name != "shorthorn"
        ]


def controllers_of(documents: Documents) -> Mapping[str, Any]:
    """Return the one Deployment of controllers."""
    labels = ((d["metadata"].get("labels", {}), d) for d in documents if d["kind"] == "Deployment")
    (found,) = (
        d for given, d in labels if given.get("app.kubernetes.io/component") == "controller"
    )
    return found


def apply_documents(release: Release) -> None:
    """Write what was rendered with kubectl."""
    plane, documents = release.plane, release.documents
    plane.apply([d for d in documents if d["kind"] == "CustomResourceDefinition"])
    # As clusters have them: those of the embedded server also take what no cluster takes.
    plane.apply(SNAPSHOT_CRDS)
    plane.kubectl("wait", "crd", "--all", "--for=condition=Established", "--timeout=90s")
    plane.apply([d for d in documents if d["kind"] != "CustomResourceDefinition"])


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
def installed(
    directory: Path,
    layout: Layout = THREE_NODES,
    write: Callable[[Release], None] = apply_documents,
) -> Iterator[Release]:
    """A control plane with the chart in it, whose nodes and controllers run.

    Everything is gone at the end: processes, mounts, loop devices, namespaces.

    Args: write: what puts the chart's objects into the cluster.
    """
    documents = layout.rendered(directory)
    controllers = controllers_of(documents)["spec"]["replicas"]
    with (
        network(len(layout.machines) + controllers) as net,
        control_plane(directory / "k", address=net.address) as plane,
        contextlib.ExitStack() as disks,
    ):
        for machine in layout.machines:
            place = plane.directory / machine.name
            place.mkdir()
            if machine.disk is not None:
                size = machine.disk_bytes
                disk = storage.mounted(machine.disk, place, size_bytes=size, name="data")
                disks.enter_context(disk)
        made = Release(plane, net, layout, documents)
        try:
            with cared_for(made.sidecars, *_SIDECARS_END):
                made.install(write)
                yield made
        finally:
            made.clean_up()


@contextlib.contextmanager
def of_its_own(layout: Layout = THREE_NODES) -> Iterator[Release]:
    """A release in a directory that is gone at the end; what its accounts asked for is recorded."""
    # Not below pytest's own directory: socket paths have 107 bytes.
    directory = Path(tempfile.mkdtemp(prefix="shorthorn-e2e-"))
    try:
        with (
            installed(directory, layout) as made,
            rights.recorded(made.plane.commands.audit_log, NAMESPACE),
        ):
            yield made
    finally:
        shutil.rmtree(directory)
