"""The private directory of one run, and what the kernel may still hold of it.

Owns: one directory `shorthorn-demo-*` below a parent, its lock, finding mounts and loop devices
that belong to it, and taking all of it away: after a failure, after an interruption, and what a
killed predecessor left. Must never: touch anything outside such a directory, or one in use.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shorthorn.demo.failures import StepFailed
from shorthorn.host import files, loop_devices, mountinfo, mounts
from shorthorn.host.locks import DirectoryLock, DirectoryOwned

PREFIX = "shorthorn-demo-"
_KEPT = "kept"
_SYS_BLOCK = Path("/sys/block")


@dataclass(slots=True)
class Workspace:
    """One run's directory; the lock is held while it is in use."""

    root: Path
    lock: DirectoryLock

    @property
    def data_dir(self) -> Path:
        """What `shorthorn up` is given."""
        return self.root / "data"

    @property
    def pool(self) -> Path:
        """Where the service keeps its data: a directory, or the mount point of a pool file."""
        return self.data_dir / "pool"

    @property
    def mounts(self) -> Path:
        """Where claims are mounted."""
        return self.root / "mounts"

    @property
    def files(self) -> Path:
        """What the web server offers, and what it was made from."""
        return self.root / "files"

    @property
    def log(self) -> Path:
        """What the service said; written when it has stopped."""
        return self.root / "shorthorn.log"


def create(parent: Path) -> Workspace:
    """Make and lock a new private directory. Raises StepFailed: the parent is unusable."""
    try:
        # Locked before it gets its name: until then another run could take it for abandoned.
        unnamed = Path(tempfile.mkdtemp(prefix=f".{PREFIX}", dir=parent.resolve()))
    except OSError as exc:
        raise StepFailed(f"cannot make a directory in {parent}: {exc.strerror}") from exc
    lock = DirectoryLock(unnamed, owner="shorthorn demo")
    lock.acquire()
    workspace = Workspace(unnamed.rename(unnamed.with_name(unnamed.name[1:])), lock)
    for directory in (workspace.mounts, workspace.files):
        directory.mkdir()
    return workspace


async def remove_abandoned(parent: Path) -> list[Path]:
    """Remove what runs that were killed left in `parent`. Returns their directories."""
    removed = []
    for root in sorted(parent.resolve().glob(f"{PREFIX}*")):
        if not root.is_dir() or root.stat().st_uid != os.geteuid() or (root / _KEPT).exists():
            continue
        lock = DirectoryLock(root, owner="shorthorn demo")
        with contextlib.suppress(DirectoryOwned, FileNotFoundError):
            lock.acquire()
            await remove(Workspace(root, lock))
            removed.append(root)
    return removed


def keep(workspace: Workspace) -> None:
    """Mark a directory as wanted, so that no later run removes it."""
    (workspace.root / _KEPT).touch()


async def release(workspace: Workspace) -> None:
    """Unmount and detach everything of this directory; its files stay.

    Volumes lie in a pool that lies on a device, so this goes from the last mount to the first.

    Raises: MountBusy, LoopDeviceBusy: somebody works in it.
    """
    for target in reversed(_mounts_below(workspace.root)):
        await mounts.unmount(target)
        await _detach_free_devices(workspace.root)
    await _detach_free_devices(workspace.root)


async def remove(workspace: Workspace) -> None:
    """Release everything and remove the directory. Raises: as `release`."""
    await release(workspace)
    while workspace.root.exists():
        try:
            await files.remove_tree(workspace.root)
        except OSError as exc:
            # The lock goes with the tree, so another run may be at the same abandoned directory.
            if exc.errno not in (errno.ENOENT, errno.ENOTEMPTY):
                raise
    workspace.lock.release()


def kernel_leftovers(workspace: Workspace) -> list[str]:
    """Return what is mounted below the directory, and the loop devices of files below it."""
    mounted = [f"mount at {target}" for target in _mounts_below(workspace.root)]
    attached = [f"/dev/loop{n} of {file}" for n, file in _loops_below(workspace.root)]
    return mounted + attached


def _mounts_below(root: Path) -> list[Path]:
    return [m.target for m in mountinfo.read_mounts() if m.target.is_relative_to(root)]


def _loops_below(root: Path) -> Iterator[tuple[int, str]]:
    for backing in sorted(_SYS_BLOCK.glob("loop*/loop/backing_file")):
        with contextlib.suppress(OSError):  # detached meanwhile
            file = backing.read_text().strip()
            if file.startswith(f"{root}/"):
                yield int(backing.parts[-3].removeprefix("loop")), file


async def _detach_free_devices(root: Path) -> None:
    """Detach the devices of this directory that nothing is mounted from."""
    ours = {number for number, _ in _loops_below(root)}
    for device in await loop_devices.list_attached():
        if device.number in ours and not mountinfo.mounts_of_device(device.path):
            await loop_devices.detach(device)
