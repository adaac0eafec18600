"""`shorthorn up` in a process of its own, that tests may kill, and what it leaves on the machine.

Owns the process and everything below its data directory. Whatever happens, `running` takes away
the process, its children, mounts and loop devices.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.integration.service_api import Api

ROOT = Path(__file__).resolve().parents[2]
_START_S = 90.0
_STOP_S = 60.0
_POLL_S = 0.02


class ServiceProcess:
    """One data directory, and the service on it: at most one at a time."""

    def __init__(self, data_dir: Path, *, pool_size: str = "600M") -> None:
        self.data_dir = data_dir
        self.pool_size = pool_size
        self.log = data_dir.with_name(f"{data_dir.name}.log")
        self.process: subprocess.Popen[bytes] | None = None
        self.api = Api(data_dir / "kubeconfig")

    @property
    def pool(self) -> Path:
        return self.data_dir / "pool"

    def start(self) -> None:
        """Start the service and wait until it is ready."""
        said = self.launch()
        deadline = time.monotonic() + _START_S
        while b"Shorthorn is up." not in said():
            assert self.process is not None
            assert self.process.poll() is None, f"did not start:\n{said().decode()}"
            assert time.monotonic() < deadline, f"not ready:\n{said().decode()}"
            threading.Event().wait(_POLL_S)

    def launch(self) -> Callable[[], bytes]:
        """Start the service without waiting; return what reads its output so far."""
        assert self.process is None or self.process.poll() is not None
        with self.log.open("ab") as log:
            start = log.tell()
            self.process = subprocess.Popen(
                self.command("up", "--pool-size", self.pool_size),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                start_new_session=True,
            )
        return lambda: self.log.read_bytes()[start:]

    def command(self, name: str, *arguments: str) -> list[str]:
        """The command line of a sub-command on this data directory."""
        data_dir = ("--data-dir", str(self.data_dir))
        return [sys.executable, "-m", "shorthorn", name, *arguments, *data_dir]

    def run(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a sub-command to its end."""
        return subprocess.run(
            self.command(name, *arguments),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )

    def kill(self) -> None:
        """End the process as `kill -9` does; its children are left alone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """End the process by SIGTERM and return its exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(_STOP_S)

    def remove(self) -> None:
        """Take everything away that the service made in the kernel."""
        self.api.close()
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        for pid in processes_naming(str(self.data_dir)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        release(self.data_dir)


@contextlib.contextmanager
def running(data_dir: Path, *, pool_size: str = "600M") -> Iterator[ServiceProcess]:
    """A service on `data_dir`, started; everything of it is gone at the end."""
    service = ServiceProcess(data_dir, pool_size=pool_size)
    try:
        service.start()
        yield service
    finally:
        service.remove()


def poll(
    until: Callable[[], object],
    *,
    timeout_s: float = 60.0,
    what: str = "",
    interval_s: float = _POLL_S,
) -> None:
    """Return as soon as `until` holds; fails after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not until():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        threading.Event().wait(interval_s)


def processes_naming(text: str) -> list[int]:
    """Return the processes, but this one, whose command line holds `text`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if text.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return found


def loops_below(directory: Path) -> dict[str, str]:
    """Return the loop devices of files below `directory`, with those files."""
    found = {}
    for device in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            file = device.read_text().strip()
            if file.startswith(f"{directory}/"):
                found[f"/dev/{device.parts[3]}"] = file
    return found


def mounts_of(directory: Path) -> list[str]:
    """Return what is mounted below `directory` or from files in it, the latest first."""
    devices = loops_below(directory)
    targets = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        target, source = fields.split(" ")[4], rest.split(" ")[1]
        is_node = target.startswith(f"{directory}/") or fields.split(" ")[3].startswith("/loop")
        if source in devices or (is_node and target.startswith(str(directory.parent))):
            targets.append(target.encode().decode("unicode_escape"))
    return targets[::-1]


def release(data_dir: Path) -> None:
    """Unmount and detach everything of a data directory, volumes before their pool."""
    pool_file = str(data_dir / "pool.xfs")
    pool = str(data_dir / "pool")
    for target in mounts_of(data_dir):
        if target != pool:
            subprocess.run(["umount", target], check=False, capture_output=True)
    for device, file in loops_below(data_dir).items():
        if not file.startswith(pool_file):
            subprocess.run(["losetup", "-d", device], check=False, capture_output=True)
    subprocess.run(["umount", pool], check=False, capture_output=True)
    for device in loops_below(data_dir):
        subprocess.run(["losetup", "-d", device], check=False, capture_output=True)
