"""How far a claim is, in words.

Owns: what a claim's phase and its last event mean for people. Pure. Called by `pages.restore`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_NO_USER = "WaitForFirstConsumer"


@dataclass(frozen=True, slots=True)
class Standing:
    """`state`: bound, waiting (for its first user), pending, failing, gone, lost, hidden (from who
    asks).

    `message`: the claim's last event in the API server's words; `volume`: the PersistentVolume.
    """

    state: str
    message: str = ""
    volume: str = ""

    @property
    def is_final(self) -> bool:
        """Whether it stays so by itself."""
        return self.state in ("bound", "gone", "lost", "hidden")


def standing_of(claim: Mapping[str, Any] | None, events: Sequence[Mapping[str, Any]]) -> Standing:
    """Return how far a claim is; None: it is not there. `events`: those of its name, any order."""
    if claim is None:
        return Standing("gone")
    phase = (claim.get("status") or {}).get("phase", "Pending")
    volume = str((claim.get("spec") or {}).get("volumeName") or "")
    if phase == "Bound":
        return Standing("bound", volume=volume)
    last = _last_event(events, str(claim["metadata"].get("uid") or ""))
    message = str(last.get("message") or "")
    if phase == "Lost":
        return Standing("lost", message, volume)
    if last.get("reason") == _NO_USER:
        return Standing("waiting", message)
    return Standing("failing" if last.get("type") == "Warning" else "pending", message)


def _last_event(events: Sequence[Mapping[str, Any]], uid: str) -> Mapping[str, Any]:
    """Return the newest event of the claim itself, not of one that had its name before."""
    own = [e for e in events if (e.get("involvedObject") or {}).get("uid") in (uid, None)]
    return max(own, key=_age_of, default={})


def _age_of(event: Mapping[str, Any]) -> tuple[str, int]:
    """Return what grows with an event's time. Times are whole seconds; versions tell more."""
    version = str((event.get("metadata") or {}).get("resourceVersion") or "")
    return _time_of(event), int(version) if version.isdecimal() else 0


def _time_of(event: Mapping[str, Any]) -> str:
    series = event.get("series") or {}
    times = (
        series.get("lastObservedTime"),
        event.get("lastTimestamp"),
        event.get("eventTime"),
        event.get("firstTimestamp"),
    )
    return max((str(time) for time in times if time), default="")
