"""Copies of a volume at one moment, while it is in use.

Owns the rule how: a mounted file system is frozen, cloned and thawed; an open or attached block
device is flushed and cloned; an idle file is cloned. Must never leave a file system frozen, nor
hand out a copy that a thaw came into. Called by the engine's volumes, snapshots and exports.

What a copy promises: every file system that is mounted from the volume in our mount namespace is
consistent, as after a clean stop of its writers. A volume that a virtual machine uses as a disk
(its file systems, several perhaps, are known to the guest alone), or that is mounted only in
another namespace, is captured as after a power cut at that moment: all that was acknowledged to
the block device is there.
"""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from shorthorn.domain.errors import StillWorking, WrongState
from shorthorn.host import files, freeze, loop_devices, mountinfo, reflink, sparse_copy
from shorthorn.kit.keyed import KeyedLocks
from shorthorn.kit.ready_thread import ReadyThread
from shorthorn.kit.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from shorthorn.host.loop_devices import LoopDevice

REFLINK = "reflink"
COPY = "copy"

#: About what the file system needs for a clone of a few thousand extents, and for its directory.
METADATA_BYTES = 1 << 20

#: Writers wait for at most this long; each retry doubles it. A clone costs about 20 µs per extent,
#: so 10 s are enough for half a million of them; the extent budget is far below.
FREEZE_TIMEOUT_S = 10.0
ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Cloner:
    """Makes new files from old ones of the same pool, the way the pool can."""

    #: REFLINK or COPY
    method: str

    async def clone(self, source: Path, target: Path, *, size_bytes: int | None = None) -> None:
        """Make `target` from `source`, durably; the tail up to `size_bytes` is a hole."""
        if self.method == REFLINK:
            await reflink.clone_file(source, target, size_bytes=size_bytes)
        else:
            await sparse_copy.copy_sparse(source, target, size_bytes=size_bytes)
        await files.fsync_file(target)

    async def clone_at_once(
        self, thread: ReadyThread, source: Path, target: Path, size_bytes: int | None
    ) -> None:
        """`clone` while writers wait: nothing is queued for, and the caller syncs `target`."""
        if self.method == REFLINK:
            await thread.run(functools.partial(reflink.clone_file_now, source, target, size_bytes))
        else:  # nobody waits: such a file is not copied while it is in use
            await sparse_copy.copy_sparse(source, target, size_bytes=size_bytes)

    def cost_bytes(self, source: Path) -> int:
        """Return about how much space a clone of `source` needs, for messages."""
        return METADATA_BYTES if self.method == REFLINK else source.stat().st_blocks * 512


class Capture:
    """Takes copies of volumes; one at a time of each volume."""

    def __init__(
        self,
        cloner: Cloner,
        reached: Callable[[str], None],
        *,
        freeze_timeout_s: float = FREEZE_TIMEOUT_S,
    ) -> None:
        self._cloner = cloner
        self._reached = reached
        self._freeze_timeout_s = freeze_timeout_s
        # A file system can be frozen once: a second capture waits for the first.
        self._locks: KeyedLocks[str] = KeyedLocks()

    async def take(
        self, volume_id: str, source: Path, target: Path, *, size_bytes: int | None = None
    ) -> datetime:
        """Copy `source` as it is at the moment returned, which lies within this call, durably.

        Args: size_bytes: extend the copy to this, with zeros.
        Raises: WrongState: the file system cannot be frozen. StillWorking: it thawed too early,
            again and again. Host errors.
        State: on an error no `target` is left, except after ENOSPC in the last sync.
        """
        async with self._locks.hold([volume_id]):
            moment = await self._take(volume_id, source, target, size_bytes)
        await files.fsync_file(target)
        self._reached("capture synced")
        return moment

    async def _take(
        self, volume_id: str, source: Path, target: Path, size_bytes: int | None
    ) -> datetime:
        # Before writers wait: what a buffered loop device left in the page cache of the file.
        await files.fsync_file(source)
        for attempt in range(ATTEMPTS):
            try:
                timeout_s = self._freeze_timeout_s * 2**attempt
                async with ReadyThread() as thread, self._quiet(volume_id, source, timeout_s):
                    moment = datetime.now(UTC)
                    await self._cloner.clone_at_once(thread, source, target, size_bytes)
                    self._reached("captured")
            except freeze.MountsChanged:
                continue
            except freeze.FreezeExpired:
                await in_thread(target.unlink)
                continue
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    target.unlink()
                raise
            return moment
        raise StillWorking(
            f"volume {volume_id}",
            f"its file system thawed too early or was unmounted, {ATTEMPTS} times",
        )

    @contextlib.asynccontextmanager
    async def _quiet(self, volume_id: str, source: Path, timeout_s: float) -> AsyncIterator[None]:
        """Hold the volume's mounted file system frozen, or flush its block device."""
        device = await loop_devices.find_by_file(source)
        if device is None:
            yield
            return
        points = await in_thread(mount_points, device)
        if not points:
            await loop_devices.flush(device.path)
            yield
            return
        try:
            look = functools.partial(mount_points, device)
            async with freeze.frozen(points, timeout_s=timeout_s, still_there=look):
                self._reached("frozen")
                yield
        except freeze.FreezeFailed as exc:
            raise WrongState(
                "volume", volume_id, f"mounted, and {exc}", "a file system that can be frozen"
            ) from exc
        self._reached("thawed")


def mount_points(device: LoopDevice) -> list[Path]:
    """Return directories at which the file system on `device` can be reached by path now."""
    mounts = mountinfo.mounts_of_device(device.path)
    return [mount.target for mount in mounts if _is_reachable(mount)]


def _is_reachable(mount: mountinfo.Mount) -> bool:
    """Tell whether the mount's target leads to it: nothing is mounted over, it is a directory."""
    try:
        return (
            mount.target.is_dir()
            and mountinfo.mount_of_path(mount.target).mount_id == mount.mount_id
        )
    except OSError:
        return False
