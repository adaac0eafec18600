"""Programs of a test cluster as processes that tests may kill and start again.

Owns each process, its log, and its end: a process ends with the one that started it, even if that
is killed. Must never: know what a program is for. Called by `control_plane` and by tests.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from tests.integration.daemon_process import poll

ROOT = Path(__file__).resolve().parents[3]
BINARIES = ROOT / ".cache" / "e2e" / "bin"
START_S = 60.0
_STOP_S = 20.0
_LOG_TAIL = 4000
#: What ends by itself is started again so often, a kubelet's first try.
_CARE_S = 0.3
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST_PORT, _USUAL_EPHEMERAL = 10_240, 32_768
#: Ports that this process has given away, each held by a socket of its name.
_GIVEN: list[socket.socket] = []


def binary(name: str) -> str:
    """Return the path of a program that `scripts/e2e-tools` builds."""
    path = BINARIES / name
    assert path.exists(), f"{path} is missing: run scripts/e2e-tools {name}"
    return str(path)


def free_port(address: str = "127.0.0.1") -> int:
    """Return a TCP port that nobody listens on, and that nobody else gets from here meanwhile.

    None that the kernel gives to connections: one of them might have it before the server has, or
    while the server is away. Somebody who tries to reach it then even connects to himself.
    """
    highest = int(_EPHEMERAL.read_text().split()[0])
    ports = list(range(_LOWEST_PORT, highest)) or list(range(_LOWEST_PORT, _USUAL_EPHEMERAL))
    random.shuffle(ports)
    for port in ports:
        name = socket.socket(socket.AF_UNIX)
        try:
            # Names in this space go with the process, however it ends.
            name.bind(f"\0shorthorn-e2e-port-{port}")
            with socket.socket() as found:
                found.bind((address, port))
        except OSError:
            name.close()
            continue
        _GIVEN.append(name)
        return port
    raise AssertionError(f"none of {len(ports)} ports is free")


def on_host(name: str, argv: Sequence[str]) -> list[str]:
    """Return the command line that runs `argv` under a host name of its own.

    Who leads is told apart by host name: two of one name would both lead.
    """
    return ["unshare", "--uts", "--", "sh", "-c", 'hostname "$0" && exec "$@"', name, *argv]


class Process:
    """One program: at most one process at a time, always with the same arguments.

    Start it from a thread that lives as long as it shall: the kernel ends it with that thread.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        *,
        is_ready: Callable[[], object] = lambda: True,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.command = list(command)
        self.log = log
        self.is_ready = is_ready
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start_bytes = 0
        self._is_wanted = False
        self._changing = threading.RLock()
        #: By the clock of this machine.
        self.started_at = 0.0

    @property
    def pid(self) -> int:
        """The process id; fails if it does not run."""
        assert self._process is not None
        assert self.is_running, f"{self.name} has ended:\n{self.tail()}"
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, *, timeout_s: float = START_S) -> None:
        """Start it, and return when it is ready."""
        self.launch()
        self.wait_ready(timeout_s=timeout_s)

    def launch(self) -> None:
        """Start it without waiting."""
        with self._changing:
            assert not self.is_running, f"{self.name} runs already"
            self._is_wanted = True
            self._launch()

    def launch_if_ended(self, *why: str) -> None:
        """Start it again where it ended by itself, having said one of `why` if any is given."""
        with self._changing:
            if self._is_wanted and not self.is_running:
                said = self.said()
                if not why or any(text in said for text in why):
                    self._launch()

    def _launch(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._log_start_bytes = log.tell()
            self.started_at = time.time()
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *self.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,
            )

    def wait_ready(self, *, timeout_s: float = START_S) -> None:
        poll(self._is_up, timeout_s=timeout_s, what=f"{self.name} is not ready; see {self.log}")

    def _is_up(self) -> bool:
        assert self.is_running, f"{self.name} has ended:\n{self.tail()}"
        return bool(self.is_ready())

    def kill(self) -> None:
        """End it as `kill -9` does, with all that it started in its session."""
        with self._changing:
            self._is_wanted = False
            if self._process is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()

    def stop(self) -> int:
        """End it by SIGTERM and return its exit code."""
        self._is_wanted = False
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(_STOP_S)

    def said(self) -> str:
        """Return what it has logged since it was started the last time."""
        return self.log.read_bytes()[self._log_start_bytes :].decode(errors="replace")

    def tail(self) -> str:
        """Return the end of its log."""
        return self.log.read_text(errors="replace")[-_LOG_TAIL:] if self.log.exists() else ""


@contextlib.contextmanager
def cared_for(find: Callable[[], Sequence[Process]], *why: str) -> Iterator[None]:
    """Processes that end by themselves, having said why, are started again, as a kubelet does.

    Not those that a test has ended: they stay away until it starts them. The kernel ends what is
    started here when the block does.
    """
    is_over = threading.Event()

    def care() -> None:
        while not is_over.wait(_CARE_S):
            for process in find():
                process.launch_if_ended(*why)

    carer = threading.Thread(target=care, name="kubelet", daemon=True)
    carer.start()
    try:
        yield
    finally:
        is_over.set()
        carer.join()
