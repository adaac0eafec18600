"""Keeps images quick to clone.

Owns the number of extents that an image may have, and its rewrite in one piece above that. Must
never make a commit fail: an image in many pieces is slow, not wrong. Called by the engine's images
and exports, before a commit.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from shorthorn.host import contiguous, extents

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from shorthorn.engines.staging import Staging

#: A clone costs about 20 µs per extent (measured on XFS), and blocks the writers of what is cloned:
#: one second.
EXTENTS_MAX = 50_000
#: A rewrite keeps this part of the pool free: volumes that are in use need it more.
FREE_PART_MIN = 0.05

_REWRITTEN = "contiguous.raw"
_logger = logging.getLogger(__name__)


async def keep_within_budget(
    staging: Staging,
    base: Path,
    *,
    extents_max: int,
    on_bytes: Callable[[int, int], None] = lambda done, total: None,
) -> bool:
    """Rewrite the staged file `base` in one piece if it has too many extents; tell if that was so.

    Nothing happens where holes alone make the extents (more of them cannot be saved), or where the
    pool lacks the space. The rewritten file shares nothing.

    Args: on_bytes: told (done, total), on another thread.
    """
    usage = await extents.usage(base)
    if usage.extent_count <= extents_max:
        return False
    if await contiguous.count_data_ranges(base) > usage.extent_count // 2:
        return False
    if not _has_space(base, usage.allocated_bytes):
        _logger.warning(
            "%s has %d extents and there is no space to rewrite it: its clones will be slow",
            base,
            usage.extent_count,
        )
        return False
    fresh = base.with_name(_REWRITTEN)
    fresh.unlink(missing_ok=True)
    total = usage.allocated_bytes
    await contiguous.write_contiguous(
        base, fresh, on_progress=lambda done: on_bytes(min(done, total), total)
    )
    staging.reached("contiguous copy made")
    fresh.replace(base)
    staging.reached("base replaced by its contiguous copy")
    return True


def _has_space(path: Path, needed_bytes: int) -> bool:
    status = os.statvfs(path)
    kept = int(status.f_blocks * FREE_PART_MIN)
    return (status.f_bavail - kept) * status.f_frsize >= needed_bytes
