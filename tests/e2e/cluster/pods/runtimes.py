"""containerd on each machine, with the images of an archive.

Owns its configuration, the pods' network on each node, and its process; containers end with their
machine. Must never: know of a cluster, so that images are imported while one starts. Called by
`installation`.
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

from tests.e2e.cluster.pods.machines import Machine
from tests.e2e.cluster.processes import BINARIES, Process, binary

SOCKET = "/run/containerd/containerd.sock"
#: Holds a pod's namespaces.
PAUSE = "localhost/pause:e2e"
#: For what runs on a node: shims, runc, losetup and mount are found by it.
PATH = f"{BINARIES}:{os.environ['PATH']}:/usr/sbin:/sbin"
_CNI_PROGRAMS = "/usr/lib/cni"
_CTR_S = 120.0
_CONFIGURATION = """version = 3
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


class Runtime:
    """containerd on one machine; `pods` is the range of its pods' addresses."""

    def __init__(self, machine: Machine, pods: str) -> None:
        self.machine = machine
        self.pods = pods
        self._etc = machine.directory / "etc"
        self._process = Process(
            f"{machine.name}.containerd",
            (),
            machine.directory / "containerd.log",
            is_ready=lambda: self._ctr("version").wait() == 0,
            environment={"PATH": PATH},
        )
        self._import: subprocess.Popen[bytes] | None = None

    def start(self, archive: Path) -> None:
        """Start it the first time, and begin to import images."""
        self._write_files()
        self.start_again()
        self._import = self._ctr("images", "import", str(archive))

    def start_again(self) -> None:
        """Start it on a machine that may have been booted anew; images are there."""
        configuration = self._etc / "containerd.toml"
        self._process.command = self.machine.command(
            binary("containerd"), f"--config={configuration}"
        )
        self._process.start()

    def wait_for_images(self) -> None:
        assert self._import is not None
        assert self._import.wait(_CTR_S) == 0, f"see {self._log}"

    def stop(self) -> None:
        self._process.kill()

    @property
    def _log(self) -> Path:
        return self.machine.directory / "ctr.log"

    def _ctr(self, *arguments: str) -> subprocess.Popen[bytes]:
        client = [binary("ctr"), f"--address={SOCKET}", "--namespace=k8s.io"]
        argv = self.machine.command(*client, *arguments)
        with self._log.open("ab") as log:
            return subprocess.Popen(argv, stdout=log, stderr=log)

    def _write_files(self) -> None:
        networks = self._etc / "cni"
        networks.mkdir(parents=True)
        (networks / "pods.conflist").write_text(json.dumps(self._cni()))
        # JSON's strings are TOML's.
        (self._etc / "containerd.toml").write_text(
            _CONFIGURATION.format(
                socket=json.dumps(SOCKET),
                pause=json.dumps(PAUSE),
                programs=json.dumps(_CNI_PROGRAMS),
                networks=json.dumps(str(networks)),
            )
        )

    def _cni(self) -> dict[str, Any]:
        addresses = {
            "type": "host-local",
            "ranges": [[{"subnet": self.pods}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        }
        link = {"type": "ptp", "ipMasq": False, "ipam": addresses}
        return {"cniVersion": "1.0.0", "name": "pods", "plugins": [link]}


@contextlib.contextmanager
def runtimes(machines: Sequence[Machine], archive: Path) -> Iterator[list[Runtime]]:
    """containerd on each machine, beginning to import images; pods can reach each other."""
    # Beside 198.18.N.0/24, where the nodes are, 198.19.N.0/24 is for pods: all of it for tests.
    third = int(machines[0].network.address.split(".")[2])
    ranges = list(ipaddress.ip_network(f"198.19.{third}.0/24").subnets(new_prefix=26))
    made = [Runtime(m, str(r)) for m, r in zip(machines, ranges, strict=False)]
    for to in made:
        _route(["ip"], to)
        for machine in machines:
            if machine is not to.machine:
                _route(["ip", "-n", machine.network.name], to)
    try:
        for runtime in made:
            runtime.start(archive)
        yield made
    finally:
        for runtime in made:
            runtime.stop()


def _route(ip: Sequence[str], to: Runtime) -> None:
    """Lead a runtime's pods' addresses to its node; the route goes with the network."""
    words = ["route", "add", to.pods, "via", to.machine.network.address]
    said = subprocess.run([*ip, *words], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
