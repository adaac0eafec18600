"""Where the pool is: a directory, or a file system in a file.

Owns `pool` and `pool.xfs` in a data directory: on a file system with reflinks the pool is the plain
directory; elsewhere it is the mount point of an XFS in a preallocated file. Must never let that
file lose blocks: volumes were promised them, and when the host's file system is full, a write to a
hole is an I/O error in every volume. So it is fallocated, made without discard, and its loop device
refuses discards (fstrim.timer trims every mounted file system once a week). Called by the daemon,
under the data directory's lock.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shorthorn.host import files, loop_devices, mounts, reflink
from shorthorn.host.errors import HostError
from shorthorn.kit import process
from shorthorn.kit.threads import in_thread

if TYPE_CHECKING:
    from pathlib import Path

    from shorthorn.host.loop_devices import LoopDevice

log = logging.getLogger(__name__)

POOL_NAME = "pool"
FILE_NAME = "pool.xfs"
#: Found at start, it is the rest of an attempt that did not end.
PARTIAL_NAME = "pool.xfs.partial"

MIB = 1 << 20
GIB = 1 << 30
#: mkfs.xfs refuses less (xfsprogs 6.1).
POOL_BYTES_MIN = 300 * MIB
#: Enough to try everything; who wants more says so, since it is taken at once.
DEFAULT_POOL_BYTES_MAX = 20 * GIB
#: Left for the database and logs beside the pool file.
_SPARE_BYTES = 64 * MIB
_MAKE_TIMEOUT_S = 300.0


class PoolUnusable(HostError):
    """The pool cannot be had below this data directory; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Pool:
    """A directory whose files can share blocks."""

    path: Path
    #: the file it lives in, and that file's device; None for a plain directory
    file: Path | None
    device: LoopDevice | None


async def ensure_pool(data_dir: Path, *, pool_size_bytes: int | None = None) -> Pool:
    """Make or find the pool of a data directory, mounted and ready. Idempotent.

    A pool file that exists is used whatever its size; one that is mounted already, with volumes in
    use, is left as it is.

    Args: pool_size_bytes: of a pool file that has to be made; whole MiB of it are used. None: half
        of the free space, at most 20 GiB.
    Raises: PoolUnusable: too little space, or something else is in its place. CommandMissing:
        xfsprogs is not installed.
    State: killed at any line, the next call goes on.
    """
    path, file = data_dir / POOL_NAME, data_dir / FILE_NAME
    if not file.exists():
        if mounts.find_mount(path) is not None:
            return await _mounted_by_owner(path)
        if await reflink.supports_reflink(data_dir):
            path.mkdir(exist_ok=True)
            return Pool(path, None, None)
        await _make_pool_file(data_dir, pool_size_bytes)
    if pool_size_bytes not in (None, file.stat().st_size):
        log.warning("%s exists with %d bytes; --pool-size has no effect", file, file.stat().st_size)
    await _ensure_preallocated(file)
    device = await _attach(file)
    await _ensure_mounted(device, path)
    if not await reflink.supports_reflink(path):
        raise PoolUnusable(f"{file} holds a file system that cannot share blocks")
    return Pool(path, file, device)


async def _mounted_by_owner(path: Path) -> Pool:
    """The host's owner may mount a file system of their own where the pool belongs."""
    if not await reflink.supports_reflink(path):
        raise PoolUnusable(f"{path} is a mount of a file system that cannot share blocks")
    return Pool(path, None, None)


async def find_users(data_dir: Path) -> list[Path]:
    """Return where volumes of the pool are mounted, or the devices that they are attached to.

    Those of other processes' directories too; a volume that is merely open is not seen.
    """
    pool = data_dir / POOL_NAME
    if not pool.is_dir():
        return []
    number = pool.stat().st_dev
    attached = [d for d in await loop_devices.list_attached() if d.file_identity[0] == number]
    # A pool that is a plain directory shares its file system with others' files.
    files_here = {files.file_identity(path) for path in pool.glob("volumes/*/*.raw")}
    users: list[Path] = []
    for device in attached:
        if device.file_identity in files_here:
            targets = [mount.target for mount in mounts.mounts_of_device(device.path)]
            users += targets or [device.path]
    return users


