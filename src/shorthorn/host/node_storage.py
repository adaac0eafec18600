"""A node's kernel, as `services.node` needs it: the implementation of `domain.node_ports`.

Owns the translation between the service's words and this package's modules, and from their errors
into domain errors. Must never decide whether something may be formatted, mounted or detached.
Wired by `daemon`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from shorthorn.domain.errors import (
    Corrupt,
    InUse,
    InvalidArgument,
    NoSpace,
    Unavailable,
    WrongState,
)
from shorthorn.domain.node_ports import (
    Content,
    ContentKind,
    FileSystemUsage,
    JournalReplayNeeded,
    MountPoint,
)
from shorthorn.host import bind_mounts, file_systems, loop_devices, mounts, reflink, sparse_copy
from shorthorn.kit.process import CommandFailed, CommandMissing, CommandTimedOut
from shorthorn.kit.threads import in_thread

#: linux/fs.h: _IO(0x12, 93)
_BLKROSET = 0x125D


class HostNodeStorage:
    """See the module. Has no state of its own."""

    def __init__(self, *, kernel_release: str | None = None) -> None:
        """`kernel_release`: whose rules hold, as uname(2) tells it; None: the running kernel's."""
        self._kernel_release = kernel_release

    async def resolve(self, path: str) -> str:
        """Return the path as mountinfo shows it."""
        return await in_thread(os.path.realpath, path)

    # --- devices

    async def attach(self, image: str) -> str:
        """Return the loop device of `image`; thin, so that discards give its space back."""
        device = await loop_devices.ensure_attached(Path(image))
        return str(device.path)

    async def find_device(self, image: str) -> str | None:
        """Return the loop device of `image`, if any."""
        try:
            device = await loop_devices.find_by_file(Path(image))
        except FileNotFoundError:
            return None
        return str(device.path) if device else None

    async def detach(self, image: str) -> None:
        """Detach `image`."""
        try:
            device = await loop_devices.find_by_file(Path(image))
        except FileNotFoundError:
            return
        if device is None:
            return
        try:
            await loop_devices.detach(device)
        except loop_devices.LoopDeviceBusy as exc:
            raise InUse("device", str(device.path), "a process that has it open") from exc

    async def set_writable(self, device: str, *, writable: bool) -> None:
        """Set the block layer's read-only flag, which every open for writing meets."""
        await in_thread(_set_read_only, device, not writable)

    async def device_size_bytes(self, device: str) -> int:
        """Return the size of the device."""
        return await loop_devices.size_bytes(Path(device))

    # --- file systems

    async def inspect(self, device: str) -> Content:
        """Say what a device holds, by its signatures."""
        try:
            found = await file_systems.probe(Path(device))
        except file_systems.SignatureUnclear:
            return Content(ContentKind.OTHER, "several contradicting signatures")
        if found.fs_type:
            is_mountable = found.usage == "filesystem"
            kind = ContentKind.FILE_SYSTEM if is_mountable else ContentKind.OTHER
            return Content(kind, found.fs_type)
        if found.partition_table:
            return Content(ContentKind.PARTITIONS, found.partition_table)
        return Content(ContentKind.EMPTY)

    async def format(self, device: str, fs_type: str) -> None:
        """Make a file system."""
        try:
            with _tool_errors(device):
                await file_systems.make(fs_type, Path(device))
        except file_systems.UnsupportedFileSystem as exc:
            raise InvalidArgument("fs_type", str(exc)) from exc
        except OSError as exc:
            if exc.errno != errno.ENOSPC:
                raise
            raise NoSpace("below " + device, 0, 0) from exc

    async def grow_unmounted(self, device: str, fs_type: str) -> None:
        """Let an ext4 that is not mounted fill its device; others grow when they are mounted."""
        with _tool_errors(device):
            await file_systems.grow_unmounted(fs_type, Path(device))

    async def grow(self, mount: MountPoint) -> None:
        """Let a mounted file system fill its device."""
        found = mounts.find_mount(Path(mount.target))
        if found is None:
            return
        try:
            with _tool_errors(mount.device):
                await file_systems.grow(found.fs_type, Path(mount.device), Path(mount.target))
        except file_systems.UnsupportedFileSystem:
            return  # ext2, ext3: mounted as they are
        except file_systems.OnlineGrowRefused as exc:
            raise WrongState(
                "file system",
                mount.target,
                "mounted, and cannot be grown like that here",
                "unmounting (it grows at the next mount)",
            ) from exc

    async def usage(self, target: str) -> FileSystemUsage:
        """Return statvfs of a mounted file system."""
        found = await file_systems.usage(Path(target))
        return FileSystemUsage(
            total_bytes=found.total_bytes,
            used_bytes=found.used_bytes,
            available_bytes=found.available_bytes,
            total_inodes=found.total_inodes,
            used_inodes=found.used_inodes,
            available_inodes=found.available_inodes,
        )

    # --- mounts

    async def mount(
        self,
        device: str,
        target: str,
        fs_type: str,
        *,
        read_only: bool,
        options: Sequence[str],
    ) -> None:
        """Mount; errors of the kernel become what they mean to a caller."""
        try:
            Path(target).mkdir(parents=True, exist_ok=True, mode=0o750)
        except (FileExistsError, NotADirectoryError) as exc:
            raise InvalidArgument("staging_target_path", f"{target} is no directory") from exc
        if not read_only:
            await self._part_from_twin(device, fs_type)
        words = [*file_systems.mount_options(fs_type), *options]
        try:
            await mounts.mount(
                Path(device), Path(target), fs_type, options=words, read_only=read_only
            )
        except mounts.MountFailed as exc:
            raise _mount_error(exc, device, is_read_only=read_only) from exc

    async def _part_from_twin(self, device: str, fs_type: str) -> None:
        """Give a clone a UUID of its own where its origin is mounted and the kernel would take the
        one for the other.
        """
        if not file_systems.clone_needs_new_uuid(fs_type, kernel_release=self._kernel_release):
            return
        if await file_systems.has_mounted_twin(Path(device)):
            try:
                with _tool_errors(device):
                    await file_systems.new_uuid(fs_type, Path(device))
            except file_systems.UuidUnchanged as exc:
                raise Unavailable("mount", str(exc)) from exc

    async def bind(self, source: str, target: str, *, read_only: bool) -> None:
        """Bind at once in its final state; makes the mount point, of the source's kind."""
        try:
            is_directory = await in_thread(_make_mount_point, source, target)
        except OSError as exc:
            problem = f"cannot be made: {exc.strerror}"
            raise InvalidArgument("target_path", f"{target}: {problem}") from exc
        try:
            await bind_mounts.bind(Path(source), Path(target), read_only=read_only)
        except OSError as exc:
            kind = "directory" if is_directory else "device"
            problem = f"cannot bind the {kind} there: {exc.strerror}"
            raise InvalidArgument("target_path", f"{target}: {problem}") from exc

    async def unmount(self, target: str) -> None:
        """Unmount everything right at `target`."""
        try:
            await mounts.ensure_unmounted(Path(target))
        except mounts.MountBusy as exc:
            raise InUse("mount", target, "a process or another mount below it") from exc

    async def remove_mount_point(self, target: str) -> None:
        """Remove an empty directory or a file."""
        await in_thread(_remove_mount_point, target)

    async def find_mount(self, target: str) -> MountPoint | None:
        """Return the topmost mount right at `target`."""
        return await in_thread(_find_mount, target)

    async def list_mounts(self, device: str) -> Sequence[MountPoint]:
        """Return all mounts of the device's file system and all binds of its node."""
        return await in_thread(_list_mounts, device)

    # --- files

    async def clone_file(self, source: str, target: str) -> None:
        """Clone by reflink, else by copying what is not zero."""
        await self.remove_file(target)
        try:
            await reflink.clone_file(Path(source), Path(target))
        except reflink.ReflinkUnsupported:
            await _copy(Path(source), Path(target))

    async def remove_file(self, path: str) -> None:
        """Remove a file."""
        await in_thread(Path(path).unlink, missing_ok=True)


