"""Mounting and unmounting.

Owns mount(2) and umount2(2), called directly: no helper program to start, errors as exact numbers,
no table in user space to disagree with the kernel. The price is that option words are sorted into
flags here, and that the kernel's explanation is fetched from its log. Must never decide what may be
mounted, nor create or format anything but the mount. Bind mounts are `host.bind_mounts`'s. Called
by the node service's adapter, the engines and `host.pool_file`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from typing import TYPE_CHECKING

from shorthorn.host import syscalls
from shorthorn.host.errors import HostError
from shorthorn.host.mountinfo import (
    Mount,
    find_mount,
    mount_of_path,
    mounts_of_device,
    read_mounts,
)
from shorthorn.kit.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

__all__ = [
    "Mount",
    "MountBusy",
    "MountFailed",
    "ensure_unmounted",
    "find_mount",
    "is_mount_point",
    "mount",
    "mount_of_path",
    "mounts_of_device",
    "read_mounts",
    "unmount",
]

#: Words of fstab(5) that mean something to programs only; the kernel refuses them.
_NOT_FOR_THE_KERNEL = re.compile(
    r"defaults|_netdev|(no)?auto|(no)?fail|(no)?user|users|(no)?owner|group|x-.*|comment=.*"
)
#: Stacked mounts on one target; more means that somebody mounts in a loop.
_STACK_MAX = 64

_HINTS = {
    errno.EINVAL: "no such file system on it, or an option that the kernel does not know",
    errno.ENODEV: "the kernel does not know this kind of file system",
    errno.EUCLEAN: "the file system is damaged",
    errno.EBUSY: "the device is in use, or mounted elsewhere with other options",
    errno.EROFS: "the device is read-only and the journal needs a replay",
    errno.ENOENT: "source or target does not exist",
}


class MountFailed(HostError):
    """The kernel refused a mount. `reason` holds what it logged, else what the number means."""

    def __init__(self, source: str, target: Path, number: int, reason: str) -> None:
        self.source = source
        self.target = target
        self.errno = number
        self.reason = reason
        super().__init__(f"cannot mount {source} at {target}: {os.strerror(number)} ({reason})")


class MountBusy(HostError):
    """A mount cannot be taken away: files below it are open, or another mount is."""

    def __init__(self, target: Path) -> None:
        self.target = target
        super().__init__(f"{target} is busy: a process uses it, or something is mounted below it")


async def mount(
    source: Path | str,
    target: Path,
    fs_type: str,
    *,
    options: Sequence[str] = (),
    read_only: bool = False,
) -> None:
    """Mount the file system on `source` at the existing directory `target`.

    Does not look whether something is mounted there already; ask `find_mount`.

    Args: options: words as for mount(8); those that only programs understand are dropped.
    Raises: MountFailed. State: on an error nothing is mounted.
    """
    words = [*options, "ro"] if read_only else list(options)
    flags, data = split_options(words)
    await in_thread(_mount, str(source), target, fs_type, flags, data)


async def unmount(target: Path, *, lazy: bool = False) -> None:
    """Take away the topmost mount at `target`; none there, or no such path, is fine.

    Args: lazy: detach now and clean up when the last user is gone; only for giving up.
    Raises: MountBusy.
    """
    await in_thread(_unmount, target, lazy)


async def ensure_unmounted(target: Path) -> None:
    """Take away every mount stacked at `target`. Raises: MountBusy."""
    for _ in range(_STACK_MAX):
        if find_mount(target) is None:
            return
        await unmount(target)
    raise MountBusy(target)


def is_mount_point(target: Path) -> bool:
    """Tell whether something is mounted at exactly `target`, bind mounts included."""
    return find_mount(target) is not None


def split_options(options: Sequence[str]) -> tuple[int, str]:
    """Sort option words into mount(2)'s flags and its data string. Commas within words split."""
    flags, data = 0, []
    for word in ",".join(options).split(","):
        if word in syscalls.MOUNT_FLAGS:
            bit, is_set = syscalls.MOUNT_FLAGS[word]
            flags = flags | bit if is_set else flags & ~bit
        elif word and not _NOT_FOR_THE_KERNEL.fullmatch(word):
            data.append(word)
    return flags, ",".join(data)


def _mount(source: str, target: Path, fs_type: str, flags: int, data: str) -> None:
    with _kernel_log() as log:
        try:
            syscalls.mount(source, target, fs_type, flags, data)
        except OSError as exc:
            number = exc.errno or 0
            reason = _said(log, source) or _HINTS.get(number, "no more is known")
            raise MountFailed(source, target, number, reason) from exc


def _unmount(target: Path, lazy: bool) -> None:
    flags = syscalls.UMOUNT_NOFOLLOW | (syscalls.MNT_DETACH if lazy else 0)
    try:
        syscalls.umount(target, flags)
    except OSError as exc:
        if exc.errno in (errno.EINVAL, errno.ENOENT):  # not a mount point; nothing there
            return
        if exc.errno == errno.EBUSY:
            raise MountBusy(target) from exc
        raise


@contextlib.contextmanager
def _kernel_log() -> Iterator[int | None]:
    """Open the kernel's log at its end, so that what is said from here on can be read."""
    try:
        log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # containers may not have it
        yield None
        return
    try:
        os.lseek(log, 0, os.SEEK_END)
        yield log
    finally:
        os.close(log)


def _said(log: int | None, source: str) -> str:
    """Return what the kernel has logged about a device, without repetition."""
    if log is None or not source.startswith("/dev/"):
        return ""
    name = re.compile(rf"\b{re.escape(source.removeprefix('/dev/'))}\b")
    lines: list[str] = []
    with contextlib.suppress(OSError):  # BlockingIOError: that was all; EPIPE: overwritten
        while len(lines) < 8:
            record = os.read(log, 8192).decode(errors="replace")
            line = record.partition(";")[2].partition("\n")[0]
            if name.search(line) and line not in lines:
                lines.append(line)
    return "; ".join(lines)
