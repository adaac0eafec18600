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
from tests.e2e.cluster.release import LEASES, Node, Pod, Release
from tests.integration.daemon_process import poll

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


def by_and_by(
    process: Process, until: Callable[[], object], *, what: str, slice_s: float = 0.02
) -> None:
    """Let a process work a moment at a time until something is so; it stands still then.

    However fast it is, it comes no further than one moment.
    """
    group = process.pid

    def is_so() -> bool:
        os.killpg(group, signal.SIGSTOP)
        found = bool(until())
        if not found:
            os.killpg(group, signal.SIGCONT)
        return found

    try:
        poll(is_so, what=what, interval_s=slice_s)
    except BaseException:
        os.killpg(group, signal.SIGCONT)
        raise


@contextlib.contextmanager
def crammed(node: Node) -> Iterator[None]:
    """A pool without room, whatever its node thinks of it."""
    ballast = node.pool / "ballast"
    try:
        with ballast.open("wb") as file:
            for step in (16 << 20, 1 << 20, 4096):
                with contextlib.suppress(OSError):
                    while True:
                        os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), step)
        yield
    finally:
        ballast.unlink()


@contextlib.contextmanager
def mended(release: Release) -> Iterator[None]:
    """Whatever happens, all of the release and its cluster runs again at the end.

    A kubelet would start each container again by itself. A pod that lacks one is started as a
    whole.
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
            process.launch_if_ended()
        return bool(until())

    return look


def _is_of_a_pod(release: Release, process: Process) -> bool:
    pods = (*release.nodes, *release.controllers)
    return any(process in pod.processes.values() for pod in pods)


def _is_whole(release: Release) -> bool:
    return all(release.leading(container) for container in LEASES)


def leader_of(release: Release, sidecar: str) -> Pod:
    """Return the controller pod whose sidecar works."""
    return release.leader(sidecar)


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
