"""What every reconciler of the roles works with.

Owns: nothing; it names the objects, the driver and the place for events that belong together. Must
never: have behaviour. Made once by `standalone.roles`.
"""

from __future__ import annotations

from dataclasses import dataclass

from shorthorn.standalone.csi_client import CsiClient
from shorthorn.standalone.events import EventRecorder
from shorthorn.standalone.objects import Objects


@dataclass(frozen=True)
class RoleContext:
    """One API server, one driver."""

    claims: Objects
    volumes: Objects
    classes: Objects
    snapshots: Objects
    contents: Objects
    snapshot_classes: Objects
    events: EventRecorder
    driver: CsiClient
    driver_name: str
    """Objects of other drivers are left alone."""
