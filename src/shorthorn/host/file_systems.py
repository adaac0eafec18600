"""File systems on block devices: what is there, making, growing, new identities.

Owns the command lines of blkid, mkfs, resize and UUID tools, with options fit for thin volumes
that get cloned. Must never decide whether a device may be formatted. Called by the node service's
adapter and the engines.
"""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path

from shorthorn.host import syscalls
from shorthorn.host.errors import HostError
from shorthorn.host.files import device_size_bytes
from shorthorn.kit import process
from shorthorn.kit.threads import in_thread

EXT4 = "ext4"
XFS = "xfs"
BTRFS = "btrfs"

#: mkfs writes metadata only; minutes are for a disk that is very busy.
_MAKE_TIMEOUT_S = 300.0
#: Growing and changing UUIDs touch every allocation group.
_CHANGE_TIMEOUT_S = 600.0
_PROBE_TIMEOUT_S = 60.0
#: blkid(8): nothing was found; several signatures contradict each other.
_BLKID_NOTHING = 2
_BLKID_AMBIVALENT = 8
#: linux/capability.h; containers and sandboxes often lack it though they run as root.
_CAP_SYS_RESOURCE = 24

_MAKE: dict[str, tuple[str, ...]] = {
    # No blocks reserved for root: it is a volume, not a system disk. The inode tables of a device
    # of zeros need no zeroing, which would allocate them (1.6 % of the volume).
    EXT4: (
        *("mkfs.ext4", "-q", "-F", "-b", "4096", "-m", "0"),
        *("-E", "nodiscard,assume_storage_prezeroed=1"),
    ),
    XFS: ("mkfs.xfs", "-q", "-f", "-K"),
    BTRFS: ("mkfs.btrfs", "-q", "-f", "-K"),
}


class UnsupportedFileSystem(HostError):
    """We make and grow ext4, xfs and btrfs only."""

    def __init__(self, fs_type: str) -> None:
        self.fs_type = fs_type
        super().__init__(f"file system {fs_type!r} is not one of {', '.join(_MAKE)}")


class OnlineGrowRefused(HostError):
    """The kernel resizes a mounted ext4 only for processes with CAP_SYS_RESOURCE."""

    def __init__(self, device: Path) -> None:
        self.device = device
        super().__init__(
            f"the ext4 on {device} can grow only while it is not mounted:"
            " this process has no CAP_SYS_RESOURCE"
        )


class SignatureUnclear(HostError):
    """A device carries signatures of several things; what it is cannot be told."""

    def __init__(self, device: Path) -> None:
        self.device = device
        super().__init__(f"{device} carries several contradicting signatures")


class UuidUnchanged(HostError):
    """A tool did not give the file system a new UUID, whatever its exit code says."""

    def __init__(self, device: Path, said: str) -> None:
        self.device = device
        super().__init__(f"{device} keeps its UUID: {said.strip() or 'the tool gave no reason'}")


@dataclass(frozen=True, slots=True)
class Signature:
    """What a device begins with; empty strings for what it does not have."""

    #: blkid's name of the content: ext4, xfs, btrfs, also swap, LVM2_member, crypto_LUKS
    fs_type: str = ""
    #: blkid's class of it: filesystem, raid, crypto, other
    usage: str = ""
    uuid: str = ""
    label: str = ""
    #: dos, gpt, ...; a device with one has no file system of its own
    partition_table: str = ""

    @property
    def is_blank(self) -> bool:
        """Whether nothing is known to be there."""
        return not self.fs_type and not self.partition_table


@dataclass(frozen=True, slots=True)
class Capacity:
    """Of a mounted file system; `available` is what is left for users other than root."""

    total_bytes: int
    used_bytes: int
    available_bytes: int
    total_inodes: int
    used_inodes: int
    available_inodes: int


async def probe(device: Path) -> Signature:
    """Read the signatures on a device or file itself, never a cache of them.

    Raises: SignatureUnclear. CommandFailed: the device cannot be read.
    """
    result = await process.run(
        ["blkid", "--probe", "--output", "export", device],
        timeout_s=_PROBE_TIMEOUT_S,
        check=False,
    )
    if result.returncode == _BLKID_AMBIVALENT:
        raise SignatureUnclear(device)
    if result.returncode == _BLKID_NOTHING:
        await in_thread(_read_first_byte, device)  # blkid says the same of what it cannot open
        return Signature()
    if result.returncode != 0:
        said = result.stderr.decode(errors="replace")
        raise process.CommandFailed(result.argv, result.returncode, said)
    return _parse_export(result.text)


