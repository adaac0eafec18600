"""The chart in a cluster of real kubelets: what it renders, applied as it is.

Owns the images that its pods are made of, and waiting for the pods. All images are local ones,
under the names that the chart gives them; node-driver-registrar and livenessprobe are stand-ins of
our own (`tests/e2e/tools/node`). Must never: change a manifest. Called by tests.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.e2e.chart import ValueSet, find_helm, render
from tests.e2e.cluster.control_plane import ControlPlane, control_plane
from tests.e2e.cluster.network import network
from tests.e2e.cluster.pods import images
from tests.e2e.cluster.pods.images import (
    Image,
    busybox_layer,
    layer,
    program_layer,
    write_archive,
)
from tests.e2e.cluster.pods.kubelets import KubeNode, is_ready
from tests.e2e.cluster.pods.machines import machines
from tests.e2e.cluster.pods.runtimes import PAUSE, runtimes
from tests.e2e.cluster.processes import BINARIES, ROOT
from tests.e2e.cluster.release import NAMESPACE, SNAPSHOT_CRDS
from tests.integration.daemon_process import poll
from tests.integration.service_api import Api, Object

NODES = 2
#: Allocated at once; the default is half of the disk.
POOL_SIZE = "3G"
BUSYBOX = "localhost/busybox:e2e"
_ROOTFS = ROOT / ".cache/container/rootfs"
_CONTAINERFILE = ROOT / "deploy/container/Containerfile"
_CACHE = ROOT / ".cache/e2e/images"
#: Which program is in which container's image.
_PROGRAMS = {
    "csi-provisioner": "csi-provisioner",
    "csi-snapshotter": "csi-snapshotter",
    "csi-resizer": "csi-resizer",
    "node-driver-registrar": "registrar",
    "livenessprobe": "health",
}
#: The first start of a pod: its pool is made, and bytecode of a cold disk read.
_START_S = 120.0


class Installation:
    """A cluster with the release in it; `installation` makes one."""

    def __init__(self, plane: ControlPlane, nodes: list[KubeNode]) -> None:
        self.plane = plane
        self.nodes = nodes

    @property
    def api(self) -> Api:
        return self.plane.api

    def install(self, documents: list[Object]) -> None:
        """Apply what was rendered; return when all of it is ready."""
        labels = {"pod-security.kubernetes.io/enforce": "privileged"}
        meta = {"name": NAMESPACE, "labels": labels}
        self.plane.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": meta})
        kinds = [d for d in documents if d["kind"] == "CustomResourceDefinition"]
        self.plane.apply(kinds)
        # As clusters have them: those of the embedded server also take what no cluster takes.
        self.plane.apply(SNAPSHOT_CRDS)
        self.plane.kubectl("wait", "crd", "--all", "--for=condition=Established", "--timeout=30s")
        for node in self.nodes:
            node.wait_ready()
        self.plane.apply([d for d in documents if d["kind"] != "CustomResourceDefinition"])
        self.wait_ready()

    def wait_ready(self) -> None:
        """Return when every pod of the release is ready, and every pool."""
        poll(self._is_up, timeout_s=_START_S, what="pods of the release", interval_s=0.2)

    def node(self, name: str) -> KubeNode:
        return next(node for node in self.nodes if node.name == name)

    def own_pods(self, component: str) -> list[Object]:
        """Return the release's pods of a component, `node` or `controller`, that are not going."""
        return [
            pod
            for pod in self.api.list("Pod", NAMESPACE)
            if pod["metadata"]["labels"]["app.kubernetes.io/component"] == component
            and "deletionTimestamp" not in pod["metadata"]
        ]

    def driver_on(self, node: str) -> Object:
        """Return the DaemonSet's pod on a node once it is ready."""

        ready: list[Object] = []

        def is_found() -> bool:
            ready[:] = [
                pod
                for pod in self.own_pods("node")
                if pod["spec"]["nodeName"] == node and is_ready(pod)
            ]
            return bool(ready)

        poll(is_found, timeout_s=_START_S, what=f"the driver on {node}", interval_s=0.2)
        return ready[0]

    def left(self) -> list[str]:
        """Return what is in the pools and what is mounted for pods, but of our own."""
        kinds = ("volumes", "snapshots", "images", "staging/*")
        found = []
        for node in self.nodes:
            pool = "/var/lib/shorthorn/pool"
            listed = node.machine.run(
                "find", *(f"{pool}/{kind}" for kind in kinds), "-mindepth", "1"
            )
            mounted = node.machine.run("grep", "-o", "[^ ]*kubernetes.io.csi[^ ]*", "/proc/mounts")
            found += (listed.stdout + mounted.stdout).splitlines()
        return found

    def _is_up(self) -> bool:
        pods = [*self.own_pods("node"), *self.own_pods("controller")]
        pools = [p for p in self.api.list("Pool", NAMESPACE) if p.get("status")]
        return (
            len(self.own_pods("node")) == len(pools) == len(self.nodes)
            and len(self.own_pods("controller")) > 1
            and all(map(is_ready, pods))
        )


