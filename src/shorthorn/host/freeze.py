"""Frozen file systems, for copies of one moment.

Owns the life of the freeze holder (`host.freeze_holder`), a process of its own session and group
that thaws when we die. Must never freeze by itself: a watchdog in the daemon dies with the daemon,
and a file system that stays frozen blocks every writer for ever. Called by the engines; `thaw_all`
first of all at every start.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from shorthorn.host import freeze_holder, syscalls
from shorthorn.host.errors import HostError
from shorthorn.host.mountinfo import mount_of_path
from shorthorn.kit import process
from shorthorn.kit.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence

#: Starting Python takes 15 ms here; a machine that needs seconds is in no state to be frozen.
_START_TIMEOUT_S = 10.0
#: A freeze writes what has become dirty since the sync before it; the disk may be slow.
_FREEZE_TIMEOUT_S = 60.0
_THAW_TIMEOUT_S = 10.0


class FreezeFailed(HostError):
    """A file system could not be frozen; none is frozen by us now."""

    def __init__(self, mount_point: Path | None, reason: str) -> None:
        self.mount_point = mount_point
        super().__init__(f"cannot freeze {mount_point or 'file systems'}: {reason}")


class FreezeExpired(HostError):
    """The thaw came before it was asked for: what was copied is not of one moment. Discard it."""

    def __init__(self, mount_points: Sequence[Path]) -> None:
        self.mount_points = tuple(mount_points)
        names = ", ".join(str(path) for path in mount_points)
        super().__init__(f"the freeze of {names} ended too early")


class MountsChanged(HostError):
    """A mount went before it was held: what is at its path now is another file system."""

    def __init__(self, mount_points: Iterable[Path]) -> None:
        self.mount_points = tuple(mount_points)
        names = ", ".join(str(path) for path in self.mount_points)
        super().__init__(f"{names} is not mounted any more")


@contextlib.asynccontextmanager
async def frozen(
    mount_points: Iterable[Path],
    *,
    timeout_s: float,
    still_there: Callable[[], Iterable[Path]] | None = None,
) -> AsyncIterator[None]:
    """Hold the file systems at `mount_points` frozen while the body runs.

    Two mount points of one file system count once. Dirty data is written before the freeze, so that
    writers wait as briefly as possible; the rest costs what became dirty since then, and three RCU
    grace periods in the kernel (measured on 6.18, 2 processors: 40 ms to freeze, of 60 ms in all).

    Args: timeout_s: longest time that writers are held up; then the holder thaws by itself.
        still_there: tells again which mount points are meant, once the holder has them open and
            nobody can unmount them: of one that went before, the file system below would be frozen.
    Raises: MountsChanged, FreezeFailed: nothing is frozen, the body did not run. FreezeExpired: the
        body ran, but the file systems thawed before its end. Whatever the body raises (then never
        FreezeExpired).
    State: thawed at the end, however it comes; after a kill -9 of our process, too.
    """
    paths = distinct_file_systems(mount_points)
    if not paths:
        yield
        return
    holder = await _Holder.start(paths, timeout_s)
    try:
        if still_there is not None:
            gone = set(paths).difference(await in_thread(still_there))
            if gone:
                raise MountsChanged(gone)  # noqa: TRY301 - the holder is released below
        await holder.freeze()
        yield
    except BaseException:
        await holder.release()
        raise
    if not await holder.release():
        raise FreezeExpired(paths)


def distinct_file_systems(mount_points: Iterable[Path]) -> list[Path]:
    """Return one mount point of each file system: to freeze one twice fails with EBUSY."""
    return list({mount_of_path(path).device_number: path for path in mount_points}.values())


async def thaw_all(mount_points: Iterable[Path]) -> list[Path]:
    """Thaw what is frozen among `mount_points` and return those that were.

    A mount point that is gone or cannot be frozen at all is skipped. May be repeated.
    """
    return await in_thread(lambda: [path for path in mount_points if _thaw(path)])


def _thaw(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.ioctl(descriptor, freeze_holder.FITHAW, 0)
    except OSError as exc:
        if exc.errno in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTTY):
            return False  # not frozen; cannot be
        raise
    finally:
        os.close(descriptor)
    return True


class _Holder:
    """Our end of the holder process: a pipe to it, and the lines that it says."""

    def __init__(self, paths: list[Path], child: process.Child, pipe: int, said: _Lines) -> None:
        self._paths = paths
        self._child = child
        self._pipe = pipe
        self._said = said
        self._may_be_frozen = False

    @classmethod
    async def start(cls, paths: list[Path], timeout_s: float) -> _Holder:
        """Start the process, sync the file systems meanwhile, and wait until it is ready."""
        said = _Lines()
        theirs, ours = os.pipe2(os.O_CLOEXEC)
        try:
            child = process.start(
                [sys.executable, "-I", "-S", freeze_holder.__file__, str(timeout_s), *paths],
                stdin=theirs,
                die_with_parent=False,  # it must outlive us, to thaw
                on_stdout=said.feed,
            )
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(theirs)
        holder = cls(paths, child, ours, said)
        try:
            await in_thread(_sync, paths)
            await holder._expect("ready", _START_TIMEOUT_S)
        except BaseException:
            await holder.release()
            raise
        return holder

    async def freeze(self) -> None:
        self._may_be_frozen = True
        self._tell(freeze_holder.FREEZE)
        await self._expect("frozen", _FREEZE_TIMEOUT_S)

    async def _expect(self, wanted: str, timeout_s: float) -> None:
        line = await self._said.next(timeout_s, self._child)
        if line == wanted:
            return
        if line.startswith("failed "):
            self._may_be_frozen = False  # somebody else's freeze is not ours to end
            number, index = (int(word) for word in line.split()[1:])
            reason = "it is frozen already" if number == errno.EBUSY else os.strerror(number)
            raise FreezeFailed(self._paths[index], reason)
        said = line or self._child.stderr or "nothing"
        raise FreezeFailed(None, f"the holder process should have said {wanted}, and said {said}")

    async def release(self) -> bool:
        """Thaw and end the holder; True if everything was frozen until now.

        A cancellation is delivered when the file systems are thawed.
        """
        task = asyncio.create_task(self._release(), name="thaw")
        cancelled: asyncio.CancelledError | None = None
        while not task.done():
            try:
                await asyncio.wait({task})
            except asyncio.CancelledError as exc:
                cancelled = exc
        if cancelled is not None:
            task.exception()
            raise cancelled
        return task.result()

    async def _release(self) -> bool:
        line = ""
        try:
            if self._may_be_frozen:
                self._tell(freeze_holder.THAW)
        finally:
            os.close(self._pipe)  # the holder takes this, too, as the word to thaw
        if self._may_be_frozen:
            line = await self._said.next(_THAW_TIMEOUT_S, self._child)
        await self._child.stop(grace_s=_THAW_TIMEOUT_S)
        if self._may_be_frozen and not line:
            await thaw_all(self._paths)  # it was killed itself, or hangs
        return line == "thawed"

    def _tell(self, word: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has ended; its silence says so
            os.write(self._pipe, word)


class _Lines:
    """Lines of a child's output, as they come."""

    def __init__(self) -> None:
        self._rest = b""
        self._lines: asyncio.Queue[str] = asyncio.Queue()

    def feed(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._lines.put_nowait(line.decode())

    async def next(self, timeout_s: float, child: process.Child) -> str:
        """Return the next line; empty when the child has ended, or says nothing for so long."""
        line = asyncio.ensure_future(self._lines.get())
        end = asyncio.ensure_future(child.wait())
        try:
            await asyncio.wait({line, end}, timeout=timeout_s, return_when="FIRST_COMPLETED")
            if not line.done() and end.done() and not self._lines.empty():
                return self._lines.get_nowait()
            return line.result() if line.done() else ""
        finally:
            line.cancel()
            end.cancel()


def _sync(paths: Sequence[Path]) -> None:
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            syscalls.syncfs(descriptor)
        finally:
            os.close(descriptor)