def _parse_export(text: str) -> Signature:
    facts = dict(line.partition("=")[::2] for line in text.splitlines())
    return Signature(
        fs_type=facts.get("TYPE", ""),
        usage=facts.get("USAGE", ""),
        uuid=facts.get("UUID", ""),
        label=re.sub(r"\\(.)", r"\1", facts.get("LABEL", "")),
        partition_table=facts.get("PTTYPE", ""),
    )


def _read_first_byte(device: Path) -> None:
    descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.read(descriptor, 1)
    finally:
        os.close(descriptor)


async def make(fs_type: str, device: Path, *, label: str = "") -> None:
    """Make an empty file system; all that the device held is given back to the pool first.

    The device must be thin (a loop device that passes discards on), so that it reads as zeros then.

    Raises: UnsupportedFileSystem. CommandFailed: the device is too small for it.
        OSError: EBUSY, mounted; EOPNOTSUPP, not thin; ENOSPC.
    State: after an error or a crash the device holds nothing, or half a file system; make it again.
    """
    if fs_type not in _MAKE:
        raise UnsupportedFileSystem(fs_type)
    await in_thread(_zero, device)
    naming = ("-L", label) if label else ()
    await process.run([*_MAKE[fs_type], *naming, device], timeout_s=_MAKE_TIMEOUT_S)


