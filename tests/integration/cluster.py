"""A cluster without Kubernetes: an embedded API server, and programs that meet through it alone.

Owns: the server, one `shorthorn controller`, nodes with
pools of their own, and calls over their CSI sockets. `running` takes everything away at the end.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
from tests.fakes.csi_calls import capability
from tests.integration.daemon_process import ROOT, poll, processes_naming, release
from tests.integration.service_api import SYSTEM, Api

from shorthorn.csi.proto import csi_pb2, csi_pb2_grpc
from shorthorn.standalone.apiserver.credentials import ensure_tls, ensure_token
from shorthorn.standalone.apiserver.kubeconfig import write_kubeconfig

CALL_S = 30
_START_S = 90.0
_STOP_S = 60.0


class ApiProcess:
    """The API server of the cluster; it can go away and come back, at the same address."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.kubeconfig = folder / "kubeconfig"
        write_kubeconfig(
            self.kubeconfig,
            url=f"https://127.0.0.1:{self._port}",
            token=ensure_token(folder / "token"),
            authority=ensure_tls(folder / "tls.pem").authority,
        )

    def start(self) -> None:
        """Serve; requests are answered when this returns."""
        assert self._process is None
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.integration.api_process"),
                *(str(self._folder), str(self._port)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"up\n", "the API server does not start"

    def stop(self) -> None:
        """Go away, as `kill -9` does; what was acknowledged stays on disk."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


class ClusterProgram:
    """One process, and a client of its CSI socket and of its HTTP address."""

    def __init__(self, name: str, folder: Path, kubeconfig: Path, *arguments: str) -> None:
        self.name = name
        self.folder = folder
        self.socket = folder / f"{name}.sock"
        self.log = folder / f"{name}.log"
        self.http = f"127.0.0.1:{free_port()}"
        self.process: subprocess.Popen[bytes] | None = None
        self._channel: grpc.Channel | None = None
        self._arguments = [
            *(sys.executable, "-m", "shorthorn", *arguments),
            *("--csi-socket", str(self.socket), "--kubeconfig", str(kubeconfig)),
            *("--namespace", SYSTEM, "--http-listen", self.http),
        ]

    def launch(self) -> None:
        """Start the process; it may have to wait for others."""
        assert self.process is None or self.process.poll() is not None
        # A pod has a name of its own for all its life, its containers' restarts included.
        environment = {**os.environ, "POD_NAME": self.name}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._arguments,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env=environment,
                start_new_session=True,
            )

    def start(self) -> None:
        """Start the process and wait until it is ready."""
        self.launch()
        poll(self.is_ready, timeout_s=_START_S, what=f"{self.name} is ready:\n{self.said()}")

    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def get(self, path: str) -> tuple[int, str]:
        """Return the status and text of a page; 0 where nobody answers."""
        try:
            with urllib.request.urlopen(f"http://{self.http}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as exc:
            with exc:
                return exc.code, exc.read().decode()
        except OSError:
            return 0, ""

    def is_ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"{self.name} ended:\n{self.said()}"
        return self.get("/readyz")[0] == 200

    def kill(self) -> None:
        """End the process as `kill -9` does."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.hang_up()

    def stop(self) -> int:
        """End the process by SIGTERM; return its exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(_STOP_S)
        self.hang_up()
        return code

    def hang_up(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    @property
    def channel(self) -> grpc.Channel:
        if self._channel is None:
            self._channel = grpc.insecure_channel(f"unix:{self.socket}")
        return self._channel

    def call(self, rpc: str, request: Any, *, timeout_s: float = CALL_S) -> Any:
        """Call `Service.Method` over the socket. Raises: grpc.RpcError."""
        service, _, method = rpc.partition(".")
        stub: Any = getattr(csi_pb2_grpc, f"{service}Stub")(self.channel)
        return getattr(stub, method)(request, timeout=timeout_s)


def refusal(
    program: ClusterProgram, rpc: str, request: Any, *, timeout_s: float = CALL_S
) -> tuple[grpc.StatusCode, str]:
    """Call what must fail; return code and text."""
    try:
        answer = program.call(rpc, request, timeout_s=timeout_s)
    except grpc.RpcError as exc:
        failed: Any = exc
        return failed.code(), failed.details()
    raise AssertionError(f"{rpc} answered {answer}")


class Node(ClusterProgram):
    """One machine: a program, its data directory, and what a kubelet does there."""

    def __init__(
        self, name: str, folder: Path, kubeconfig: Path, pool_size: str, *, is_peer: bool = False
    ) -> None:
        self.data_dir = folder / name
        super().__init__(
            name,
            folder,
            kubeconfig,
            *("node", "--node-id", name, "--data-dir", str(self.data_dir)),
            *("--pool-size", pool_size, "--node-tag", f"tag-{name}"),
            *(("--peer-listen", f"127.0.0.1:{free_port()}") if is_peer else ()),
        )

    def volume_file(self, volume_id: str) -> Path:
        return self.data_dir / "pool" / "volumes" / volume_id / "volume.raw"

    def staging(self, volume_id: str) -> Path:
        return self.data_dir / "staging" / volume_id

    def target(self, volume_id: str) -> Path:
        return self.data_dir / "pods" / volume_id

    def publish(self, volume_id: str) -> Path:
        """Stage and publish; return the directory that a workload sees."""
        staging, target = self.staging(volume_id), self.target(volume_id)
        for path in (staging, target.parent):
            path.mkdir(parents=True, exist_ok=True)
        stage = csi_pb2.NodeStageVolumeRequest(
            volume_id=volume_id, staging_target_path=str(staging), volume_capability=capability()
        )
        self.call("Node.NodeStageVolume", stage)
        publish = csi_pb2.NodePublishVolumeRequest(
            volume_id=volume_id,
            staging_target_path=str(staging),
            target_path=str(target),
            volume_capability=capability(),
        )
        self.call("Node.NodePublishVolume", publish)
        return target

    def unpublish(self, volume_id: str) -> None:
        """Unpublish and unstage."""
        unpublish = csi_pb2.NodeUnpublishVolumeRequest(
            volume_id=volume_id, target_path=str(self.target(volume_id))
        )
        self.call("Node.NodeUnpublishVolume", unpublish)
        unstage = csi_pb2.NodeUnstageVolumeRequest(
            volume_id=volume_id, staging_target_path=str(self.staging(volume_id))
        )
        self.call("Node.NodeUnstageVolume", unstage)

    def leftovers(self) -> list[str]:
        """Return what is in the pool, made and half made."""
        pool = self.data_dir / "pool"
        kept = [
            path for kind in ("volumes", "snapshots", "images") for path in pool.glob(f"{kind}/*")
        ]
        return [str(path) for path in (*kept, *pool.glob("staging/*/*"))]


class Cluster:
    """All of it. Nothing is started yet."""

    def __init__(
        self, folder: Path, *, nodes: int = 2, pool_size: str = "320M", are_peers: bool = False
    ) -> None:
        self.server = ApiProcess(folder)
        kubeconfig = self.server.kubeconfig
        self.api = Api(kubeconfig)
        self.web = f"127.0.0.1:{free_port()}"
        arguments = ("controller", "--web-listen", self.web)
        self.controller = ClusterProgram("controller", folder, kubeconfig, *arguments)
        self.nodes = [
            Node(f"node-{letter}", folder, kubeconfig, pool_size, is_peer=are_peers)
            for letter in "abc"[:nodes]
        ]

    def start(self) -> None:
        """Start everything, and wait until every node has said what it has."""
        self.server.start()
        for program in (self.controller, *self.nodes):
            program.launch()
        for program in (self.controller, *self.nodes):
            poll(program.is_ready, timeout_s=_START_S, what=program.name)
        poll(lambda: len(self.ready_pools()) == len(self.nodes), what="a pool for each node")

    def ready_pools(self) -> list[str]:
        """Return the nodes of the pools that say that they are ready."""
        return [
            pool["spec"]["nodeID"]
            for pool in self.api.list("Pool", SYSTEM)
            if any(
                c["type"] == "Ready" and c["status"] == "True"
                for c in (pool.get("status") or {}).get("conditions", ())
            )
        ]

    def remove(self) -> None:
        """Take everything away that was made in the kernel."""
        self.api.close()
        for program in (self.controller, *self.nodes):
            program.hang_up()
            if program.process is not None and program.process.poll() is None:
                program.process.kill()
                program.process.wait()
        for node in self.nodes:
            for pid in processes_naming(str(node.data_dir)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            release(node.data_dir)
        self.server.stop()


@contextlib.contextmanager
def running(*, nodes: int = 2, are_peers: bool = False) -> Iterator[Cluster]:
    """A started cluster; everything of it is gone at the end. `are_peers`: its nodes exchange image
    bytes.
    """
    # Not below pytest's own directory: socket paths have 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="shorthorn-cluster-"))
    cluster = Cluster(folder, nodes=nodes, are_peers=are_peers)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.remove()
        shutil.rmtree(folder)


def free_port() -> int:
    """Return a port that stays free until it is listened at, also again and again.

    It is none of those that the kernel gives to whoever asks for any (32768 and up), and no other
    process gets it here before this one ends: a socket of its name keeps it.
    """
    for port in random.SystemRandom().sample(range(20_000, 32_000), 1000):
        keeper = socket.socket(socket.AF_UNIX)
        try:
            keeper.bind(f"\0shorthorn-test-port-{port}")
            with socket.create_server(("127.0.0.1", port)):
                pass
        except OSError:
            keeper.close()
        else:
            keeper.detach()  # until this process ends
            return port
    raise AssertionError("1000 ports, and each of them is taken")