async def _copy(source: Path, target: Path) -> None:
    try:
        await sparse_copy.copy_sparse(source, target)
    except sparse_copy.FileInUse as exc:
        raise InUse("volume file", str(source), "a process that writes to it") from exc


def _set_read_only(device: str, read_only: bool) -> None:
    descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, _BLKROSET, struct.pack("i", int(read_only)))
    finally:
        os.close(descriptor)


def _make_mount_point(source: str, target: str) -> bool:
    """Make what `source` can be bound on; return whether it is a directory."""
    path = Path(target)
    if Path(source).is_dir():
        path.mkdir(parents=True, exist_ok=True, mode=0o750)
        return True
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
    path.touch(mode=0o600)
    return False


def _remove_mount_point(target: str) -> None:
    path = Path(target)
    try:
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            if path.is_file() and not path.is_symlink() and path.stat().st_size:
                raise InUse("path", target, "content: this file is none of ours")
            path.unlink(missing_ok=True)
    except FileNotFoundError:
        return
    except OSError as exc:
        if exc.errno == errno.ENOTEMPTY:
            return  # a user's directory: what the mount had hidden is theirs
        if exc.errno != errno.EBUSY:
            raise
        raise InUse("path", target, "a mount") from exc


def _find_mount(target: str) -> MountPoint | None:
    found = mounts.find_mount(Path(target))
    return _mount_point(found) if found else None