def _zero(device: Path) -> None:
    """Make a device read as zeros by giving its blocks back."""
    # O_EXCL: never beneath a mount.
    descriptor = os.open(device, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
    try:
        syscalls.punch_hole(descriptor, 0, os.lseek(descriptor, 0, os.SEEK_END))
    finally:
        os.close(descriptor)


#: The kernel refuses to resize a btrfs to less, even to the size that it has.
_BTRFS_RESIZE_BYTES_MIN = 256 << 20


async def grow(fs_type: str, device: Path, mount_point: Path) -> None:
    """Let a mounted, writable file system fill its device; it is used meanwhile. Idempotent.

    A btrfs stays as it is while its device has less than 256 MiB.

    Raises: UnsupportedFileSystem. OnlineGrowRefused: ext4, and we lack the capability; use
        `grow_unmounted` before the next mount. CommandFailed.
    """
    commands: dict[str, tuple[str | Path, ...]] = {
        EXT4: ("resize2fs", device),
        XFS: ("xfs_growfs", "-d", mount_point),
        BTRFS: ("btrfs", "filesystem", "resize", "max", mount_point),
    }
    if fs_type not in commands:
        raise UnsupportedFileSystem(fs_type)
    if fs_type == EXT4:
        if not await in_thread(_ext4_can_grow, device):
            return
        if not _has_capability(_CAP_SYS_RESOURCE):
            raise OnlineGrowRefused(device)
    if fs_type == BTRFS and await in_thread(device_size_bytes, device) < _BTRFS_RESIZE_BYTES_MIN:
        return
    await process.run(commands[fs_type], timeout_s=_CHANGE_TIMEOUT_S, die_with_parent=False)


async def grow_unmounted(fs_type: str, device: Path) -> None:
    """Let an ext4 that is not mounted fill its device; others grow only mounted, by `grow`.

    Call it ahead of each mount of a volume that may have been enlarged: it costs one read when
    there is nothing to do, and it needs no capability beyond writing to the device.

    Raises: CommandFailed: the file system is damaged. State: a crash leaves what e2fsck mends here
        the next time.
    """
    if fs_type != EXT4 or not await in_thread(_ext4_can_grow, device):
        return
    # resize2fs demands a check just before. Status 1: errors were corrected, all is well.
    check = await process.run(
        ["e2fsck", "-f", "-p", device],
        timeout_s=_CHANGE_TIMEOUT_S,
        check=False,
        die_with_parent=False,
    )
    if check.returncode not in (0, 1):
        raise process.CommandFailed(check.argv, check.returncode, check.text)
    await process.run(["resize2fs", device], timeout_s=_CHANGE_TIMEOUT_S, die_with_parent=False)


#: 64 KiB blocks (fs/ext4/ext4.h, EXT4_MAX_BLOCK_LOG_SIZE 16, from 10). The field has 32 bits, and
#: volumes hold what strangers wrote: 1024 << 2^32 would be a number of 512 MiB.
_EXT4_LOG_BLOCK_MAX = 6


def _ext4_can_grow(device: Path) -> bool:
    """Tell whether the device is a block or more larger than the file system says it is."""
    device_bytes = device_size_bytes(device)
    descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        block = os.pread(descriptor, 1024, 1024)
    finally:
        os.close(descriptor)
    # Documentation/filesystems/ext4/super.rst: s_blocks_count_lo, s_log_block_size,
    # s_feature_incompat (0x80: 64bit), s_blocks_count_hi
    blocks_low, log_block_size = struct.unpack_from("<L16xL", block, 4)
    if log_block_size > _EXT4_LOG_BLOCK_MAX:
        return False  # no ext4 at all, whatever its magic number says; the mount will tell
    (features,) = struct.unpack_from("<L", block, 0x60)
    blocks_high = struct.unpack_from("<L", block, 0x150)[0] if features & 0x80 else 0
    block_bytes = 1024 << int(log_block_size)
    return int(device_bytes // block_bytes) > int(blocks_high << 32 | blocks_low)


def _has_capability(number: int) -> bool:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> number & 1)
    return False


async def new_uuid(fs_type: str, device: Path) -> str:
    """Give an unmounted file system, whose journal is replayed, a new random UUID; return it.

    Judged by what is on the device afterwards: xfs_admin refuses a dirty log and exits 0.

    Raises: UnsupportedFileSystem. UuidUnchanged.
    State: after UuidUnchanged as before, but for repairs of ext4.
    """
    commands: dict[str, tuple[tuple[str | Path, ...], ...]] = {
        # tune2fs wants a check just before: it rewrites every checksum.
        EXT4: (("e2fsck", "-f", "-p", device), ("tune2fs", "-U", "random", device)),
        XFS: (("xfs_admin", "-U", "generate", device),),
        # Writes the superblocks only; -u would rewrite all metadata and unshare it.
        BTRFS: (("btrfstune", "-m", device),),
    }
    if fs_type not in commands:
        raise UnsupportedFileSystem(fs_type)
    before = await probe(device)
    said = ""
    for command in commands[fs_type]:
        result = await process.run(
            command, timeout_s=_CHANGE_TIMEOUT_S, check=False, die_with_parent=False
        )
        said = result.stderr.decode(errors="replace") + result.text
    after = await probe(device)
    if after.fs_type != fs_type or after.uuid == before.uuid:
        raise UuidUnchanged(device, said)
    return after.uuid


def mount_options(fs_type: str) -> tuple[str, ...]:
    """Return the options without which a clone and its origin cannot be mounted side by side.

    Either may be mounted first, so they are for every mount of a volume, not only for clones.
    """
    return ("nouuid",) if fs_type == XFS else ()


def clone_needs_new_uuid(fs_type: str, *, kernel_release: str | None = None) -> bool:
    """Tell whether a clone must get a new UUID before it is mounted beside its origin.

    Only btrfs finds devices by UUID; since 6.7 the kernel gives a second one a temporary UUID
    (sysfs: temp_fsid).
    """
    release = kernel_release or os.uname().release
    found = re.match(r"(\d+)\.(\d+)", release)
    return fs_type == BTRFS and found is not None and (int(found[1]), int(found[2])) < (6, 7)


async def has_mounted_twin(device: Path) -> bool:
    """Tell whether a btrfs with this one's UUID is mounted from another device."""
    uuid = (await probe(device)).uuid
    devices = Path("/sys/fs/btrfs", uuid or "none", "devices")
    return devices.is_dir() and device.name not in {entry.name for entry in devices.iterdir()}


async def usage(mount_point: Path) -> Capacity:
    """Return statvfs(3) of a mounted file system. btrfs counts no inodes: all are 0."""
    status = await in_thread(os.statvfs, mount_point)
    unit = status.f_frsize
    return Capacity(
        total_bytes=status.f_blocks * unit,
        used_bytes=(status.f_blocks - status.f_bfree) * unit,
        available_bytes=status.f_bavail * unit,
        total_inodes=status.f_files,
        used_inodes=status.f_files - status.f_ffree,
        available_inodes=status.f_favail,
    )
