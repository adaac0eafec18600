"""Files and directories that survive a power cut.

Owns the order of write, fsync and rename by which a thing exists either whole or not at all, and
removal that never walks into a mounted volume. Must never know what a file means. Called by the
engines, image code and services' adapters.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import stat
from typing import TYPE_CHECKING, Any

from shorthorn.host import syscalls
from shorthorn.host.errors import HostError
from shorthorn.kit.threads import in_thread

if TYPE_CHECKING:
    from pathlib import Path


class TreeHoldsMount(HostError):
    """A directory tree cannot be removed because something is mounted inside it, at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__(f"{path} is a mount point; unmount it before its directory is removed")


def file_identity(path: Path) -> tuple[int, int]:
    """Return (st_dev, st_ino): the same file under any path, until it is deleted."""
    status = path.stat()
    return status.st_dev, status.st_ino


def device_size_bytes(device: Path) -> int:
    """Return the length of a block device, whose stat says 0. Raises OSError: it is not there."""
    descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.lseek(descriptor, 0, os.SEEK_END)
    finally:
        os.close(descriptor)


async def fsync_file(path: Path) -> None:
    """Make a file's data and size durable."""
    await in_thread(_fsync, path, os.O_RDONLY)


async def fsync_dir(path: Path) -> None:
    """Make the names in a directory durable."""
    await in_thread(_fsync, path, os.O_RDONLY | os.O_DIRECTORY)


def _fsync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


async def write_json_atomic(path: Path, obj: Any, *, mode: int = 0o600) -> None:
    """Replace `path` by `obj` as JSON, durably; a reader sees the old or the new file, never half.

    State: on an error the old file stays. A crash may leave `.<name>.<8 hex digits>.tmp` beside it.
    """
    text = json.dumps(obj, indent=2, ensure_ascii=False, sort_keys=True) + "\n"
    await in_thread(replace_file, path, text.encode(), mode=mode)


def ensure_file(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """As `replace_file`, but leave one alone that says so already: nothing is written on a full
    disk.
    """
    with contextlib.suppress(FileNotFoundError):
        if stat.S_IMODE(path.stat().st_mode) == mode and path.read_bytes() == data:
            return
    replace_file(path, data, mode=mode)


def replace_file(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replace `path` by `data`, durably, as `write_json_atomic` does; for who may block: at start,
    and in threads.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _fsync(path.parent, os.O_RDONLY | os.O_DIRECTORY)


async def commit_rename(source: Path, target: Path) -> None:
    """Move a finished file or directory to its final name, durably; never replaces anything.

    What is inside must have been synced before. Raises: FileExistsError: `target` is there.
    State: after an error other than that, either name may be the one that exists; look.
    """
    await in_thread(_commit_rename, source, target)


def _commit_rename(source: Path, target: Path) -> None:
    syscalls.rename_noreplace(source, target)
    for directory in dict.fromkeys((target.parent, source.parent)):
        _fsync(directory, os.O_RDONLY | os.O_DIRECTORY)


async def grow_file(path: Path, size_bytes: int) -> None:
    """Extend a file to `size_bytes`, durably; the new part is a hole. Equal size is fine.

    Raises: ValueError: the file is longer; it is never cut.
    """
    await in_thread(_grow, path, size_bytes)


def _grow(path: Path, size_bytes: int) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        current = os.fstat(descriptor).st_size
        if size_bytes < current:
            raise ValueError(f"{path} has {current} bytes; it is not cut to {size_bytes}")
        os.ftruncate(descriptor, size_bytes)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


async def punch_hole(path: Path, *, offset_bytes: int, length_bytes: int) -> None:
    """Give the blocks of a range back to the file system; it reads as zeros, the size stays."""
    await in_thread(_punch_hole, path, offset_bytes, length_bytes)


def _punch_hole(path: Path, offset_bytes: int, length_bytes: int) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        syscalls.punch_hole(descriptor, offset_bytes, length_bytes)
    finally:
        os.close(descriptor)


async def remove_tree(path: Path) -> None:
    """Remove a file, or a directory with all below it, durably; missing is fine.

    Symbolic links are removed, not followed. Raises: TreeHoldsMount: something is mounted below.
    State: on an error part of the tree is left; may be repeated.
    """
    await in_thread(_remove_tree, path)


def _remove_tree(path: Path) -> None:
    try:
        is_directory = stat.S_ISDIR(path.lstat().st_mode)
    except FileNotFoundError:
        return
    parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if is_directory:
            _remove_directory(path, path.name, parent)
        else:
            os.unlink(path.name, dir_fd=parent)
        os.fsync(parent)
    finally:
        os.close(parent)


def _remove_directory(path: Path, name: str, parent: int) -> None:
    """Remove directory `name` of the open directory `parent`; `path` is for messages."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    try:
        descriptor = syscalls.open_beneath(name, flags, dir_fd=parent)
    except OSError as exc:
        if exc.errno == errno.EXDEV:
            raise TreeHoldsMount(path) from exc
        raise
    try:
        with os.scandir(descriptor) as entries:
            found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        for child, is_directory in found:
            if is_directory:
                _remove_directory(path / child, child, descriptor)
            else:
                _unlink(path / child, child, descriptor)
    finally:
        os.close(descriptor)
    os.rmdir(name, dir_fd=parent)


def _unlink(path: Path, name: str, parent: int) -> None:
    try:
        os.unlink(name, dir_fd=parent)
    except OSError as exc:
        if exc.errno == errno.EBUSY:  # a file may be a mount point as well
            raise TreeHoldsMount(path) from exc
        raise
