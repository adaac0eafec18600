"""Loop devices: pool files as block devices.

Owns attaching, finding, growing, flushing and detaching, by ioctl: one call attaches with all
settings, and nothing is parsed. A device is known by the device and inode of its file, never by a
path, since paths differ between mount namespaces. Must never attach a second device to a file: two
page caches over one file corrupt it. Called by the engines, the node service's adapter and
`host.pool_file`.

Attachers of one file wait for each other on a flock(2) of the file itself, across processes too
(QEMU's locks are of another kind and do not meet these). Devices outlive us; no autoclear.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from shorthorn.host import loop_ioctl
from shorthorn.host.errors import HostError
from shorthorn.host.files import device_size_bytes
from shorthorn.host.mountinfo import mounts_of_device
from shorthorn.kit.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Another attacher may take the free number between our two calls; each round is another number.
_ATTACH_ATTEMPTS = 64
#: Probers such as udev, and namespaces of starting sandboxes, keep a device for milliseconds.
_DETACH_WAIT_S = 2.0


class LoopDeviceBusy(HostError):
    """A loop device cannot be detached: it is mounted, or some process has it open."""

    def __init__(self, device: Path) -> None:
        self.device = device
        super().__init__(f"{device} is mounted or open")


class DiscardsNotRefused(HostError):
    """The kernel does not let us make a loop device refuse discards (read-only /sys, say)."""


@dataclass(frozen=True, slots=True)
class LoopDevice:
    """An attached loop device, as the kernel describes it."""

    path: Path
    number: int
    #: (st_dev, st_ino) of the file behind it
    file_identity: tuple[int, int]
    direct_io: bool
    read_only: bool
    #: whether it passes discards on to the file
    discards: bool

    @property
    def device_number(self) -> tuple[int, int]:
        """(major, minor), as mountinfo has it."""
        number = loop_ioctl.device_number(self.number)
        return os.major(number), os.minor(number)


async def list_attached() -> list[LoopDevice]:
    """Return every attached loop device of the machine, by number; ours and others'."""
    return await in_thread(_list_attached)


async def find_by_file(path: Path) -> LoopDevice | None:
    """Return the device attached to this very file, under whatever name, or None.

    Raises: FileNotFoundError: there is no such file.
    """
    return await in_thread(_find_by_file, path)


async def ensure_attached(
    path: Path,
    *,
    read_only: bool = False,
    direct_io: bool = True,
    discards: bool = True,
    logical_block_bytes: int = 512,
) -> LoopDevice:
    """Attach a file to a loop device, or return the device it has.

    An existing device is returned as it is, whatever the arguments, except that `discards=False` is
    made true. The kernel quietly falls back to buffered I/O where the file system below wants
    larger blocks than `logical_block_bytes`.

    Args: discards: True: a discarded range becomes a hole in the file (thin volumes). False: the
            device refuses discards, so that fstrim cannot give a preallocated file's blocks back.
    Raises: FileNotFoundError. DiscardsNotRefused. OSError: no free device, no permission.
    State: on an error nothing is attached that was not before. May be repeated, also in parallel.
    """
    return await in_thread(
        _ensure_attached, path, read_only, direct_io, discards, logical_block_bytes
    )


async def detach(device: LoopDevice) -> None:
    """Detach; a device that is no longer attached to the same file is fine.

    Raises: LoopDeviceBusy: mounted or open. It stays attached when mounted; when a process merely
        has it open, the kernel detaches it as soon as that process closes it.
    """
    await in_thread(_detach, device)


async def set_capacity(device: LoopDevice) -> None:
    """Make the device as large as its file is now; users of the device see it at once."""
    await in_thread(loop_ioctl.set_capacity, device.number)


async def flush(device: Path) -> None:
    """Write what the block device's page cache holds to the file behind it, durably.

    Without it, writes that were acknowledged but not synced are missing from a clone of the file.
    """
    await in_thread(_flush, device)


async def size_bytes(device: Path) -> int:
    """Return the size of a block device (or file)."""
    return await in_thread(device_size_bytes, device)


