"""A node as a machine of its own: its processes, mounts, network and host name are its alone.

Owns the namespaces of each node, its `/var` and `/run`, its control groups, and their end. All its
processes are in one PID namespace, which the kernel takes away with the test's process, containers
and all; mounts go with them. What then still stays (control groups, loop devices, directories) is
removed at the end or, after a kill, when the next machines are made. Must never: know what runs on
it. Called by `installation`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import stat
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.e2e.cluster.network import NetworkNode
from tests.e2e.cluster.processes import Process
from tests.integration.daemon_process import poll

_TMP = Path(tempfile.gettempdir())
_CGROUPS = Path("/sys/fs/cgroup")
#: A name of ours says which process it was made by.
_OURS = re.compile(r"^shorthorn-pods-(\d+)-")
#: A kubelet sets these; they are the whole machine's, so each node gets files in their place.
_SYSCTLS = (
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)
#: The first process: children that nobody waits for are forgotten by the kernel (SIGCHLD ignored).
_INIT = """
mount -t proc proc /proc
mount --bind "$0/var" /var
mount --bind "$0/run" /run
for file in "$@"; do mount --bind "$0/sysctl/$file" "/proc/sys/$file"; done
mount --make-rshared /
hostname -F "$0/hostname"
touch "$0/up"
trap '' CHLD
exec sleep infinity
"""
_LOOP_GET_STATUS64 = 0x4C05  # linux/loop.h
_LOOP_CLR_FD = 0x4C01


class Machine:
    """One node's namespaces, with its files below `directory`."""

    def __init__(self, name: str, directory: Path, network: NetworkNode) -> None:
        self.name = name
        self.directory = directory
        self.network = network
        self.cgroup = f"{directory.parent.name}-{name}"
        self._init = Process(
            name, self._init_command(), directory / "init.log", is_ready=(directory / "up").exists
        )

    def start(self) -> None:
        """Boot it: its disk is as it was, `/run` is empty."""
        shutil.rmtree(self.directory / "run", ignore_errors=True)
        (self.directory / "up").unlink(missing_ok=True)
        for place in ("var/lib/kubelet", "var/lib/shorthorn", "var/log", "var/tmp", "run"):
            (self.directory / place).mkdir(parents=True, exist_ok=True)
        if not (self.directory / "var/run").is_symlink():
            (self.directory / "var/run").symlink_to("/run")
        (self.directory / "hostname").write_text(self.name)
        for name in _SYSCTLS:
            file = self.directory / "sysctl" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(Path("/proc/sys", name).read_text())
        for controller in _controllers():
            (controller / self.cgroup).mkdir()
        self._init.start()

    def stop(self) -> None:
        """End all that is on it at once, with nothing unmounted in order; loop devices go last."""
        self._init.kill()
        for controller in _controllers():
            _remove_cgroup(controller / self.cgroup)
        _free_pool(self.directory)

    def command(self, *argv: str) -> list[str]:
        """Return the command line that runs `argv` on this node."""
        spaces = Path(f"/proc/{self._init.pid}/ns")
        kinds = {"mount": "mnt", "uts": "uts", "ipc": "ipc", "net": "net"}
        entered = [f"--{option}={spaces / file}" for option, file in kinds.items()]
        return ["nsenter", *entered, f"--pid={spaces / 'pid_for_children'}", "--", *argv]

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run a command on this node to its end."""
        return subprocess.run(
            self.command(*argv), capture_output=True, text=True, timeout=60, check=False
        )

    def _init_command(self) -> list[str]:
        new = ["--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child=KILL"]
        shell = ["sh", "-euc", _INIT, str(self.directory), *_SYSCTLS]
        return self.network.command("unshare", *new, "--propagation=private", "--", *shell)


@contextlib.contextmanager
def machines(networks: Sequence[NetworkNode]) -> Iterator[tuple[Path, list[Machine]]]:
    """Machines that are up, node-0 and so on, and a directory for all; all is gone at the end."""
    _sweep()
    directory = Path(tempfile.mkdtemp(prefix=f"shorthorn-pods-{os.getpid()}-"))
    made = [Machine(f"node-{i}", directory / f"node-{i}", n) for i, n in enumerate(networks)]
    with contextlib.ExitStack() as ending:
        ending.callback(_remove, directory)
        for machine in made:
            ending.callback(machine.stop)
            machine.start()
        yield directory, made


def _sweep() -> None:
    """Remove what processes that are gone have left; theirs ended with them."""
    for place in (_TMP, *_controllers()):
        for path in place.glob("shorthorn-pods-*"):
            found = _OURS.match(path.name)
            if found is not None and not Path(f"/proc/{found[1]}").exists():
                _remove(path)


def _remove(directory: Path) -> None:
    """Remove a directory of machines with all that is named after it."""
    for controller in _controllers():
        for group in controller.glob(f"{directory.name}*"):
            _remove_cgroup(group)
    if directory.parent == _TMP:
        for machine in directory.glob("node-*"):
            _free_pool(machine)
        shutil.rmtree(directory)


def _free_pool(machine: Path) -> None:
    """Detach the loop devices of a machine's pool, and of the volumes in it."""
    data = machine / "var/lib/shorthorn"
    # No pool file where the machine's own file system can share blocks: then volumes are on it.
    for file in (*data.glob("pool.xfs"), *data.glob("pool/volumes/*/volume.raw")):
        _free(file)


