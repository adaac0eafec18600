"""Volumes with real file systems in them, attached and mounted as a node would.

Used by the engine's tests. Whatever a test leaves frozen is thawed before it is unmounted.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shorthorn.host import freeze, loop_devices, mounts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from shorthorn.host.loop_devices import LoopDevice

MIB = 1 << 20
#: Long enough for a loaded machine; a freeze that is not undone blocks for ever.
PATIENCE_S = 60.0


@dataclass(frozen=True)
class FileSystem:
    """How to make one, mount its clone beside it, and check it without writing."""

    name: str
    mkfs: tuple[str, ...]
    clone_options: tuple[str, ...]
    check: tuple[str, ...]
    size_bytes: int
    #: XFS leaves a record in its log when it freezes, which a mount replays before a check.
    freezes_clean: bool = True


EXT4 = FileSystem("ext4", ("mkfs.ext4", "-q"), (), ("e2fsck", "-f", "-n"), 64 * MIB)
XFS = FileSystem(
    "xfs",
    ("mkfs.xfs", "-q"),
    ("nouuid",),
    ("xfs_repair", "-n"),
    300 * MIB,
    freezes_clean=False,
)
BTRFS = FileSystem("btrfs", ("mkfs.btrfs", "-q"), (), ("btrfs", "check"), 128 * MIB)
FILE_SYSTEMS = {kind.name: kind for kind in (EXT4, XFS, BTRFS)}


async def run(*argv: str | Path) -> str:
    """Run a tool of the machine; it must succeed."""
    child = await asyncio.create_subprocess_exec(
        *argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    output, _ = await child.communicate()
    assert child.returncode == 0, f"{argv}: {output.decode()}"
    return output.decode()


@contextlib.asynccontextmanager
async def attached(path: str | Path) -> AsyncIterator[LoopDevice]:
    """Attach a volume; at the end it is detached, unless somebody has done that."""
    device = await loop_devices.ensure_attached(Path(path))
    try:
        yield device
    finally:
        await loop_devices.detach(device)


@contextlib.asynccontextmanager
async def mounted(
    device: LoopDevice, target: Path, fs_type: str, *options: str
) -> AsyncIterator[Path]:
    target.mkdir(exist_ok=True)
    await mounts.mount(device.path, target, fs_type, options=options)
    try:
        yield target
    finally:
        await freeze.thaw_all([target])
        await mounts.ensure_unmounted(target)


@contextlib.asynccontextmanager
async def formatted(path: str | Path, target: Path, kind: FileSystem = EXT4) -> AsyncIterator[Path]:
    """Attach a volume, make a file system on it and mount it at `target`."""
    async with attached(path) as device:
        await run(*kind.mkfs, device.path)
        async with mounted(device, target, kind.name):
            yield target


async def write_succeeds(target: Path) -> None:
    """Write and sync a file, which ends only when the file system is not frozen."""
    async with asyncio.timeout(PATIENCE_S):
        await run("dd", "if=/dev/zero", f"of={target}/written", "bs=4k", "count=1", "conv=fsync")
