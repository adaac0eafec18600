"""The one place that starts programs.

Owns the life of every child process: a clean environment (`LC_ALL=C`, so that messages are the
ones our tests have seen), its own session and process group, bounded output, a deadline, and a
kill ladder that takes the whole group. Must never use a shell, and never know what a tool means:
callers translate `CommandFailed` into errors of their own. Called by `host` and `demo`.

A child is reaped only after its group was killed. Until then the dead leader keeps the process id,
so the signal cannot hit a stranger who was given the same number.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import shutil
import signal
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from pathlib import Path

#: Services often run without the sbin directories, where mkfs and mount live.
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: Between SIGTERM and SIGKILL. Arbitrary: QEMU's tools and mkfs need a few milliseconds.
KILL_GRACE_S = 2.0
#: Kept of each stream; a tool that says more is read on, and the rest is dropped.
OUTPUT_LIMIT_BYTES = 4 << 20
#: A daemonised grandchild may hold the pipes open; wait this long after the group was killed.
DRAIN_S = 1.0

#: Which Debian package brings a tool, for the message that says what to install.
DEBIAN_PACKAGES: Mapping[str, str] = {
    "blkid": "util-linux",
    "btrfs": "btrfs-progs",
    "btrfstune": "btrfs-progs",
    "bwrap": "bubblewrap",
    "e2fsck": "e2fsprogs",
    "kubectl": "kubernetes-client",
    "mkfs.btrfs": "btrfs-progs",
    "mkfs.ext4": "e2fsprogs",
    "mkfs.xfs": "xfsprogs",
    "mount": "mount",
    "qemu-img": "qemu-utils",
    "qemu-storage-daemon": "qemu-system-common",
    "resize2fs": "e2fsprogs",
    "setpriv": "util-linux",
    "tune2fs": "e2fsprogs",
    "xfs_admin": "xfsprogs",
    "xfs_growfs": "xfsprogs",
}


class CommandFailed(Exception):
    """A program ended with another status than 0, or was killed (`returncode` is then -signal)."""

    def __init__(self, argv: Sequence[str], returncode: int, stderr: str) -> None:
        self.argv = tuple(argv)
        self.returncode = returncode
        self.stderr = stderr
        said = stderr.strip()[-2000:] or "it said nothing"
        how = f"signal {-returncode}" if returncode < 0 else f"status {returncode}"
        super().__init__(f"{self.argv[0]} ended with {how}: {said}")


class CommandTimedOut(CommandFailed):
    """A program did not end within its deadline; its whole process group was killed."""

    def __init__(self, argv: Sequence[str], returncode: int, stderr: str, timeout_s: float) -> None:
        super().__init__(argv, returncode, stderr)
        self.timeout_s = timeout_s
        self.args = (f"{self.argv[0]} was stopped after {timeout_s:g} s: {stderr.strip()[-2000:]}",)


class CommandMissing(Exception):
    """A program is not installed; `package` is the Debian package that has it, if we know."""

    def __init__(self, tool: str, package: str | None) -> None:
        self.tool = tool
        self.package = package
        advice = f"; install it with: apt-get install {package}" if package else ""
        super().__init__(f"{tool} is not installed{advice}")


@dataclass(frozen=True, slots=True)
class Completed:
    """What a finished program left: raw output, at most `OUTPUT_LIMIT_BYTES` of each stream."""

    argv: tuple[str, ...]
    returncode: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """Standard output as text; undecodable bytes are replaced."""
        return self.stdout.decode(errors="replace")


class _Stream:
    """Reads one pipe as data arrives; keeps a bounded tail or head, never blocks the writer."""

    def __init__(
        self, descriptor: int, limit_bytes: int, on_data: Callable[[bytes], None] | None
    ) -> None:
        self.kept = bytearray()
        self.ended = asyncio.Event()
        self._descriptor = descriptor
        self._limit_bytes = limit_bytes
        self._on_data = on_data
        self._loop = asyncio.get_running_loop()
        os.set_blocking(descriptor, False)
        self._loop.add_reader(descriptor, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._descriptor, 1 << 16)
        except BlockingIOError:
            return
        if not data:
            self.close()
            return
        self.kept += data[: self._limit_bytes - len(self.kept)]
        if self._on_data is not None:
            self._on_data(data)

    def close(self) -> None:
        if not self.ended.is_set():
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self.ended.set()


class Child:
    """A running program: the leader of a session and process group of its own."""

    def __init__(self, argv: tuple[str, ...], popen: subprocess.Popen[bytes]) -> None:
        self.argv = argv
        self.pid = popen.pid
        self._popen = popen
        self._streams: dict[str, _Stream] = {}
        self._ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._pidfd = os.pidfd_open(popen.pid)
        self._loop.add_reader(self._pidfd, self._reap)

    def _collect(self, name: str, descriptor: int, on_data: Callable[[bytes], None] | None) -> None:
        self._streams[name] = _Stream(descriptor, OUTPUT_LIMIT_BYTES, on_data)

    def _reap(self) -> None:
        """Kill what the leader left behind in its group, then take its status."""
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self.signal_group(signal.SIGKILL)
        self._popen.wait()
        self._ended.set()

    @property
    def is_running(self) -> bool:
        """Whether the program itself has not ended yet."""
        return not self._ended.is_set()

    @property
    def _is_finished(self) -> bool:
        return not self.is_running and all(s.ended.is_set() for s in self._streams.values())

    @property
    def returncode(self) -> int | None:
        """Exit status, or minus the signal that ended it; None while it runs."""
        return self._popen.returncode if self._ended.is_set() else None

    @property
    def stderr(self) -> str:
        """What it has said on standard error so far."""
        stream = self._streams.get("stderr")
        return bytes(stream.kept).decode(errors="replace") if stream else ""

    def signal_group(self, number: signal.Signals) -> None:
        """Send a signal to the whole group; nothing happens when it has ended."""
        if self.is_running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    async def wait(self) -> int:
        """Wait until the program has ended, its group is gone and its output is read."""
        await self._ended.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                for stream in self._streams.values():
                    await stream.ended.wait()
        for stream in self._streams.values():
            stream.close()
        assert self._popen.returncode is not None
        return self._popen.returncode

    async def stop(self, *, grace_s: float = KILL_GRACE_S) -> int:
        """End the whole group: SIGTERM, and SIGKILL after `grace_s`. Returns when it is gone.

        May be called twice and after the end. A cancellation is delivered when the child has ended.
        """
        if self._is_finished:
            return await self.wait()
        ladder = asyncio.create_task(self._descend(grace_s), name=f"stop:{self.argv[0]}")
        cancelled: asyncio.CancelledError | None = None
        while not ladder.done():
            try:
                await asyncio.wait({ladder})
            except asyncio.CancelledError as exc:
                cancelled = exc
        if cancelled is not None:
            raise cancelled
        return ladder.result()

    async def _descend(self, grace_s: float) -> int:
        self.signal_group(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_s):
                await self._ended.wait()
        except TimeoutError:
            self.signal_group(signal.SIGKILL)
        return await self.wait()

    def completed(self) -> Completed:
        """Describe the ended program. Only after `wait` or `stop`."""
        assert self._popen.returncode is not None
        kept = {name: bytes(stream.kept) for name, stream in self._streams.items()}
        return Completed(
            self.argv, self._popen.returncode, kept.get("stdout", b""), kept.get("stderr", b"")
        )


def start(
    argv: Sequence[str | Path],
    *,
    stdin: bytes | int | None = None,
    stdout: int | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    pass_fds: Collection[int] = (),
    die_with_parent: bool = True,
    on_stdout: Callable[[bytes], None] | None = None,
) -> Child:
    """Start a program and return at once (about 1 ms); the caller owes it `wait` or `stop`.

    Must be called on the event loop's thread, the one that `die_with_parent` is tied to.

    Args: stdin: bytes to read, a file descriptor, or None for nothing.
        stdout: a file descriptor to write to; None collects it (see `Child.completed`).
        env: added to a clean environment of PATH and LC_ALL.
        pass_fds: descriptors that the program inherits, under the same numbers.
        die_with_parent: the kernel kills the program (not its children) when our process dies.
            False for what must finish, or must outlive us. Costs 1 ms (`setpriv`).
        on_stdout: called with each piece of output as it comes, for progress.
    Raises: CommandMissing: there is no such program. OSError: it cannot be started.
    """
    words = tuple(str(word) for word in argv)
    located = locate(words[0])
    prefix = ("setpriv", "--pdeathsig", "KILL", "--") if die_with_parent else ()
    with _input(stdin) as input_descriptor:
        popen = subprocess.Popen(
            (*prefix, located, *words[1:]),
            executable=locate("setpriv") if die_with_parent else located,
            stdin=input_descriptor,
            stdout=subprocess.PIPE if stdout is None else stdout,
            stderr=subprocess.PIPE,
            env={"PATH": SEARCH_PATH, "LC_ALL": "C"} | dict(env or {}),
            cwd=cwd,
            pass_fds=tuple(pass_fds),
            start_new_session=True,
        )
    child = Child(words, popen)
    for name, pipe, listener in (
        ("stdout", popen.stdout, on_stdout),
        ("stderr", popen.stderr, None),
    ):
        if pipe is not None:
            child._collect(name, os.dup(pipe.fileno()), listener)
            pipe.close()
    return child


async def run(
    argv: Sequence[str | Path],
    *,
    timeout_s: float,
    stdin: bytes | int | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    check: bool = True,
    pass_fds: Collection[int] = (),
    die_with_parent: bool = True,
    on_stdout: Callable[[bytes], None] | None = None,
) -> Completed:
    """Run a program to its end.

    Args: as for `start`. timeout_s: after this the whole process group is stopped.
        check: raise when the status is not 0; else return whatever it was.
    Raises: CommandFailed: another status than 0. CommandTimedOut: the deadline passed.
        CommandMissing: there is no such program.
    State: no process of the group is left, however this ends; a cancellation is delivered once they
        are gone, at most `KILL_GRACE_S` later.
    """
    child = start(
        argv,
        stdin=stdin,
        env=env,
        cwd=cwd,
        pass_fds=pass_fds,
        die_with_parent=die_with_parent,
        on_stdout=on_stdout,
    )
    timed_out = False
    try:
        async with asyncio.timeout(timeout_s):
            await child.wait()
    except TimeoutError:
        timed_out = True
    finally:
        await child.stop()
    result = child.completed()
    if timed_out:
        raise CommandTimedOut(child.argv, result.returncode, child.stderr, timeout_s)
    if check and result.returncode != 0:
        raise CommandFailed(child.argv, result.returncode, child.stderr)
    return result


def locate(tool: str) -> str:
    """Return the absolute path of a program. Raises: CommandMissing."""
    path = _which(tool)
    if path is None:
        _which.cache_clear()  # it may be installed while we run
        raise CommandMissing(tool, DEBIAN_PACKAGES.get(tool))
    return path


@functools.lru_cache(maxsize=128)
def _which(tool: str) -> str | None:
    return shutil.which(tool, path=SEARCH_PATH)


@contextlib.contextmanager
def _input(stdin: bytes | int | None) -> Iterator[int]:
    """Give the child its input as a file in memory: no writer task, no broken pipe."""
    if stdin is None:
        yield subprocess.DEVNULL
    elif isinstance(stdin, int):
        yield stdin
    else:
        with open(os.memfd_create("stdin"), "w+b", buffering=0) as file:
            file.write(stdin)
            file.seek(0)
            yield file.fileno()
