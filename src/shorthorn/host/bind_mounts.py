"""Bind mounts that appear at once in their final state.

Owns binding by open_tree(2), mount_setattr(2) and move_mount(2). The older way, a bind followed by
a read-only remount, leaves a writable mount behind when the process dies in between. Called by
`host.node_storage`.

Source: open_tree(2), mount_setattr(2), move_mount(2); in the kernel since 5.12. The numbers are the
same on every architecture.
"""

from __future__ import annotations

import ctypes
import functools
import os
from typing import TYPE_CHECKING

from shorthorn.kit.threads import in_thread

if TYPE_CHECKING:
    from pathlib import Path

_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_MOUNT_SETATTR = 442

_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_OPEN_TREE_CLONE = 1
_OPEN_TREE_CLOEXEC = os.O_CLOEXEC
_MOVE_MOUNT_F_EMPTY_PATH = 0x4
_MOUNT_ATTR_RDONLY = 0x1


class _MountAttr(ctypes.Structure):
    """struct mount_attr"""

    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


async def bind(source: Path, target: Path, *, read_only: bool) -> None:
    """Make `source` visible at the existing `target` of the same kind, without mounts below it.

    Raises: OSError. State: on an error nothing is mounted.
    """
    await in_thread(_bind, source, target, read_only)


def _bind(source: Path, target: Path, read_only: bool) -> None:
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC
    tree = _call(_SYS_OPEN_TREE, _AT_FDCWD, os.fsencode(source), flags)
    try:
        if read_only:
            wanted = _MountAttr(attr_set=_MOUNT_ATTR_RDONLY)
            size = ctypes.c_size_t(ctypes.sizeof(wanted))
            _call(_SYS_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, ctypes.byref(wanted), size)
        _call(
            _SYS_MOVE_MOUNT,
            tree,
            b"",
            _AT_FDCWD,
            os.fsencode(target),
            _MOVE_MOUNT_F_EMPTY_PATH,
        )
    finally:
        os.close(tree)


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _call(number: int, *arguments: object) -> int:
    result: int = _libc().syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
