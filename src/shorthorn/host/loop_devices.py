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
import re
import stat
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shorthorn.host.errors import HostError
from shorthorn.kit.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import Iterator

# linux/loop.h
_LOOP_CLR_FD = 0x4C01
_LOOP_GET_STATUS64 = 0x4C05
_LOOP_SET_CAPACITY = 0x4C07
_LOOP_CONFIGURE = 0x4C0A
_LOOP_CTL_REMOVE = 0x4C81
_LOOP_CTL_GET_FREE = 0x4C82
_READ_ONLY = 1
_DIRECT_IO = 16
#: struct loop_info64: device, inode, rdevice, offset, sizelimit, number, encryption (2), flags,
#: file name, crypt name, key, init[2]
_INFO = struct.Struct("=QQQQQLLLL64s64s32sQQ")
#: struct loop_config: fd, block_size, info, reserved[8]
_CONFIG = struct.Struct(f"=LL{_INFO.size}s64x")
_LOOP_MAJOR = 7

_SYS_BLOCK = Path("/sys/block")
_DEV = Path("/dev")
#: Another attacher may take the free number between our two calls; each round is another number.
_ATTACH_ATTEMPTS = 64
#: Probers such as udev keep a new device open for some milliseconds.
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
        return os.major(_rdev(self.number)), os.minor(_rdev(self.number))


async def list_attached() -> list[LoopDevice]:
    """Return every attached loop device of the machine, by number; ours and others'."""
    return await in_thread(lambda: list(_iterate_attached()))


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
    await in_thread(_set_capacity, device)


async def flush(device: Path) -> None:
    """Write what the block device's page cache holds to the file behind it, durably.

    Without it, writes that were acknowledged but not synced are missing from a clone of the file.
    """
    await in_thread(_flush, device)


async def size_bytes(device: Path) -> int:
    """Return the size of a block device (or file)."""
    return await in_thread(_size, device)


def _iterate_attached() -> Iterator[LoopDevice]:
    # sysfs has the directory `loop` only while a device is attached: no open(2) for idle ones.
    numbers = (
        int(found[1])
        for name in os.listdir(_SYS_BLOCK)
        if (found := re.fullmatch(r"loop(\d+)", name)) and (_SYS_BLOCK / name / "loop").is_dir()
    )
    for number in sorted(numbers):
        device = _observe(number)
        if device is not None:
            yield device


def _observe(number: int) -> LoopDevice | None:
    """Ask the kernel what device `number` is attached to; None: nothing."""
    try:
        descriptor = _open_device(number)
    except OSError as exc:
        if exc.errno in (errno.ENXIO, errno.ENODEV, errno.ENOENT):
            return None
        raise
    try:
        answer = bytearray(_INFO.size)
        try:
            fcntl.ioctl(descriptor, _LOOP_GET_STATUS64, answer)
        except OSError as exc:
            if exc.errno == errno.ENXIO:
                return None
            raise
    finally:
        os.close(descriptor)
    device, inode, _, _, _, _, _, _, flags, *_ = _INFO.unpack(answer)
    return LoopDevice(
        path=_node(number),
        number=number,
        file_identity=(device, inode),
        direct_io=bool(flags & _DIRECT_IO),
        read_only=bool(flags & _READ_ONLY),
        discards=_passes_discards(number),
    )


def _find_by_file(path: Path) -> LoopDevice | None:
    status = path.stat()
    return _find_by_identity((status.st_dev, status.st_ino))


def _find_by_identity(identity: tuple[int, int]) -> LoopDevice | None:
    return next((d for d in _iterate_attached() if d.file_identity == identity), None)


def _ensure_attached(
    path: Path, read_only: bool, direct_io: bool, discards: bool, logical_block_bytes: int
) -> LoopDevice:
    with _attach_lock(path) as identity:
        device = _find_by_identity(identity)
        if device is None:
            flags = (_READ_ONLY if read_only else 0) | (_DIRECT_IO if direct_io else 0)
            device = _attach(path, flags, discards, logical_block_bytes)
            if not discards:
                try:
                    _refuse_discards(device.number)
                except BaseException:
                    _detach(device)
                    raise
        elif not discards:
            _refuse_discards(device.number)
        return _observe(device.number) or device


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


def _attach(path: Path, flags: int, discards: bool, block_bytes: int) -> LoopDevice:
    mode = os.O_RDONLY if flags & _READ_ONLY else os.O_RDWR
    descriptor = os.open(path, mode | os.O_CLOEXEC)
    try:
        # The name is for people who read losetup; nothing looks at it.
        label = os.fsencode(path.name)[:63]
        info = _INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, flags, label, b"", b"", 0, 0)
        config = _CONFIG.pack(descriptor, block_bytes, info)
        for _ in range(_ATTACH_ATTEMPTS):
            number = _free_number()
            if discards:
                _renew_if_tainted(number)
            if _configure(number, config, mode) and (device := _observe(number)) is not None:
                return device
        raise OSError(errno.EBUSY, "no loop device stays free long enough", str(path))
    finally:
        os.close(descriptor)


