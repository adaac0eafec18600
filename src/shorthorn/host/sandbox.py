"""The cage in which every program that reads image bytes runs.

Owns the command line of bubblewrap and prlimit: what a caged tool can see (its own programs and
libraries, and exactly the files it is given), and how much it may use. Must never start a tool
without the cage, not even where the cage cannot be had: then it says so. Called by `host.qemu_img`
and `host.qemu_storage_daemon`.

Image files come from strangers, and QEMU's parsers are large. Inside the cage there is no network,
no other process, no file but the given ones under names of our own (so that no file name is ever
read as a protocol or an option), no capability, and no way to make another user namespace. The
tool dies with its parent. It keeps the daemon's user id, because the pool's files belong to that
user. There is no /proc: a root without capabilities may still write to /proc/sys.

There is no limit on the number of processes: the kernel does not hold root to RLIMIT_NPROC, and for
other users it counts every process of that user. What bounds forks is the process namespace, which
is killed as one, and the limits of each process.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shorthorn.host.errors import HostError
from shorthorn.kit import process

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

GIB = 1 << 30

#: QEMU's tools map 100 MiB of libraries, 8 MiB of stack for each of up to 64 I/O threads and 1 MiB
#: for each coroutine; a hostile table makes them ask for gigabytes. 2 GiB serves the first, not
#: the second.
ADDRESS_SPACE_BYTES = 2 * GIB
#: A few megabytes of tables take milliseconds of processor time, also when compressed.
METADATA_CPU_S = 60
#: QEMU opens each image about three times; the rest is for its event loop.
OPEN_FILES = 64
#: glibc reserves 64 MiB of address space per arena and thread; two arenas are enough here.
MALLOC_ARENAS = 2
PROBE_TIMEOUT_S = 10.0
_CPU_GRACE_S = 5


class SandboxUnavailable(HostError):
    """The cage cannot be built on this host. Nothing was run outside it instead."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one caged tool may use: processor seconds, and the length of the longest file it
    writes.
    """

    cpu_s: int = METADATA_CPU_S
    file_size_bytes: int = 0
    address_space_bytes: int = ADDRESS_SPACE_BYTES


@dataclass(frozen=True, slots=True)
class CagedFile:
    """A file or device of the host, seen in the cage as `inside` (absolute)."""

    path: Path
    inside: str
    writable: bool = False


def caged(argv: Sequence[str], *, files: Iterable[CagedFile], limits: Limits) -> list[str]:
    """Return the command line that runs `argv` in a cage that holds only `files`.

    `argv[0]` must be a name that the host's search path finds below /usr. Inherited descriptors
    stay open in the cage.
    """
    tool = process.locate(argv[0])
    return [
        *("prlimit", f"--as={limits.address_space_bytes}", f"--cpu={_cpu(limits)}"),
        *(f"--fsize={limits.file_size_bytes}", f"--nofile={OPEN_FILES}", "--core=0", "--"),
        process.locate("bwrap"),
        *("--unshare-user", "--unshare-all", "--disable-userns"),
        *("--die-with-parent", "--new-session", "--cap-drop", "ALL"),
        *("--clearenv", "--setenv", "LC_ALL", "C", "--setenv", "PATH", process.SEARCH_PATH),
        *("--setenv", "MALLOC_ARENA_MAX", str(MALLOC_ARENAS)),
        *_system_binds(),
        *_file_binds(files),
        *("--chdir", "/", "--", tool, *argv[1:]),
    ]


def _cpu(limits: Limits) -> str:
    """Let the soft limit come first: its SIGXCPU tells it from SIGKILL, which is the OOM killer's
    or an operator's, and says nothing about the image.
    """
    return f"{limits.cpu_s}:{limits.cpu_s + _CPU_GRACE_S}"


def _system_binds() -> list[str]:
    """Bind programs and libraries read-only, as this distribution lays them out."""
    words = ["--ro-bind", "/usr", "/usr", "--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    for name in ("bin", "sbin", "lib", "lib64"):
        directory = Path("/", name)
        if directory.is_symlink():
            words += ["--symlink", str(directory.readlink()), f"/{name}"]
        elif directory.is_dir():
            words += ["--ro-bind", f"/{name}", f"/{name}"]
    return [*words, "--dev", "/dev"]


def _file_binds(files: Iterable[CagedFile]) -> list[str]:
    words: list[str] = []
    for file in files:
        words += ["--bind" if file.writable else "--ro-bind", str(file.path), file.inside]
    return words


async def check_available() -> None:
    """Build an empty cage once and run `true` in it.

    Raises: SandboxUnavailable: the kernel or a container around us forbids it; says what to change.
        CommandMissing: bubblewrap or util-linux is not installed.
    """
    argv = caged(["true"], files=(), limits=Limits())
    try:
        await process.run(argv, timeout_s=PROBE_TIMEOUT_S)
    except process.CommandFailed as exc:
        raise SandboxUnavailable(
            "disk images are only read inside a bubblewrap sandbox, and it cannot be set up here: "
            f"{exc.stderr.strip() or exc}. In a container, allow user namespaces and mounts "
            "(a privileged container does); on a host, set kernel.unprivileged_userns_clone=1"
        ) from exc
