"""The kernel's interface to loop devices, one call each.

Owns the numbers and structures of linux/loop.h, the nodes below /dev and the discard limit in
sysfs. Every function blocks, speaks of devices by number, and decides nothing. Called by
`host.loop_devices` only.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
import struct
from dataclasses import dataclass
from pathlib import Path

_LOOP_CLR_FD = 0x4C01
_LOOP_GET_STATUS64 = 0x4C05
_LOOP_SET_CAPACITY = 0x4C07
_LOOP_CONFIGURE = 0x4C0A
_LOOP_CTL_REMOVE = 0x4C81
_LOOP_CTL_GET_FREE = 0x4C82
_FLAG_READ_ONLY = 1
_FLAG_DIRECT_IO = 16
#: struct loop_info64: device, inode, rdevice, offset, sizelimit, number, encryption (2), flags,
#: file name, crypt name, key, init[2]
_INFO = struct.Struct("=QQQQQLLLL64s64s32sQQ")
#: struct loop_config: fd, block_size, info, reserved[8]
_CONFIG = struct.Struct(f"=LL{_INFO.size}s64x")
_LABEL_BYTES_MAX = 63

_SYS_BLOCK = Path("/sys/block")
_DEV = Path("/dev")
#: The device went away, or there is nothing attached to it.
_ABSENT = frozenset({errno.ENXIO, errno.ENODEV, errno.ENOENT})
#: The kernel looks at the file to tell its status, and the file system below it is dead: shut down
#: after an error, a FUSE server that has ended, a network file system that went away.
_FILE_UNREACHABLE = frozenset(
    {errno.EIO, errno.ENOTCONN, errno.ESTALE, errno.EUCLEAN, errno.EHOSTDOWN, errno.ETIMEDOUT}
)


@dataclass(frozen=True, slots=True)
class Status:
    """What LOOP_GET_STATUS64 says of an attached device."""

    #: (st_dev, st_ino) of the file behind it
    file_identity: tuple[int, int]
    direct_io: bool
    read_only: bool


def attached_numbers() -> list[int]:
    """Return the numbers of the devices that seem attached, sorted."""
    # sysfs has the directory `loop` only while a device is attached: no open(2) for idle ones.
    return sorted(
        int(found[1])
        for name in os.listdir(_SYS_BLOCK)
        if (found := re.fullmatch(r"loop(\d+)", name)) and (_SYS_BLOCK / name / "loop").is_dir()
    )


def status(number: int) -> Status | None:
    """Return what the device is attached to; None: nothing."""
    answer = bytearray(_INFO.size)
    try:
        descriptor = open_device(number)
        try:
            fcntl.ioctl(descriptor, _LOOP_GET_STATUS64, answer)
        finally:
            os.close(descriptor)
    except OSError as exc:
        if exc.errno in _ABSENT:
            return None
        raise
    device, inode, _, _, _, _, _, _, flags, *_ = _INFO.unpack(answer)
    return Status((device, inode), bool(flags & _FLAG_DIRECT_IO), bool(flags & _FLAG_READ_ONLY))


def status_of_any(number: int) -> Status | None:
    """`status` for a look at everybody's devices; None also where the file cannot be reached.

    A file that we were asked about can be, so it is not that one.
    """
    try:
        return status(number)
    except OSError as exc:
        if exc.errno in _FILE_UNREACHABLE:
            return None
        raise


def free_number() -> int:
    """Return the number of an idle device, made if there is none; somebody else may get it too."""
    return _control(_LOOP_CTL_GET_FREE, 0)


def configure(
    number: int,
    descriptor: int,
    *,
    label: str,
    read_only: bool,
    direct_io: bool,
    logical_block_bytes: int,
) -> bool:
    """Attach a device to an open file with all settings at once; False: somebody was faster.

    `label` is for people who read losetup; nothing looks at it. The kernel keeps the open file, and
    any lock on it.
    """
    flags = (_FLAG_READ_ONLY if read_only else 0) | (_FLAG_DIRECT_IO if direct_io else 0)
    name = os.fsencode(label)[:_LABEL_BYTES_MAX]
    info = _INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, flags, name, b"", b"", 0, 0)
    config = _CONFIG.pack(descriptor, logical_block_bytes, info)
    try:
        # The kernel makes the device read-only if it was opened so for this call.
        device = open_device(number, os.O_RDONLY if read_only else os.O_RDWR)
        try:
            fcntl.ioctl(device, _LOOP_CONFIGURE, config)
        finally:
            os.close(device)
    except OSError as exc:
        if exc.errno == errno.EBUSY or exc.errno in _ABSENT:
            return False
        raise
    return True


def clear(number: int) -> None:
    """Detach a device that nobody has mounted, now or when the last process closes it.

    Raises: OSError: EBUSY, it is mounted.
    """
    # Without O_EXCL, the kernel would detach it behind a mount as soon as that goes.
    try:
        device = os.open(node(number), os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)
    except OSError as exc:
        if exc.errno in _ABSENT:  # detached and removed by somebody else since
            return
        raise
    try:
        fcntl.ioctl(device, _LOOP_CLR_FD)
    except OSError as exc:
        if exc.errno != errno.ENXIO:  # detached by somebody else since
            raise
    finally:
        os.close(device)


def set_capacity(number: int) -> None:
    """Make a device as large as its file is now."""
    device = open_device(number)
    try:
        fcntl.ioctl(device, _LOOP_SET_CAPACITY)
    finally:
        os.close(device)


def passes_discards(number: int) -> bool:
    """Tell whether the device passes discards on to its file."""
    return (_queue_limit(number, "discard_max_bytes") or 0) > 0


def refuse_discards(number: int) -> None:
    """Make the device refuse discards. Raises: OSError: sysfs is read-only."""
    (_queue(number) / "discard_max_bytes").write_text("0")


def renew_if_tainted(number: int) -> None:
    """Have an idle device made anew by the kernel if a former file's limit still sticks to it.

    The kernel keeps the limit with the number, for whatever file comes next, and with a limit of 0
    it forgets the granularity too and then refuses every other limit (EINVAL; seen on 6.18).
    """
    most = _queue_limit(number, "discard_max_hw_bytes")
    if most and not passes_discards(number):
        with contextlib.suppress(OSError):  # EBUSY: attached by somebody else since
            _control(_LOOP_CTL_REMOVE, number)


def node(number: int) -> Path:
    """Return the path of the device's node."""
    return _DEV / f"loop{number}"


