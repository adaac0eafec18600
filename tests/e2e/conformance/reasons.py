"""Which of csi-sanity's tests may be skipped, how many, and why.

Owns that table. Must never: hold a test that applies to Shorthorn: csi-sanity skips what a driver
does not announce, so a capability that is lost by mistake shows only here. Called by `__main__`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.e2e.conformance.sanity import Spec


@dataclass(frozen=True)
class Reason:
    """Tests that do not apply: what csi-sanity says when it skips one, how many, and why."""

    topic: str
    says: str
    count: int
    why: str

    def explains(self, spec: Spec) -> bool:
        return spec.state == "skipped" and re.fullmatch(self.says, spec.message) is not None


SKIPPED = (
    Reason(
        "ControllerPublishVolume, ControllerUnpublishVolume, and both in turn",
        r"ControllerPublishVolume not supported|ControllerUnpublishVolume not supported"
        r"|Controller Publish, UnpublishVolume not supported",
        10,
        "nothing is attached by the controller: a volume lies on its node",
    ),
    Reason(
        "ControllerModifyVolume; CreateVolume with mutable parameters",
        r"ControllerModifyVolume not supported|Modify [vV]olume not supported",
        8,
        "volumes have nothing that could be modified",
    ),
    Reason(
        "group controller (group snapshots)",
        r"GroupControllerService not supported",
        6,
        "not offered",
    ),
    Reason(
        "health of volumes and storage",
        r"(ControllerListVolumeHealth|ControllerGetVolumeHealth|NodeGetVolumeHealth"
        r"|NodeGetStorageHealth) not supported",
        6,
        "not offered; an alpha feature of CSI 1.13",
    ),
    Reason(
        "CreateSnapshot with accessibility requirements",
        r"SNAPSHOT_ACCESSIBILITY_CONSTRAINTS not supported",
        1,
        "not offered; an alpha feature of CSI 1.13. A snapshot lies where its volume does",
    ),
)


def complaints(specs: Iterable[Spec]) -> list[str]:
    """Say which tests were skipped without a reason of ours, or not as often as it says."""
    skipped = [spec for spec in specs if spec.state == "skipped"]
    unexplained = [
        f"skipped without a reason that we know: {spec.name}: {spec.message}"
        for spec in skipped
        if not any(reason.explains(spec) for reason in SKIPPED)
    ]
    found = {reason: sum(map(reason.explains, skipped)) for reason in SKIPPED}
    miscounted = [
        f"{reason.topic}: {count} skipped, and not {reason.count}"
        for reason, count in found.items()
        if count != reason.count
    ]
    return unexplained + miscounted
