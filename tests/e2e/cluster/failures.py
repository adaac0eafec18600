"""Failures that tests bring about, and the care that a kubelet takes of what has ended.

Owns: processes that stand still or are started again, and finding out who does what right now. Must
never: touch an object of Kubernetes. Called by tests.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.e2e.cluster.processes import Process
from tests.e2e.cluster.release import NAMESPACE, Node, Pod, Release
from tests.integration.daemon_process import poll

#: The lease of each sidecar that leads.
LEASES = {
    "csi-provisioner": "driver-longhorn-io",
    "csi-snapshotter": "external-snapshotter-leader-driver-longhorn-io",
    "csi-resizer": "external-resizer-driver-longhorn-io",
}
_ESTABLISHED = "01"


@contextlib.contextmanager
def standing_still(process: Process) -> Iterator[None]:
    """A process that does nothing for a while, so that what it was asked for is not done yet."""
    group = process.pid
    os.killpg(group, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGCONT)


@contextlib.contextmanager
def mended(release: Release) -> Iterator[None]:
    """Whatever happens, all of the release and its cluster runs again at the end.

    A kubelet would start each container again by itself. Sidecars end when their driver goes or
    their lease is lost, which may be noticed late: a pod that lacks one is started as a whole.
    """
    try:
        yield
    finally:
        mend(release)


def mend(release: Release) -> None:
    """Start what does not run; return when somebody leads everywhere."""
    for process in release.plane.processes.values():
        if not process.is_running and not _is_of_a_pod(release, process):
            process.start()
    for pod in (*release.nodes, *release.controllers):
        if not all(process.is_running for process in pod.processes.values()):
            pod.kill()
            pod.start()
    poll(lambda: _is_whole(release), what="a whole release")


def tended(release: Release, until: Callable[[], object]) -> Callable[[], bool]:
    """Return a condition to poll for that starts what has ended before it looks."""

    def look() -> bool:
        for process in release.plane.processes.values():
            if not process.is_running:
                process.launch()
        return bool(until())

    return look


def _is_of_a_pod(release: Release, process: Process) -> bool:
    pods = (*release.nodes, *release.controllers)
    return any(process in pod.processes.values() for pod in pods)


def _is_whole(release: Release) -> bool:
    names = {pod.name for pod in release.controllers}
    leases = ("shorthorn-controller", *LEASES.values())
    return all(release.plane.holder(lease, NAMESPACE) in names for lease in leases)


def leader_of(release: Release, sidecar: str) -> Pod:
    """Return the controller pod whose sidecar works."""
    holder = release.plane.holder(LEASES[sidecar], NAMESPACE)
    return next(pod for pod in release.controllers if pod.name == holder)


def sender_to(release: Release, receiver: Node) -> Node | None:
    """Return the node that `receiver` is connected to for image bytes, if there is one."""
    table = Path(f"/proc/{receiver.driver.pid}/net/tcp").read_text().splitlines()[1:]
    for fields in (line.split() for line in table):
        address, _, port = fields[2].partition(":")
        if fields[3] == _ESTABLISHED and int(port, 16) == _PEER_PORT:
            found = ".".join(str(part) for part in bytes.fromhex(address)[::-1])
            return next((n for n in release.nodes if n.network.address == found), None)
    return None


_PEER_PORT = 9750


def arrived_bytes(receiver: Node) -> int:
    """Return how much of an image is in the receiver's staging, the holes between not counted."""
    found = 0
    for path in receiver.pool.glob("staging/**/artifact"):
        with contextlib.suppress(OSError):
            found = max(found, path.stat().st_blocks * 512)
    return found
