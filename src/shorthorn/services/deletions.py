"""How a volume's deletion ends.

Owns waiting for the node that removes the data, and what its answer means for the caller. Must
never ask for a deletion. Called by `services.volumes`.

On one host the service asks the node first whether anybody uses the volume (`VolumeUse`). In a
cluster the controller reaches no node: the deletion is asked for, and the volume's node, which does
not remove what is mounted, says so in the volume's status.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from shorthorn.domain.errors import DomainError, StillWorking
from shorthorn.services.failures import OBSTACLES, recall

if TYPE_CHECKING:
    from shorthorn.domain.models import Volume
    from shorthorn.domain.ports import Registry
    from shorthorn.services.failures import Budget

#: A volume that was in use when its deletion was last asked for is removed as soon as it is let go;
#: a call that asks again waits for that no longer than this.
_SECOND_LOOK_S: Final = 5.0


class UseSeenByNodes:
    """`VolumeUse` where no node can be asked: nobody is known to use a volume beforehand."""

    async def find_user(self, volume_id: str) -> str | None:
        """Return None: the volume's node finds out when it is to remove the data."""
        return None


async def wait_until_gone(volumes: Registry[Volume], volume: Volume, *, budget: Budget) -> None:
    """Return when `volume`, as it was before its deletion was asked for, is gone.

    Raises: InUse, WrongState: its node cannot remove it until somebody lets go of it; it is removed
        then without being asked again. StillWorking: not within the budget.
    """
    name, uid, before = volume.meta.name, volume.meta.uid, volume.status
    was_refused = volume.meta.deleting and before.reason in OBSTACLES

    def is_settled(found: Volume | None) -> bool:
        if found is None or found.meta.uid != uid:
            return True
        is_refused = found.meta.deleting and found.status.reason in OBSTACLES
        return is_refused and found.status != before

    left_s = min(budget.left_s, _SECOND_LOOK_S) if was_refused else budget.left_s
    try:
        found = await volumes.wait(name, is_settled, timeout_s=left_s)
    except TimeoutError:
        found = await volumes.find(name)
    if found is None or found.meta.uid != uid:
        return
    status = found.status
    if status.reason in OBSTACLES:
        raise recall(status.reason, status.message, DomainError)
    raise StillWorking(name, status.message or "its data is being removed")
