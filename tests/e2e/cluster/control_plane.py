"""A real control plane: etcd, kube-apiserver, controllers, scheduler, snapshot-controller.

With our CRDs. Owns its processes and all files below one directory, and takes the processes away
however a test ends. RBAC is on. Without kubelets, nodes are objects that `add_node` writes. Called
by tests.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import secrets
import ssl
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx2
import yaml
from tests.e2e.cluster.command_lines import SERVICE_RANGE, CommandLines, Ports
from tests.e2e.cluster.processes import ROOT, Process, binary, free_port, on_host
from tests.integration.daemon_process import poll
from tests.integration.service_api import Api

CRDS = ROOT / "src" / "shorthorn" / "kube" / "crds"
#: Longer than any `--timeout` that a test gives: kubectl then says itself what it waited for.
_KUBECTL_S = 150.0
_PORT_OF_SERVICE = 443  # of Service `kubernetes`, always
#: What each sidecar logs once its driver has answered.
_SIDECAR_READY = "ServeMux listening"

Manifests = str | Path | Mapping[str, Any] | Sequence[Mapping[str, Any]]


class ControlPlane:
    """A running control plane; `control_plane` makes one."""

    def __init__(self, directory: Path, *, address: str, with_kubelets: bool) -> None:
        self.directory = directory
        self.logs = directory / "logs"
        self.address = address
        token = secrets.token_urlsafe(32)
        ports = Ports(
            etcd=free_port(),
            etcd_peer=free_port(),
            api=_PORT_OF_SERVICE if with_kubelets else free_port(address),
            controllers=free_port(),
            scheduler=free_port(),
        )
        # Pods look for the API server at the first address of the range, which without kube-proxy
        # leads nowhere: so let that be the API server's own.
        network = ipaddress.ip_network(f"{address}/29", strict=False)
        services = str(network) if with_kubelets else SERVICE_RANGE
        self.commands = CommandLines(
            directory, address=address, ports=ports, token=token, service_range=services
        )
        self.authority = self.commands.authority
        self.url = self.commands.url
        self.kubeconfig = self.authority.kubeconfig(
            directory / "kubeconfigs" / "admin", url=self.url, user={"token": token}
        )
        self.api = Api(self.kubeconfig)
        self.processes: dict[str, Process] = {}
        self._with_kubelets = with_kubelets
        self._trust = ssl.create_default_context(cafile=str(self.authority.certificate))

    # ---- Processes ------------------------------------------------------------------------------

    def start(self) -> None:
        """Start everything; return when objects of all our kinds can be made."""
        lines, ports = self.commands, self.commands.ports
        etcd = f"http://127.0.0.1:{ports.etcd}/readyz"
        self.add("etcd", lines.etcd(), lambda: self.answers(etcd)).start()
        api = f"{self.url}/readyz"
        self.add("kube-apiserver", lines.kube_apiserver(), lambda: self.answers(api)).start()
        controllers = f"https://127.0.0.1:{ports.controllers}/healthz"
        scheduler = f"https://127.0.0.1:{ports.scheduler}/healthz"
        manager = lines.kube_controller_manager(with_kubelets=self._with_kubelets)
        self.add("kube-controller-manager", manager, lambda: self.answers(controllers)).launch()
        self.add("kube-scheduler", lines.kube_scheduler(), lambda: self.answers(scheduler)).launch()
        self.install_crds()
        snapshots = on_host("snapshot-controller", lines.snapshot_controller())
        self.add("snapshot-controller", snapshots, self._leads).launch()
        for name in ("kube-controller-manager", "kube-scheduler", "snapshot-controller"):
            self.processes[name].wait_ready()
        poll(lambda: self.find_service_account("default", "default"), what="no service accounts")

    def add(
        self,
        name: str,
        command: Sequence[str],
        is_ready: Callable[[], object] = lambda: True,
        *,
        environment: Mapping[str, str] | None = None,
    ) -> Process:
        """Return a new process of this cluster, not started yet; it ends with the cluster."""
        assert name not in self.processes, f"there is a {name} already"
        log = self.logs / f"{name}.log"
        made = Process(name, command, log, is_ready=is_ready, environment=environment)
        self.processes[name] = made
        return made

    def kill(self, name: str) -> None:
        """End a process as `kill -9` does."""
        self.processes[name].kill()

    def forget(self, name: str) -> None:
        """End a process for good; another may be added under its name."""
        self.processes.pop(name).kill()

    def restart(self, name: str) -> None:
        """Start a process again, after ending it if it runs; return when it is ready."""
        self.processes[name].kill()
        self.processes[name].start()

    def remove(self) -> None:
        """End every process, the latest first."""
        self.api.close()
        for process in reversed(self.processes.values()):
            process.kill()

    def sidecar(
        self,
        name: str,
        socket: Path,
        arguments: Sequence[str],
        kubeconfig: Path,
        *,
        program: str = "",
        namespace: str = "kube-system",
        environment: Mapping[str, str] | None = None,
        wrap: Callable[..., list[str]] = lambda *argv: list(argv),
    ) -> Process:
        """Start a CSI sidecar with leader election; return when it has reached its driver.

        Args:
            name: of the process and its host: who leads is told apart by host name. `program` is
                the same unless given.
            wrap: makes the command line run elsewhere, such as `NetworkNode.command`.
        """
        argv = [
            binary(program or name),
            f"--csi-address={socket}",
            f"--kubeconfig={kubeconfig}",
            "--leader-election",
            f"--leader-election-namespace={namespace}",
            f"--http-endpoint=127.0.0.1:{free_port()}",
            "--v=4",
            *arguments,
        ]
        in_pod = {"NAMESPACE": namespace, "POD_NAME": name, **(environment or {})}
        process = self.add(
            name,
            wrap(*on_host(name, argv)),
            lambda: _SIDECAR_READY in process.said(),
            environment=in_pod,
        )
        process.start()
        return process

    def answers(self, url: str) -> bool:
        """Whether a server of this cluster says that it is well."""
        try:
            answer = httpx2.get(url, verify=self._trust, trust_env=False, timeout=5)
        except (httpx2.HTTPError, OSError):
            return False
        return answer.status_code == 200

    def holder(self, lease: str, namespace: str = "kube-system") -> str:
        """Return who leads by a lease, or nothing."""
        found = self.api.find("Lease", namespace, lease)
        return str(((found or {}).get("spec") or {}).get("holderIdentity") or "")

    def leads(self, process: Process, identity: str, lease: str, namespace: str) -> bool:
        """Whether a process that runs holds a lease, and has said so itself.

        A lease has its holder's name long after the holder was killed, and before one of the same
        name, started anew, has looked at it.
        """
        found = self.api.find("Lease", namespace, lease) or {"spec": {}}
        renewed = found["spec"].get("renewTime")
        is_its = found["spec"].get("holderIdentity") == identity and renewed
        if not is_its or not process.is_running:
            return False
        return datetime.fromisoformat(renewed).timestamp() > process.started_at

    def _leads(self) -> bool:
        name = "snapshot-controller"
        return self.leads(self.processes[name], name, f"{name}-leader", "kube-system")

    # ---- Objects --------------------------------------------------------------------------------

    def install_crds(self) -> None:
        """Install the CRDs that the embedded server reads, and wait until they are served."""
        self.apply(CRDS)
        waiting = ("crd", "--all", "--for=condition=Established", "--timeout=90s")
        self.kubectl("wait", *waiting)

    def apply(self, manifests: Manifests) -> str:
        """`kubectl apply`: a file, a directory, YAML text, an object or several; what it prints."""
        if isinstance(manifests, Path):
            return self.kubectl("apply", "-f", str(manifests))
        if isinstance(manifests, Mapping):
            manifests = [manifests]
        text = manifests if isinstance(manifests, str) else yaml.safe_dump_all(manifests)
        return self.kubectl("apply", "-f", "-", stdin=text)

    def kubectl(self, *arguments: str, stdin: str = "", kubeconfig: Path | None = None) -> str:
        """Run kubectl, which must succeed; return what it prints."""
        ran = self.try_kubectl(*arguments, stdin=stdin, kubeconfig=kubeconfig)
        assert ran.returncode == 0, f"kubectl {' '.join(arguments)}: {ran.stderr}"
        return ran.stdout

    def try_kubectl(
        self, *arguments: str, stdin: str = "", kubeconfig: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl, as the administrator unless told otherwise."""
        options = [f"--kubeconfig={kubeconfig or self.kubeconfig}"]
        home = {"HOME": str(self.directory), "PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
        return subprocess.run(
            [binary("kubectl"), *options, f"--cache-dir={self.directory / 'cache'}", *arguments],
            input=stdin,
            env=home,
            capture_output=True,
            text=True,
            timeout=_KUBECTL_S,
            check=False,
        )

    def make_namespace(self, name: str) -> None:
        """Make a namespace that pods can be made in.

        After its API server was away, the controller that makes service accounts may see a new
        namespace half a minute later only: client-go backs off.
        """
        meta = {"name": name}
        self.api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": meta})
        poll(
            lambda: self.find_service_account(name, "default"),
            timeout_s=90,
            what=f"the service account of {name}",
        )

    def find_service_account(self, namespace: str, name: str) -> dict[str, Any] | None:
        return self.api.find("ServiceAccount", namespace, name)

    def kubeconfig_for_service_account(self, namespace: str, name: str) -> Path:
        """Return a kubeconfig with a token of a service account, good for a day."""
        account = self.api.path("ServiceAccount", namespace, name)
        request = {"spec": {"expirationSeconds": 24 * 3600}}
        answer = self.api.client.post(f"{account}/token", json=request)
        assert answer.status_code == 201, answer.text
        path = self.directory / "kubeconfigs" / f"{namespace}.{name}"
        user = {"token": answer.json()["status"]["token"]}
        return self.authority.kubeconfig(path, url=self.url, user=user)

    def kubeconfig_for_user(self, user: str, groups: tuple[str, ...] = ()) -> Path:
        """Return a kubeconfig with a client certificate (`system:node:NAME` in `system:nodes`)."""
        return self.commands.kubeconfig(user, groups)

    def add_node(
        self,
        name: str,
        *,
        address: str = "127.0.0.1",
        labels: Mapping[str, str] | None = None,
        drivers: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Write a Node that is ready, and its CSINode, as a kubelet would.

        Args: drivers: of the CSINode: `{"name", "nodeID", "topologyKeys"}` each.
        """
        every = {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", **(labels or {})}
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": every}}
        self.api.create(node)
        room = {"cpu": "8", "memory": "16Gi", "pods": "110", "ephemeral-storage": "64Gi"}
        status = {
            "addresses": [{"type": "InternalIP", "address": address}],
            "capacity": room,
            "allocatable": room,
            "conditions": [{"type": "Ready", "status": "True", "reason": "ByHand"}],
        }
        path = self.api.path("Node", "", name)
        for place, patch in (
            (f"{path}/status", {"status": status}),
            (path, {"spec": {"taints": None}}),
        ):
            answer = self.api.client.patch(
                place, json=patch, headers={"Content-Type": "application/merge-patch+json"}
            )
            assert answer.status_code == 200, answer.text
        csi_node = {"apiVersion": "storage.k8s.io/v1", "kind": "CSINode"}
        spec = {"drivers": [dict(driver) for driver in drivers]}
        self.api.create({**csi_node, "metadata": {"name": name}, "spec": spec})


@contextlib.contextmanager
def control_plane(
    directory: Path, *, address: str = "127.0.0.1", with_kubelets: bool = False
) -> Iterator[ControlPlane]:
    """A control plane with its files in `directory`; its processes are gone at the end.

    Args:
        address: where the API server listens: loopback, or `Network.address` for nodes to reach it.
        with_kubelets: whether kubelets will run; else nodes never become unready by silence. Their
            pods find the API server if `address` is the first of its /29, as a network's is.
    """
    made = ControlPlane(directory, address=address, with_kubelets=with_kubelets)
    try:
        made.start()
        yield made
    finally:
        made.remove()
