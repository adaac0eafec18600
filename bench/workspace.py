"""A private directory with a service of its own, and everything of it taken away at the end.

Owns the data directory of a run, the `shorthorn up` on it, and the file system of its pool as the
measurements see it. Must never touch another service's processes, mounts or loop devices.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

SHORTHORN = Path(__file__).resolve().parent.parent / ".venv" / "bin" / "shorthorn"
_READY_LINE = "Shorthorn is up."
_STOP_TIMEOUT_S = 60.0
_SETTLE_TIMEOUT_S = 60.0


class BenchFailed(Exception):
    """A measurement cannot be made, or what was measured is wrong; the message says why."""


class Service:
    """One `shorthorn up` in the foreground, on its own data directory."""

    def __init__(self, data_dir: Path, *, pool_size: str) -> None:
        self.data_dir = data_dir
        self.log = data_dir.with_suffix(".log")
        self._pool_size = pool_size
        self._process: subprocess.Popen[str] | None = None

    @property
    def pool(self) -> Path:
        return self.data_dir / "pool"

    @property
    def csi_socket(self) -> Path:
        return self.data_dir / "csi.sock"

    @property
    def kubeconfig(self) -> Path:
        return self.data_dir / "kubeconfig"

    def start(self) -> float:
        """Start, and return seconds from the command to its word that it is ready.

        Raises: BenchFailed: it ended instead.
        """
        assert self._process is None, "it runs already"
        begun = time.perf_counter()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [SHORTHORN, "up", "--data-dir", self.data_dir, "--pool-size", self._pool_size],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if _READY_LINE in line:
                return time.perf_counter() - begun
        raise BenchFailed(f"the service did not start:\n{self.log.read_text()[-2000:]}")

    def stop(self) -> None:
        """Stop it as `shorthorn down` would; not running is fine."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill it at once, with no chance to tidy up."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()

    def release(self) -> None:
        """Stop it and unmount its pool, as for a shutdown of the machine."""
        self.stop()
        run(SHORTHORN, "down", "--data-dir", self.data_dir, "--release")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def resident_bytes(self) -> int:
        """Return the memory that the process and its children have in RAM."""
        assert self._process is not None
        return sum(_resident_bytes(pid) for pid in _family(self._process.pid))

    def processor_s(self) -> float:
        """Return the processor time that the process itself has taken so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # proc(5)


@contextlib.contextmanager
def workspace(parent: Path, *, pool_size: str) -> Iterator[Service]:
    """Yield a service, not started yet; afterwards neither it nor anything it made is left."""
    directory = Path(tempfile.mkdtemp(prefix="shorthorn-bench-", dir=parent))
    service = Service(directory / "data", pool_size=pool_size)
    try:
        yield service
    finally:
        service.stop()
        _unmount_below(directory)
        shutil.rmtree(directory)


def run(*argv: str | Path) -> str:
    """Run a program; return what it prints. Raises BenchFailed."""
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise BenchFailed(f"{' '.join(map(str, argv))}: {done.stderr.strip() or done.stdout}")
    return done.stdout


def settle(pool: Path) -> int:
    """Write out all that is dirty on the pool; return its free bytes once they stay the same.

    XFS gives the blocks of removed files back in the background.
    """
    deadline = time.monotonic() + _SETTLE_TIMEOUT_S
    free = -1
    while time.monotonic() < deadline:
        run("sync", "--file-system", pool)
        status = os.statvfs(pool)
        last, free = free, status.f_bfree * status.f_frsize
        if last == free:
            return free
        time.sleep(0.1)
    raise BenchFailed(f"the free space of {pool} does not come to rest")


def _unmount_below(directory: Path) -> None:
    """Unmount and detach all that lives below `directory`, what a killed service left included."""
    for _ in range(2):  # volumes first, then the pool that they lie in
        loops = _loops_below(directory)
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        for line in reversed(lines):
            target, source = line.split(" ")[4], line.partition(" - ")[2].split(" ")[1]
            if target.startswith(f"{directory}/") or source in loops:
                subprocess.run(["umount", target], check=False, capture_output=True)
        for device in loops:
            subprocess.run(["losetup", "--detach", device], check=False, capture_output=True)


def _loops_below(directory: Path) -> set[str]:
    listing = run("losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE")
    pairs = (line.split(maxsplit=1) for line in listing.splitlines())
    return {device for device, file in pairs if file.startswith(f"{directory}/")}


def _family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(found for child in children for found in _family(int(child)))]


def _resident_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) << 10
    return 0