def _configure(number: int, config: bytes, mode: int) -> bool:
    """Attach device `number`; False when somebody else took or removed it first.

    The kernel makes the device read-only if it was opened so for this call.
    """
    try:
        target = _open_device(number, mode)
    except OSError as exc:
        if exc.errno in (errno.ENXIO, errno.ENODEV, errno.ENOENT):
            return False
        raise
    try:
        fcntl.ioctl(target, _LOOP_CONFIGURE, config)
    except OSError as exc:
        if exc.errno == errno.EBUSY:
            return False
        raise
    finally:
        os.close(target)
    return True


def _free_number() -> int:
    return _control(_LOOP_CTL_GET_FREE, 0)


def _control(request: int, number: int) -> int:
    control = os.open(_DEV / "loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        return fcntl.ioctl(control, request, number)
    finally:
        os.close(control)


def _detach(device: LoopDevice) -> None:
    deadline = time.monotonic() + _DETACH_WAIT_S
    while True:
        current = _observe(device.number)
        if current is None or current.file_identity != device.file_identity:
            return
        try:
            # O_EXCL fails while the device is mounted: the kernel would detach it behind the mount.
            descriptor = os.open(device.path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)
        except OSError as exc:
            if exc.errno == errno.EBUSY:
                raise LoopDeviceBusy(device.path) from exc
            raise
        try:
            fcntl.ioctl(descriptor, _LOOP_CLR_FD)
        except OSError as exc:
            if exc.errno not in (errno.ENXIO, errno.EBUSY):
                raise
        finally:
            os.close(descriptor)
        if _observe_identity(device.number) != device.file_identity:
            _renew_if_tainted(device.number)
            return
        if time.monotonic() > deadline:
            raise LoopDeviceBusy(device.path)
        time.sleep(0.01)


def _observe_identity(number: int) -> tuple[int, int] | None:
    device = _observe(number)
    return device.file_identity if device else None


def _set_capacity(device: LoopDevice) -> None:
    descriptor = _open_device(device.number)
    try:
        fcntl.ioctl(descriptor, _LOOP_SET_CAPACITY)
    finally:
        os.close(descriptor)


def _flush(device: Path) -> None:
    descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _size(device: Path) -> int:
    descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.lseek(descriptor, 0, os.SEEK_END)
    finally:
        os.close(descriptor)


def _passes_discards(number: int) -> bool:
    try:
        return int((_queue(number) / "discard_max_bytes").read_text()) > 0
    except FileNotFoundError:
        return False


def _refuse_discards(number: int) -> None:
    limit = _queue(number) / "discard_max_bytes"
    try:
        limit.write_text("0")
    except OSError as exc:
        raise DiscardsNotRefused(f"{limit}: {exc.strerror}") from exc
    if _passes_discards(number):
        raise DiscardsNotRefused(f"{limit} does not become 0")


def _renew_if_tainted(number: int) -> None:
    """Have an idle device made anew by the kernel if a former file's limit still sticks to it.

    The kernel keeps the limit with the number, for whatever file comes next, and with a limit of 0
    it forgets the granularity too and then refuses every other limit (EINVAL; seen on 6.18).
    """
    try:
        most = int((_queue(number) / "discard_max_hw_bytes").read_text())
    except FileNotFoundError:
        return
    if most > 0 and not _passes_discards(number):
        with contextlib.suppress(OSError):  # EBUSY: attached by somebody else since
            _control(_LOOP_CTL_REMOVE, number)


def _queue(number: int) -> Path:
    return _SYS_BLOCK / f"loop{number}" / "queue"


def _node(number: int) -> Path:
    return _DEV / f"loop{number}"


def _rdev(number: int) -> int:
    # From sysfs: with max_part set, the minor number is not the device's number.
    major, minor = (_SYS_BLOCK / f"loop{number}" / "dev").read_text().split(":")
    return os.makedev(int(major), int(minor))


def _open_device(number: int, flags: int = os.O_RDONLY) -> int:
    """Open a loop device, making its node if need be."""
    node = _node(number)
    if not node.exists():  # containers often have a /dev that the kernel does not fill
        with contextlib.suppress(FileExistsError):
            os.mknod(node, stat.S_IFBLK | 0o600, _rdev(number))
    return os.open(node, flags | os.O_CLOEXEC)
