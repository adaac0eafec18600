"""What staging and publishing need from a node's kernel, as obligations.

Owns: the protocols between `services.node` and `host.node_storage`, and the values that pass.
Must never: hold an implementation or do I/O. All paths are absolute; devices are paths of block
devices. What is asked is always answered from the kernel, never remembered, so that a process that
takes over after a kill sees what its predecessor did.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence


class JournalReplayNeeded(Exception):
    """A read-only device holds a journal that must be replayed before it can be mounted."""


class ContentKind(StrEnum):
    """What a device begins with."""

    #: No signature that any tool knows; not necessarily zeros.
    EMPTY = "empty"
    FILE_SYSTEM = "file system"
    PARTITIONS = "partition table"
    #: Anything else that is recognised: LUKS, LVM, RAID, swap.
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Content:
    """`what` names it as blkid does: ext4, gpt, crypto_LUKS; empty for an empty device."""

    kind: ContentKind
    what: str = ""


@dataclass(frozen=True, slots=True)
class MountPoint:
    """Something mounted at `target`. `device` is the block device whose file system it is or, where
    `is_block`, the device whose node it is; empty for anything else.
    """

    target: str
    device: str
    is_block: bool
    is_read_only: bool


@dataclass(frozen=True, slots=True)
class FileSystemUsage:
    """From statvfs; `available` is what an unprivileged user can still take."""

    total_bytes: int
    used_bytes: int
    available_bytes: int
    total_inodes: int
    used_inodes: int
    available_inodes: int


class VolumeUse(Protocol):
    """Tells whether somebody uses a volume."""

    async def find_user(self, volume_id: str) -> str | None:
        """Return in words who uses the volume (staged or published), or None."""


class NodeStorage(Protocol):
    """The node's kernel, as far as volumes need it. Callers serialise calls about one volume."""

    async def resolve(self, path: str) -> str:
        """Return the path without symbolic links, as `MountPoint.target` has it."""

    async def attach(self, image: str) -> str:
        """Return the device of the raw file `image`, attached now where it was not."""

    async def find_device(self, image: str) -> str | None:
        """Return the device that `image` is attached to, under whatever path."""

    async def detach(self, image: str) -> None:
        """Detach; not attached or missing is success. Raises InUse: mounted or open."""

    async def set_writable(self, device: str, *, writable: bool) -> None:
        """Make the kernel refuse (or allow again) every write to the device, by whatever name."""

    async def device_size_bytes(self, device: str) -> int: ...

    async def inspect(self, device: str) -> Content:
        """Say what a device holds."""

    async def format(self, device: str, fs_type: str) -> None:
        """Make a file system, overwriting what is there. Raises InvalidArgument, NoSpace."""

    async def mount(
        self,
        device: str,
        target: str,
        fs_type: str,
        *,
        read_only: bool,
        options: Sequence[str],
    ) -> None:
        """Mount on the directory `target`, made where it is missing; clones mount beside their
        source.

        Raises: InvalidArgument: an option that is not understood. JournalReplayNeeded. Corrupt.
        """

    async def bind(self, source: str, target: str, *, read_only: bool) -> None:
        """Bind a directory or a device node on `target`, made where it is missing, at once with its
        read-only state.
        """

    async def unmount(self, target: str) -> None:
        """Take away what is mounted right at `target`; nothing there is success. Raises InUse."""

    async def remove_mount_point(self, target: str) -> None:
        """Remove the empty directory or file that was mounted on; missing is success."""

    async def find_mount(self, target: str) -> MountPoint | None:
        """Return what is mounted right at `target`."""

    async def list_mounts(self, device: str) -> Sequence[MountPoint]:
        """Return every place where the device's file system or its node is mounted."""

    async def grow_unmounted(self, device: str, fs_type: str) -> None:
        """Let a file system that is not mounted fill its device, if it is of a kind that should
        grow then; already so is success. Raises Corrupt, WrongState.
        """

    async def grow(self, mount: MountPoint) -> None:
        """Let a mounted file system fill its device; already so is success.

        Raises WrongState: it can grow only while it is not mounted.
        """

    async def usage(self, target: str) -> FileSystemUsage: ...

    async def clone_file(self, source: str, target: str) -> None:
        """Make `target` a copy of the file, sharing blocks where possible; replaces a leftover."""

    async def remove_file(self, path: str) -> None:
        """Remove a file; missing is success."""
