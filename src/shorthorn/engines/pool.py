"""Opening a pool directory.

Owns pool.json, the order of what happens at a start, and what every part of an open pool shares.
Must never change anything in a pool of a newer format version. Called by `engines.local`.
"""

from __future__ import annotations

import logging
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shorthorn.domain.errors import Corrupt
from shorthorn.engines import records
from shorthorn.engines.capture import COPY, REFLINK, Capture, Cloner, mount_points
from shorthorn.engines.layout import VOLUME_DATA, Layout
from shorthorn.engines.staging import DIRECTORY_MODE, Staging
from shorthorn.host import files, freeze, loop_devices, reflink
from shorthorn.kit.threads import in_thread

if TYPE_CHECKING:
    from pathlib import Path

    from shorthorn.engines.staging import StepObserver


_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OpenPool:
    """A pool in use."""

    layout: Layout
    uuid: str
    cloner: Cloner
    staging: Staging
    capture: Capture
    #: More than so many extents, and an image is rewritten before its commit.
    extents_max: int

    @property
    def root(self) -> Path:
        return self.layout.root


async def open_pool(root: Path, reached: StepObserver, extents_max: int) -> OpenPool:
    """Thaw, check the version, make what a new pool lacks, sweep. The caller owns the directory.

    Raises: WrongState: a newer version's pool. Corrupt.
    """
    layout = Layout(root)
    # Before anything that could wait for a frozen file system, or for its writers.
    await _thaw_volumes(layout)
    staging = Staging(layout, reached)
    pool_uuid = await _ensure_pool_record(layout, staging)
    for directory in (layout.volumes, layout.snapshots, layout.images):
        directory.mkdir(mode=DIRECTORY_MODE, exist_ok=True)
    await files.fsync_dir(root)
    await staging.sweep()
    method = REFLINK if await reflink.supports_reflink(root) else COPY
    cloner = Cloner(method)
    return OpenPool(layout, pool_uuid, cloner, staging, Capture(cloner, reached), extents_max)


async def _ensure_pool_record(layout: Layout, staging: Staging) -> str:
    """Return the pool's UUID, after making pool.json in an empty directory."""
    found = records.read(layout.record, records.PoolJson)
    if found is None:
        for directory in (layout.volumes, layout.snapshots, layout.images):
            if directory.is_dir() and any(directory.iterdir()):
                raise Corrupt(
                    "pool",
                    str(layout.root),
                    f"{layout.record.name} is missing, but {directory.name}/ is not empty",
                )
        found = records.PoolJson(pool_uuid=str(uuid.uuid4()))
        staging.make_directories()
        await staging.replace_record(layout.record, found)
    staging.make_directories()
    return found.pool_uuid


async def _thaw_volumes(layout: Layout) -> None:
    """Thaw every volume's mounted file system that a dead predecessor may have left frozen."""
    device_id = layout.root.stat().st_dev
    attached = [d for d in await loop_devices.list_attached() if d.file_identity[0] == device_id]
    if not attached:
        return
    inodes = await in_thread(_volume_inodes, layout)
    for device in attached:
        if device.file_identity[1] in inodes:
            try:
                await freeze.thaw_all(await in_thread(mount_points, device))
            except OSError as exc:  # one broken file system shall not keep the others' pool shut
                _logger.warning("the mounts of %s could not be thawed: %s", device.path, exc)


def _volume_inodes(layout: Layout) -> set[int]:
    if not layout.volumes.is_dir():
        return set()
    found = (directory / VOLUME_DATA for directory in layout.volumes.iterdir())
    return {path.stat().st_ino for path in found if path.exists()}