def _list_attached() -> list[LoopDevice]:
    found = []
    for number in loop_ioctl.attached_numbers():
        status = loop_ioctl.status_of_any(number)
        if status is not None:
            found.append(_device(number, status))
    return found


def _observe(number: int) -> LoopDevice | None:
    status = loop_ioctl.status(number)
    return None if status is None else _device(number, status)


def _device(number: int, status: loop_ioctl.Status) -> LoopDevice:
    return LoopDevice(
        path=loop_ioctl.node(number),
        number=number,
        file_identity=status.file_identity,
        direct_io=status.direct_io,
        read_only=status.read_only,
        discards=loop_ioctl.passes_discards(number),
    )


def _find_by_file(path: Path) -> LoopDevice | None:
    status = path.stat()
    return _find_by_identity((status.st_dev, status.st_ino))


def _find_by_identity(identity: tuple[int, int]) -> LoopDevice | None:
    for number in loop_ioctl.attached_numbers():
        status = loop_ioctl.status_of_any(number)
        if status is not None and status.file_identity == identity:
            return _observe(number)
    return None


def _ensure_attached(
    path: Path, read_only: bool, direct_io: bool, discards: bool, logical_block_bytes: int
) -> LoopDevice:
    with _attach_lock(path) as identity:
        device = _find_by_identity(identity)
        is_new = device is None
        if device is None:
            device = _attach(path, read_only, direct_io, discards, logical_block_bytes)
        if discards:
            return device
        try:
            return _without_discards(device)
        except BaseException:
            if is_new:
                _detach(device)
            raise


@contextlib.contextmanager
def _attach_lock(path: Path) -> Iterator[tuple[int, int]]:
    """Wait for other attachers of this file; yields its identity.

    The lock needs an open(2) of its own. It belongs to the open file, and the kernel keeps the one
    that it was given for the device: the lock would be held until the device is detached.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        status = os.fstat(descriptor)
        yield status.st_dev, status.st_ino
    finally:
        os.close(descriptor)


def _attach(
    path: Path, read_only: bool, direct_io: bool, discards: bool, logical_block_bytes: int
) -> LoopDevice:
    descriptor = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
    try:
        for _ in range(_ATTACH_ATTEMPTS):
            number = loop_ioctl.free_number()
            if discards:
                loop_ioctl.renew_if_tainted(number)
            is_ours = loop_ioctl.configure(
                number,
                descriptor,
                label=path.name,
                read_only=read_only,
                direct_io=direct_io,
                logical_block_bytes=logical_block_bytes,
            )
            if is_ours and (device := _observe(number)) is not None:
                return device
        raise OSError(errno.EBUSY, "no loop device stays free long enough", str(path))
    finally:
        os.close(descriptor)


def _without_discards(device: LoopDevice) -> LoopDevice:
    """Make an attached device refuse discards and return it as it is then."""
    try:
        loop_ioctl.refuse_discards(device.number)
    except OSError as exc:
        raise DiscardsNotRefused(f"{device.path}: {exc.strerror}") from exc
    if loop_ioctl.passes_discards(device.number):
        raise DiscardsNotRefused(f"{device.path} passes them on in spite of a limit of 0")
    return replace(device, discards=False)


def _detach(device: LoopDevice) -> None:
    deadline = time.monotonic() + _DETACH_WAIT_S
    while _is_attached(device):
        if time.monotonic() > deadline:
            raise LoopDeviceBusy(device.path)
        try:
            loop_ioctl.clear(device.number)
        except OSError as exc:
            if exc.errno != errno.EBUSY:
                raise
            # Where it is not mounted any more, a sandbox that is just starting may still have our
            # mounts in its namespace, for some milliseconds.
            if mounts_of_device(device.path):
                raise LoopDeviceBusy(device.path) from exc
        if not _is_attached(device):
            loop_ioctl.renew_if_tainted(device.number)
            return
        time.sleep(0.01)


def _is_attached(device: LoopDevice) -> bool:
    status = loop_ioctl.status(device.number)
    return status is not None and status.file_identity == device.file_identity


def _flush(device: Path) -> None:
    descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
