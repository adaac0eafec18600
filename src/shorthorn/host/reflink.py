"""Copies that share blocks.

Owns FICLONE. Must never fall back to copying bytes: who wants that asks
`host.sparse_copy`, so that a caller always knows what a clone costs. Called by the engines and the
image code.
"""

from __future__ import annotations

import errno
import fcntl
import os
from typing import TYPE_CHECKING

from shorthorn.host.errors import HostError
from shorthorn.kit.threads import in_thread

if TYPE_CHECKING:
    from pathlib import Path

# linux/fs.h: _IOW(0x94, 9, int)
_FICLONE = 0x40049409
#: EINVAL is left out: it means a misaligned range, which is the caller's mistake. ENOTTY: no ioctl.
_UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.EXDEV, errno.ENOTTY, errno.ENOSYS})
#: A full disk; a file system without O_TMPFILE.
_NO_NEW_FILE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EOPNOTSUPP, errno.EISDIR})


class ReflinkUnsupported(HostError):
    """These files cannot share blocks: other file systems, or one without reflinks."""

    def __init__(self, source: Path, target: Path, cause: str) -> None:
        self.source = source
        self.target = target
        super().__init__(f"{target} cannot share blocks with {source}: {cause}")


async def clone_file(source: Path, target: Path, *, size_bytes: int | None = None) -> None:
    """Make the new file `target` share all blocks of `source`, then extend it to `size_bytes`.

    Costs by extents, not bytes (measured on 6.18, XFS and btrfs: 10 µs each); writers of `source`
    wait meanwhile, so the clone is of one moment.
    Dirty pages of `source` are written first. Nothing is synced: `host.files.fsync_file` or a
    commit does that.

    Args: size_bytes: at least the size of `source`; None keeps it.
    Raises: FileExistsError: `target` is there. ReflinkUnsupported. ValueError: too small a size.
        OSError: ENOSPC and others of the file system.
    State: on an error no new `target` is left.
    Source: ioctl_ficlonerange(2).
    """
    await in_thread(clone_file_now, source, target, size_bytes)


def clone_file_now(source: Path, target: Path, size_bytes: int | None = None) -> None:
    """`clone_file` on the calling thread, for the moments when nothing may come between."""
    source_descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        source_bytes = os.fstat(source_descriptor).st_size
        if size_bytes is not None and size_bytes < source_bytes:
            raise ValueError(f"{source} has {source_bytes} bytes, more than {size_bytes}")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        target_descriptor = os.open(target, flags, 0o600)
        try:
            _clone(source, target, source_descriptor, target_descriptor)
            if size_bytes is not None:
                os.ftruncate(target_descriptor, size_bytes)
        except BaseException:
            target.unlink()
            raise
        finally:
            os.close(target_descriptor)
    finally:
        os.close(source_descriptor)


def _clone(source: Path, target: Path, source_descriptor: int, target_descriptor: int) -> None:
    try:
        fcntl.ioctl(target_descriptor, _FICLONE, source_descriptor)
    except OSError as exc:
        # EINVAL: a file system of the kind, made without reflinks (XFS with reflink=0).
        if exc.errno in _UNSUPPORTED or exc.errno == errno.EINVAL:
            raise ReflinkUnsupported(source, target, os.strerror(exc.errno or 0)) from exc
        raise


async def supports_reflink(directory: Path) -> bool:
    """Tell whether files in `directory` can share blocks, by trying it there.

    Raises: OSError: no such directory, or not writable.
    """
    return await in_thread(_supports_reflink, directory)


def _supports_reflink(directory: Path) -> bool:
    try:
        # Without a name: killed here, we would leave something that nobody sweeps.
        descriptor = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        if exc.errno not in _NO_NEW_FILE:
            raise
        file = next((path for path in sorted(directory.iterdir()) if path.is_file()), None)
        if file is None and exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        if file is None:
            return False
        descriptor = os.open(file, os.O_RDWR | os.O_CLOEXEC)
    try:
        # Onto itself, which changes nothing: the kernel refuses that for a file that holds
        # something (EINVAL), but only after it has asked whether the file system can clone at all.
        fcntl.ioctl(descriptor, _FICLONE, descriptor)
    except OSError as exc:
        if exc.errno in _UNSUPPORTED:
            return False
        if exc.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)
    return True