async def release_pool(data_dir: Path) -> None:
    """Unmount the pool and detach its file; nothing there is fine. Data stays.

    Raises: MountBusy, LoopDeviceBusy: a volume is attached or mounted.
    """
    file = data_dir / FILE_NAME
    if not file.exists():
        return
    device = await loop_devices.find_by_file(file)
    if device is None:
        return
    mount = mounts.find_mount(data_dir / POOL_NAME)
    if mount is not None and mount.device_number == device.device_number:
        await mounts.unmount(data_dir / POOL_NAME)
    await loop_devices.detach(device)


def default_pool_size_bytes(data_dir: Path) -> int:
    """Return half of the free space, at most 20 GiB, in whole MiB."""
    return min(_free_bytes(data_dir) // 2, DEFAULT_POOL_BYTES_MAX) // MIB * MIB


def _free_bytes(directory: Path) -> int:
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize


async def _make_pool_file(data_dir: Path, pool_size_bytes: int | None) -> None:
    partial = data_dir / PARTIAL_NAME
    partial.unlink(missing_ok=True)
    size_bytes = (pool_size_bytes or default_pool_size_bytes(data_dir)) // MIB * MIB
    _check_space(data_dir, size_bytes)
    try:
        await in_thread(_preallocate, partial, size_bytes)
        # Sectors of 4096 bytes suit every disk below; -K: mkfs would punch the whole file.
        await process.run(
            ["mkfs.xfs", "-q", "-K", "-m", "reflink=1", "-s", "size=4096", partial],
            timeout_s=_MAKE_TIMEOUT_S,
        )
        await in_thread(_check_preallocated, partial)
        await files.fsync_file(partial)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    await files.commit_rename(partial, data_dir / FILE_NAME)


def _check_space(data_dir: Path, size_bytes: int) -> None:
    free_bytes = _free_bytes(data_dir)
    if size_bytes < POOL_BYTES_MIN:
        raise PoolUnusable(
            f"a pool needs {POOL_BYTES_MIN // MIB} MiB at least, not {size_bytes // MIB} MiB;"
            f" {data_dir} has {free_bytes // MIB} MiB free"
        )
    if size_bytes + _SPARE_BYTES > free_bytes:
        raise PoolUnusable(
            f"a pool of {size_bytes // MIB} MiB does not fit below {data_dir}, where"
            f" {free_bytes // MIB} MiB are free and {_SPARE_BYTES // MIB} MiB of them must stay so;"
            " choose a smaller pool size or another data directory"
        )


async def _ensure_preallocated(file: Path) -> None:
    """Fill holes, which a restored backup or a foreign fstrim may have left; else do nothing."""
    if not _is_preallocated(file):
        await in_thread(_preallocate, file, file.stat().st_size)


def _preallocate(file: Path, size_bytes: int) -> None:
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, size_bytes)
    except OSError as exc:
        if exc.errno == errno.ENOSPC:
            raise PoolUnusable(
                f"there is no space to allocate all {size_bytes // MIB} MiB of {file}"
            ) from exc
        raise
    finally:
        os.close(descriptor)


def _is_preallocated(file: Path) -> bool:
    status = file.stat()
    return status.st_blocks * 512 >= status.st_size


def _check_preallocated(file: Path) -> None:
    if not _is_preallocated(file):
        raise PoolUnusable(f"the file system of {file} does not keep blocks allocated")


async def _attach(file: Path) -> LoopDevice:
    """Attach the pool file; with larger blocks where the disk below needs them for direct I/O."""
    existing = await loop_devices.find_by_file(file)
    device = await loop_devices.ensure_attached(file, discards=False)
    if existing is None and not device.direct_io:
        await loop_devices.detach(device)
        device = await loop_devices.ensure_attached(file, discards=False, logical_block_bytes=4096)
    return device


async def _ensure_mounted(device: LoopDevice, path: Path) -> None:
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    mount = mounts.find_mount(path)
    if mount is None:
        await mounts.mount(device.path, path, "xfs", options=["noatime"])
    elif mount.device_number != device.device_number:
        raise PoolUnusable(f"{mount.source} is mounted at {path}, where the pool belongs")