def device_number(number: int) -> int:
    """Return st_rdev of the device; with max_part set, its minor number is not `number`."""
    major, minor = (_SYS_BLOCK / f"loop{number}" / "dev").read_text().split(":")
    return os.makedev(int(major), int(minor))


def open_device(number: int, flags: int = os.O_RDONLY) -> int:
    """Open a device, making its node if need be; read-only is enough for root's ioctls."""
    path = node(number)
    if not path.exists():  # containers often have a /dev that the kernel does not fill
        with contextlib.suppress(FileExistsError):
            os.mknod(path, stat.S_IFBLK | 0o600, device_number(number))
    return os.open(path, flags | os.O_CLOEXEC)


def _control(request: int, number: int) -> int:
    control = os.open(_DEV / "loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        return fcntl.ioctl(control, request, number)
    finally:
        os.close(control)


def _queue_limit(number: int, name: str) -> int | None:
    """Return a limit of the device's queue; None: there is no such device.

    A device that the kernel is just removing still has its files in sysfs; to read them then is
    ENODEV, not ENOENT (seen on 6.18, when somebody else renews a device while we look at all).
    """
    try:
        return int((_queue(number) / name).read_text())
    except OSError as exc:
        if exc.errno in _ABSENT:
            return None
        raise


def _queue(number: int) -> Path:
    return _SYS_BLOCK / f"loop{number}" / "queue"
