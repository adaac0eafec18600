"""What the snapshot services answer.

Owns the value that stands for one CSI snapshot, of whichever kind. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime


@dataclass(frozen=True, slots=True)
class SnapshotAnswer:
    """One snapshot of either type. `size_bytes`: least capacity of a volume made from it, 0 where
    that is not known yet. `source_volume_id` is empty for an image that came from no volume.
    """

    handle: str
    source_volume_id: str
    size_bytes: int
    created_at: datetime
    is_ready: bool
