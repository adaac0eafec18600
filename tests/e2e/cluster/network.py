"""Nodes of a test cluster as network namespaces on one bridge.

Owns namespaces, links and addresses, all named after this process; whatever happens, they go: at
the end, or, after a kill, when the next network is made. Addresses are of 198.18.0.0/15, which is
kept for tests and routed nowhere. Needs root and iproute2. Called by tests.

A node is a network only. `ip netns exec` would give each command mounts of its own as well, which
nobody else sees; so commands enter by `nsenter`, and mounts stay those of the machine.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

_LOCK = Path("/run/lock/shorthorn-e2e-network")
_NODES_MAX = 200
#: A name of ours says by which process it was made, and for which of its networks.
_OURS = re.compile(r"^(?:shorthorn-(\d+)-(\d+)-\d+|sh(\d+)[bv](\d+)(?:x\d+)?)$")
_NUMBERS = itertools.count()


@dataclass(frozen=True)
class NetworkNode:
    """One namespace with one address."""

    name: str
    address: str
    link: str

    def command(self, *argv: str) -> list[str]:
        """Return the command line that runs `argv` on this node."""
        return ["nsenter", f"--net=/run/netns/{self.name}", "--", *argv]

    def run(self, *argv: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run a command on this node to its end."""
        return subprocess.run(
            self.command(*argv), capture_output=True, text=True, timeout=timeout_s, check=False
        )

    def cut(self) -> None:
        """Take the node off the network; its connections hang, as when a cable is pulled."""
        _ip("link", "set", self.link, "down")

    def join(self) -> None:
        """Put it back."""
        _ip("link", "set", self.link, "up")

    @property
    def received_bytes(self) -> int:
        """How much has come to this node since it was made."""
        return int(Path(f"/sys/class/net/{self.link}/statistics/tx_bytes").read_text())

    @contextlib.contextmanager
    def without(self, address: str) -> Iterator[None]:
        """One address cannot be reached from this node for a while; everybody else can."""
        route = ("route", "add", "blackhole", f"{address}/32")
        _ip("-n", self.name, *route)
        try:
            yield
        finally:
            _ip("-n", self.name, "route", "del", *route[2:])

    @contextlib.contextmanager
    def slowed(self, megabytes_per_s: int) -> Iterator[None]:
        """What comes to this node comes no faster, for a while."""
        _tc("add", "dev", self.link, "root", *_shape(megabytes_per_s))
        try:
            yield
        finally:
            _tc("del", "dev", self.link, "root")

    def hasten(self, megabytes_per_s: int) -> None:
        """Have what comes to this node, while it is `slowed`, come at another speed."""
        _tc("change", "dev", self.link, "root", *_shape(megabytes_per_s))


@dataclass(frozen=True)
class Network:
    """The bridge, which the machine itself is on with `address`, and the nodes."""

    bridge: str
    address: str
    nodes: tuple[NetworkNode, ...]


@contextlib.contextmanager
def network(count: int) -> Iterator[Network]:
    """Make a network of `count` nodes; everything of it, processes too, is gone at the end."""
    assert count <= _NODES_MAX
    owner = (os.getpid(), next(_NUMBERS))
    bridge = f"sh{owner[0]}b{owner[1]}"
    try:
        with _locked():
            _sweep()
            prefix = _free_prefix()
            _ip("link", "add", bridge, "type", "bridge")
            _ip("addr", "add", f"{prefix}.1/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        nodes = tuple(_add_node(owner, bridge, prefix, i) for i in range(count))
        yield Network(bridge, f"{prefix}.1", nodes)
    finally:
        _remove(lambda maker: maker == owner)


def _add_node(owner: tuple[int, int], bridge: str, prefix: str, index: int) -> NetworkNode:
    pid, number = owner
    node = NetworkNode(
        name=f"shorthorn-{pid}-{number}-{index}",
        address=f"{prefix}.{index + 10}",
        link=f"sh{pid}v{number}x{index}",
    )
    _ip("netns", "add", node.name)
    _ip("link", "add", node.link, "type", "veth", "peer", "name", "eth0", "netns", node.name)
    _ip("link", "set", node.link, "master", bridge, "up")
    for words in (
        ("link", "set", "lo", "up"),
        ("addr", "add", f"{node.address}/24", "dev", "eth0"),
        ("link", "set", "eth0", "up"),
        ("route", "add", "default", "via", f"{prefix}.1"),
    ):
        _ip("-n", node.name, *words)
    return node


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    """One network is made at a time, so that no two take the same addresses."""
    with _LOCK.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sweep() -> None:
    """Remove what processes that are gone have left."""
    _remove(lambda maker: not Path(f"/proc/{maker[0]}").exists())


def _remove(is_meant: Callable[[tuple[int, int]], bool]) -> None:
    for name in _names("netns", "list"):
        if is_meant(_owner(name)):
            for pid in _ip("netns", "pids", name, may_fail=True).split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            _ip("netns", "delete", name, may_fail=True)
    for name in _names("-o", "link", "show", "type", "veth") + _names(
        "-o", "link", "show", "type", "bridge"
    ):
        if is_meant(_owner(name)):
            _ip("link", "delete", name, may_fail=True)


def _names(*words: str) -> list[str]:
    """Return the names of ours in a listing, whose lines begin with a name or `N: NAME@PEER:`."""
    lines = _ip(*words, may_fail=True).splitlines()
    names = [re.sub(r"^\d+: ", "", line).split()[0].rstrip(":").split("@")[0] for line in lines]
    return [name for name in names if _OURS.match(name)]


def _owner(name: str) -> tuple[int, int]:
    found = _OURS.match(name)
    assert found is not None
    return int(found[1] or found[3]), int(found[2] or found[4])


def _free_prefix() -> str:
    taken = _ip("-o", "-4", "addr", "show")
    for number in range(256):
        if f" 198.18.{number}." not in taken:
            return f"198.18.{number}"
    raise AssertionError("all of 198.18.0.0/16 is taken")


def _ip(*words: str, may_fail: bool = False) -> str:
    said = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert may_fail or said.returncode == 0, f"ip {' '.join(words)}: {said.stderr}"
    return said.stdout


def _shape(megabytes_per_s: int) -> tuple[str, ...]:
    rate = f"{megabytes_per_s * 8}mbit"
    return ("tbf", "rate", rate, "burst", "1mb", "latency", "50ms")


def _tc(*words: str) -> None:
    said = subprocess.run(["tc", "qdisc", *words], capture_output=True, text=True, check=False)
    assert said.returncode == 0, f"tc qdisc {' '.join(words)}: {said.stderr}"
