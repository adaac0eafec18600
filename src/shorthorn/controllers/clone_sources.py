"""Snapshots that exist only until one volume is cloned from them.

Owns: deleting them when that volume is ready, has failed or never came. The service that made one
removes it, too; here is what becomes of those whose maker died. Must never: look at any other
snapshot. Run by `controllers.controller`, in a cluster by the controller that leads.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from shorthorn.domain.labels import CLONE_LABEL
from shorthorn.domain.models import Snapshot, Volume, VolumeState
from shorthorn.domain.ports import Registry

_GRACE = timedelta(minutes=10)
"""How long one may be there without its volume: retries of CreateVolume come within 5 minutes."""
_RECHECK_S = 30.0


class CloneSourceReconciler:
    """One Snapshot at a time. `clock` tells the time, in UTC."""

    def __init__(
        self,
        snapshots: Registry[Snapshot],
        volumes: Registry[Volume],
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._snapshots = snapshots
        self._volumes = volumes
        self._clock = clock

    async def reconcile(self, name: str) -> float | None:
        shown = self._snapshots.find_cached(name)
        if shown is None or CLONE_LABEL not in shown.meta.labels or shown.meta.deleting:
            return None
        volume = await self._volumes.find(shown.meta.labels[CLONE_LABEL])
        if volume is not None:
            is_needed = volume.status.state is VolumeState.PENDING and not volume.meta.deleting
        else:
            age = self._clock() - (shown.meta.created_at or self._clock())
            is_needed = age < _GRACE
        if is_needed:
            return _RECHECK_S
        await self._snapshots.delete(name, uid=shown.meta.uid)
        return None