def _free(file: Path) -> None:
    status = file.stat()
    poll(lambda: not _detach_loops_on(status), what=f"{file} is in use")


def _controllers() -> list[Path]:
    """Return the control group hierarchies: several of version 1, or one of version 2."""
    if (_CGROUPS / "cgroup.controllers").exists():
        return [_CGROUPS]
    return [path for path in _CGROUPS.iterdir() if path.is_dir() and not path.is_symlink()]


def _remove_cgroup(group: Path) -> None:
    """Remove a control group with those in it, as soon as their processes have ended."""

    def is_gone() -> bool:
        for path, _, _ in os.walk(group, topdown=False):
            with contextlib.suppress(OSError):
                Path(path).rmdir()
        return not group.exists()

    poll(is_gone, what=f"{group} is in use")


def _detach_loops_on(file: os.stat_result) -> bool:
    """Detach the loop devices of a file, and those of files on them first; were there any?

    Looked up by device and inode: names of backing files are those of a mount namespace.
    """
    loops = dict(_loops())
    found = [n for n, (on, inode, _) in loops.items() if (on, inode) == (file.st_dev, file.st_ino)]
    for name in found:
        found += [
            n
            for n, (on, _, device) in loops.items()
            if os.stat(name).st_rdev in (on, device) and n not in found
        ]
    for name in reversed(found):
        with contextlib.suppress(OSError), Path(name).open("rb") as device:
            fcntl.ioctl(device, _LOOP_CLR_FD)
    return bool(found)


def _loops() -> Iterator[tuple[str, tuple[int, int, int]]]:
    """Yield each attached loop device with the device and inode of its file, and its own device."""
    for path in Path("/dev").glob("loop[0-9]*"):
        status = bytearray(232)
        if not stat.S_ISBLK(path.stat().st_mode):
            continue
        with contextlib.suppress(OSError), path.open("rb") as device:
            fcntl.ioctl(device, _LOOP_GET_STATUS64, status)
            on, inode, itself = struct.unpack_from("=QQQ", status)
            yield str(path), (_decoded(on), inode, _decoded(itself))


def _decoded(number: int) -> int:
    """Return a device number of the kernel's (huge_encode_dev) as Python's."""
    major = (number >> 8) & 0xFFF
    minor = (number & 0xFF) | ((number >> 12) & 0xFFF00)
    return os.makedev(major, minor)