def _list_mounts(device: str) -> list[MountPoint]:
    number = os.stat(device).st_rdev
    file_system_mounts = {m.mount_id for m in mounts.mounts_of_device(Path(device))}
    found = []
    for mount in mounts.read_mounts():
        if mount.mount_id in file_system_mounts:
            found.append(MountPoint(str(mount.target), device, False, mount.is_read_only))
        elif _is_node(mount, Path(device).name) and _node_number(mount.target) == number:
            found.append(MountPoint(str(mount.target), device, True, "ro" in mount.options))
    return found


def _mount_point(mount: mounts.Mount) -> MountPoint:
    """Describe one mount; its device is looked up by number, since names may differ."""
    number = _node_number(mount.target)
    if number is not None:
        return MountPoint(str(mount.target), _device_path(number), True, "ro" in mount.options)
    if mount.device_number[0] != 0:
        device = _device_path(os.makedev(*mount.device_number))
    else:  # btrfs has an anonymous number, and names its device
        device = mount.source if mount.source.startswith("/dev/") else ""
    return MountPoint(str(mount.target), device, False, mount.is_read_only)


def _is_node(mount: mounts.Mount, name: str) -> bool:
    return mount.root.rpartition("/")[2] == name


def _node_number(target: Path) -> int | None:
    """Return the number of the block device whose node is visible at `target`, else None."""
    try:
        status = target.lstat()
    except OSError:
        return None
    return status.st_rdev if stat.S_ISBLK(status.st_mode) else None


def _device_path(number: int) -> str:
    link = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    try:
        return f"/dev/{link.readlink().name}"
    except OSError:
        return ""


def _mount_error(exc: mounts.MountFailed, device: str, *, is_read_only: bool) -> Exception:
    if is_read_only and exc.errno in (errno.EROFS, errno.EACCES):
        return JournalReplayNeeded(device)
    if exc.errno in (errno.EUCLEAN, errno.EIO):
        return Corrupt("file system", device, exc.reason)
    if exc.errno == errno.EBUSY:
        return InUse("device", device, exc.reason)
    if exc.errno == errno.EINVAL:
        return InvalidArgument("volume_capability", f"{exc}; look at the mount options")
    return Unavailable("mount", str(exc))


@contextmanager
def _tool_errors(device: str) -> Iterator[None]:
    """Say what a failed tool means: it is missing, too slow, or the file system is damaged."""
    try:
        yield
    except CommandMissing as exc:
        raise Unavailable(exc.tool, str(exc)) from exc
    except CommandTimedOut as exc:
        raise Unavailable(exc.argv[0], str(exc)) from exc
    except CommandFailed as exc:
        raise Corrupt("file system", device, str(exc)) from exc
