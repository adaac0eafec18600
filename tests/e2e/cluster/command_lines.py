"""With which arguments each program of a control plane runs.

Owns the command lines, and the certificates and kubeconfig files that they name. Must never: start
anything. Called by `control_plane`.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

import yaml
from tests.e2e.cluster.authority import Authority, Certificate, user_of
from tests.e2e.cluster.processes import binary

SERVICE_RANGE = "10.96.0.0/16"
ISSUER = "https://kubernetes.default.svc.cluster.local"
_NAMES = ("localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc")
#: What looks after nodes that a kubelet keeps alive: without kubelets it would take ours away.
_OF_KUBELETS = ("node-lifecycle-controller", "taint-eviction-controller")


@dataclass(frozen=True)
class Ports:
    """Where each program listens, on the control plane's address or on loopback."""

    etcd: int
    etcd_peer: int
    api: int
    controllers: int
    scheduler: int


class CommandLines:
    """The command lines of one control plane with files below `directory`."""

    def __init__(
        self,
        directory: Path,
        *,
        address: str,
        ports: Ports,
        token: str,
        service_range: str = SERVICE_RANGE,
    ) -> None:
        self.directory = directory
        self._service_range = service_range
        self.address = address
        self.ports = ports
        self.url = f"https://{address}:{ports.api}"
        self.authority = Authority(directory / "pki")
        service = str(ipaddress.ip_network(service_range)[1])
        hosts = dict.fromkeys((address, "127.0.0.1", service, *_NAMES))
        self._serving = self.authority.server("kube-apiserver", tuple(hosts))
        self._kubelet_client = self.authority.client("kube-apiserver-kubelet", ("system:masters",))
        self.tokens = self.authority.signing_key("service-accounts")
        self._token_file = directory / "pki" / "tokens.csv"
        self._token_file.touch(mode=0o600)
        self._token_file.write_text(f'{token},admin,admin,"system:masters"\n')

    def etcd(self) -> list[str]:
        client = f"http://127.0.0.1:{self.ports.etcd}"
        peer = f"http://127.0.0.1:{self.ports.etcd_peer}"
        return [
            binary("etcd"),
            "--name=e2e",
            f"--data-dir={self.directory / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=e2e={peer}",
            "--unsafe-no-fsync",  # tests kill processes and never the machine
            "--log-level=warn",
        ]

    def kube_apiserver(self) -> list[str]:
        return [
            binary("kube-apiserver"),
            f"--etcd-servers=http://127.0.0.1:{self.ports.etcd}",
            f"--bind-address={self.address}",
            f"--advertise-address={self.address}",
            f"--secure-port={self.ports.api}",
            "--endpoint-reconciler-type=none",  # would refuse to advertise loopback
            f"--cert-dir={self.directory / 'run'}",
            *_serving(self._serving),
            f"--client-ca-file={self.authority.certificate}",
            f"--token-auth-file={self._token_file}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
            f"--kubelet-client-certificate={self._kubelet_client.certificate}",
            f"--kubelet-client-key={self._kubelet_client.key}",
            "--kubelet-preferred-address-types=InternalIP",
            f"--service-cluster-ip-range={self._service_range}",
            f"--service-account-issuer={ISSUER}",
            f"--service-account-key-file={self.tokens.certificate}",
            f"--service-account-signing-key-file={self.tokens.key}",
            "--profiling=false",
            f"--audit-policy-file={self._audit_policy()}",
            f"--audit-log-path={self.audit_log}",
            "--audit-log-maxsize=4096",  # MiB: else it begins anew at 100
        ]

    @property
    def audit_log(self) -> Path:
        """One line of JSON for each request of a service account outside of kube-system."""
        return self.directory / "audit.log"

    def _audit_policy(self) -> Path:
        path = self.directory / "audit-policy.yaml"
        quiet = {"level": "None", "userGroups": ["system:masters", "system:nodes"]}
        own = {"level": "None", "userGroups": ["system:serviceaccounts:kube-system"]}
        asked = {"level": "Metadata", "userGroups": ["system:serviceaccounts"]}
        policy = {
            "apiVersion": "audit.k8s.io/v1",
            "kind": "Policy",
            "omitStages": ["RequestReceived"],
        }
        rules = [quiet, own, asked, {"level": "None"}]
        path.write_text(yaml.safe_dump({**policy, "rules": rules}))
        return path

    def kube_controller_manager(self, *, with_kubelets: bool) -> list[str]:
        left_out = () if with_kubelets else _OF_KUBELETS
        return [
            binary("kube-controller-manager"),
            *self._component("kube-controller-manager", self.ports.controllers),
            f"--controllers={','.join(['*', *(f'-{name}' for name in left_out)])}",
            "--use-service-account-credentials=true",
            f"--service-account-private-key-file={self.tokens.key}",
            f"--root-ca-file={self.authority.certificate}",
            f"--cluster-signing-cert-file={self.authority.certificate}",
            f"--cluster-signing-key-file={self.authority.key}",
        ]

    def kube_scheduler(self) -> list[str]:
        return [
            binary("kube-scheduler"),
            *self._component("kube-scheduler", self.ports.scheduler),
        ]

    def snapshot_controller(self) -> list[str]:
        return [
            binary("snapshot-controller"),
            f"--kubeconfig={self.kubeconfig('snapshot-controller', ('system:masters',))}",
            "--leader-election",
            "--leader-election-namespace=kube-system",
        ]

    def kubeconfig(self, user: str, groups: tuple[str, ...] = ()) -> Path:
        """Return a kubeconfig of a user with a certificate."""
        path = self.directory / "kubeconfigs" / user.replace(":", "-")
        certificate = self.authority.client(user, groups)
        return self.authority.kubeconfig(path, url=self.url, user=user_of(certificate))

    def _component(self, name: str, port: int) -> list[str]:
        kubeconfig = self.kubeconfig(f"system:{name}")
        return [
            f"--kubeconfig={kubeconfig}",
            f"--authentication-kubeconfig={kubeconfig}",
            f"--authorization-kubeconfig={kubeconfig}",
            "--bind-address=127.0.0.1",
            f"--secure-port={port}",
            *_serving(self.authority.server(name, ("127.0.0.1",))),
            "--leader-elect=false",
            "--profiling=false",
        ]


def _serving(certificate: Certificate) -> list[str]:
    return [
        f"--tls-cert-file={certificate.certificate}",
        f"--tls-private-key-file={certificate.key}",
    ]
