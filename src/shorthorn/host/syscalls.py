"""System calls that Python's library does not have.

Owns the C signatures and flag values of mount(2), umount2(2), renameat2(2), openat2(2),
fallocate(2) and syncfs(2). Every function blocks, raises `OSError` with the kernel's errno, and
decides nothing. Called by the other modules of `host`, from threads.
"""

from __future__ import annotations

import ctypes
import functools
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_FALLOC_FL_KEEP_SIZE = 0x01
_FALLOC_FL_PUNCH_HOLE = 0x02
_RESOLVE_NO_XDEV = 0x01
#: The same on every architecture, as all system calls since 5.1; glibc has no wrapper.
_SYS_OPENAT2 = 437

#: mount(2) flags by their option words, as in mount(8); False clears the flag.
MOUNT_FLAGS: dict[str, tuple[int, bool]] = {
    "ro": (0x1, True),
    "rw": (0x1, False),
    "nosuid": (0x2, True),
    "suid": (0x2, False),
    "nodev": (0x4, True),
    "dev": (0x4, False),
    "noexec": (0x8, True),
    "exec": (0x8, False),
    "sync": (0x10, True),
    "async": (0x10, False),
    "dirsync": (0x80, True),
    "noatime": (0x400, True),
    "atime": (0x400, False),
    "nodiratime": (0x800, True),
    "diratime": (0x800, False),
    "relatime": (0x200000, True),
    "norelatime": (0x200000, False),
    "strictatime": (0x1000000, True),
    "nostrictatime": (0x1000000, False),
    "lazytime": (0x2000000, True),
    "nolazytime": (0x2000000, False),
    "silent": (0x8000, True),
    "loud": (0x8000, False),
}

MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int, *paths: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), *paths)
    return result


def mount(source: str, target: Path, fs_type: str, flags: int, data: str) -> None:
    """mount(2). `source` and `fs_type` may be empty where the flags make them so."""
    _check(
        _libc().mount(
            os.fsencode(source or "none"),
            os.fsencode(target),
            os.fsencode(fs_type) if fs_type else None,
            ctypes.c_ulong(flags),
            os.fsencode(data) if data else None,
        ),
        str(target),
    )


def umount(target: Path, flags: int) -> None:
    """umount2(2)."""
    _check(_libc().umount2(os.fsencode(target), flags), str(target))


def rename_noreplace(source: Path, target: Path) -> None:
    """renameat2(2) with RENAME_NOREPLACE: an existing `target` raises FileExistsError."""
    result = _libc().renameat2(
        _AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _RENAME_NOREPLACE
    )
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(source), None, str(target))


def open_beneath(name: str, flags: int, *, dir_fd: int) -> int:
    """openat2(2) that refuses to cross a mount point (EXDEV), bind mounts too."""
    how = _OpenHow(flags=flags | os.O_CLOEXEC, mode=0, resolve=_RESOLVE_NO_XDEV)
    return _check(
        _libc().syscall(
            ctypes.c_long(_SYS_OPENAT2),
            ctypes.c_int(dir_fd),
            os.fsencode(name),
            ctypes.byref(how),
            ctypes.c_size_t(ctypes.sizeof(how)),
        ),
        name,
    )


def punch_hole(descriptor: int, offset_bytes: int, length_bytes: int) -> None:
    """fallocate(2): give back the blocks of a range, which then reads as zeros; size stays."""
    _check(
        _libc().fallocate(
            descriptor,
            _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE,
            ctypes.c_int64(offset_bytes),
            ctypes.c_int64(length_bytes),
        )
    )


def syncfs(descriptor: int) -> None:
    """syncfs(2): write back the one file system that `descriptor` is on."""
    _check(_libc().syncfs(descriptor))