@contextlib.contextmanager
def installation() -> Iterator[Installation]:
    """Two nodes with kubelets, and the chart's pods on them; everything is gone at the end."""
    helm = find_helm()
    assert helm is not None, "run scripts/e2e-tools helm"
    with network(NODES) as net, machines(net.nodes) as (directory, made):
        documents = render(
            helm, ValueSet("pods", {"node": {"poolSize": POOL_SIZE}}), scratch=directory
        )
        archive = _archive(documents, directory)
        with (
            runtimes(made, archive) as running,
            control_plane(directory / "k", address=net.address, with_kubelets=True) as plane,
        ):
            nodes = [KubeNode(plane, runtime) for runtime in running]
            for node in nodes:
                node.launch()
            installed = Installation(plane, nodes)
            installed.install(documents)
            yield installed


def _archive(documents: list[Object], scratch: Path) -> Path:
    """Return an archive of every image that is needed, which an earlier run may have made."""
    subprocess.run([ROOT / "scripts/container-rootfs"], check=True)
    names = _image_names(documents)
    busybox = shutil.which("busybox")
    assert busybox is not None, "run scripts/setup e2e"
    parts = [
        _ROOTFS.with_suffix(".made-from"),
        Path(busybox),
        Path(images.__file__),
        Path(__file__),
    ]
    parts += [BINARIES / f".{program}.stamp" for program in _PROGRAMS.values()]
    made_from = [json.dumps(names), *(hashlib.sha256(p.read_bytes()).hexdigest() for p in parts)]
    digest = hashlib.sha256("".join(made_from).encode()).hexdigest()
    archive = _CACHE / f"{digest}.tar"
    if not archive.exists():
        _CACHE.mkdir(parents=True, exist_ok=True)
        write_archive(scratch / "new.tar", _images(names, Path(busybox), scratch))
        for old in _CACHE.glob("*.tar"):
            old.unlink(missing_ok=True)
        shutil.move(scratch / "new.tar", archive)
    return archive


def _image_names(documents: list[Object]) -> dict[str, str]:
    """Return which image each container of the release wants."""
    workloads = [d for d in documents if d["kind"] in ("DaemonSet", "Deployment")]
    containers = [c for w in workloads for c in w["spec"]["template"]["spec"]["containers"]]
    return {container["name"]: container["image"] for container in containers}


def _images(names: Mapping[str, str], busybox: Path, scratch: Path) -> list[Image]:
    # Two layers: Debian's part and ours, as the Containerfile has them.
    system, program = scratch / "system.tar", scratch / "program.tar"
    for words in (
        ["--exclude=./opt/shorthorn", f"--file={system}", "."],
        [f"--file={program}", "./opt/shorthorn"],
    ):
        argv = ["tar", f"--directory={_ROOTFS}", "--numeric-owner", "--create", *words]
        subprocess.run(argv, check=True)
    users = busybox_layer(scratch / "busybox.tar", busybox)
    made = [
        Image(names["shorthorn"], (layer(system), layer(program)), *_run_as()),
        Image(PAUSE, (users,), ("/bin/sleep", "2147483647")),
        Image(BUSYBOX, (users,), ("/bin/sh",)),
    ]
    for container, binary in _PROGRAMS.items():
        own = program_layer(scratch / f"{binary}.tar", binary)
        made.append(Image(names[container], (own,), ("/program",)))
    return made


def _run_as() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return ENTRYPOINT and ENV of the Containerfile, which each has once."""
    lines = _CONTAINERFILE.read_text().replace("\\\n", " ").splitlines()
    (entrypoint,) = (line for line in lines if line.startswith("ENTRYPOINT "))
    (environment,) = (line for line in lines if line.startswith("ENV "))
    return tuple(json.loads(entrypoint.partition(" ")[2])), tuple(environment.split()[1:])
