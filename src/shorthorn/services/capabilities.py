"""What a volume may be asked to be: access modes, volume modes, file systems.

Owns the words of CSI's VolumeCapability and the judgement which of them are offered: volumes lie on
one node, so everything on one node is, and nothing on several. Pure. Called by the CSI edge (which
fills the words in), `services.volumes` and `services.node`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from shorthorn.domain.errors import InvalidArgument, UnsupportedCapability

if TYPE_CHECKING:
    from collections.abc import Sequence


class VolumeMode(StrEnum):
    """How a workload sees the volume; Kubernetes' words."""

    FILESYSTEM = "Filesystem"
    BLOCK = "Block"


class AccessMode(StrEnum):
    """CSI's access modes."""

    SINGLE_NODE_WRITER = "SINGLE_NODE_WRITER"
    SINGLE_NODE_READER_ONLY = "SINGLE_NODE_READER_ONLY"
    SINGLE_NODE_SINGLE_WRITER = "SINGLE_NODE_SINGLE_WRITER"
    SINGLE_NODE_MULTI_WRITER = "SINGLE_NODE_MULTI_WRITER"
    MULTI_NODE_READER_ONLY = "MULTI_NODE_READER_ONLY"
    MULTI_NODE_SINGLE_WRITER = "MULTI_NODE_SINGLE_WRITER"
    MULTI_NODE_MULTI_WRITER = "MULTI_NODE_MULTI_WRITER"


OFFERED_ACCESS: Final = frozenset(
    {
        AccessMode.SINGLE_NODE_WRITER,
        AccessMode.SINGLE_NODE_READER_ONLY,
        AccessMode.SINGLE_NODE_SINGLE_WRITER,
        AccessMode.SINGLE_NODE_MULTI_WRITER,
    }
)
DEFAULT_FS_TYPE: Final = "ext4"
#: Smallest volume: xfsprogs makes none below 300 MiB; btrfs-progs does from 109 MiB on, but the
#: kernel resizes none below 256 MiB.
FS_BYTES_MIN: Final = {"ext4": 0, "xfs": 300 << 20, "btrfs": 256 << 20}


@dataclass(frozen=True, slots=True)
class Capability:
    """One VolumeCapability. `fs_type` is empty where the caller has no wish."""

    mode: VolumeMode
    access: AccessMode
    fs_type: str = ""
    mount_options: tuple[str, ...] = ()
    volume_mount_group: str = ""

    @property
    def is_read_only(self) -> bool:
        """Whether nobody may write through it, by its access mode or by a mount option."""
        is_reader = self.access is AccessMode.SINGLE_NODE_READER_ONLY
        return is_reader or "ro" in self.mount_options

    @property
    def file_system(self) -> str:
        """The file system a blank volume gets; empty for a block volume."""
        return (self.fs_type or DEFAULT_FS_TYPE) if self.mode is VolumeMode.FILESYSTEM else ""


def check_offered(capability: Capability) -> None:
    """Raise UnsupportedCapability where this driver does not offer `capability`."""
    if capability.access not in OFFERED_ACCESS:
        raise UnsupportedCapability(
            "access_mode",
            f"{capability.access} is not offered: a volume lies on one node; use ReadWriteOnce, "
            "ReadWriteOncePod or a single-node read-only mode",
        )
    if capability.mode is VolumeMode.FILESYSTEM and capability.file_system not in FS_BYTES_MIN:
        raise UnsupportedCapability(
            "fs_type", f"{capability.fs_type!r} is not offered; use {', '.join(FS_BYTES_MIN)}"
        )
    if capability.volume_mount_group:
        raise UnsupportedCapability(
            "volume_mount_group", "not offered; the orchestrator applies fsGroup itself"
        )


def check_all_offered(capabilities: Sequence[Capability]) -> None:
    """Raise InvalidArgument where there are none, UnsupportedCapability for one not offered."""
    if not capabilities:
        raise InvalidArgument("volume_capabilities", "at least one is required")
    for capability in capabilities:
        check_offered(capability)
