"""Kubernetes Events: why something did or did not happen, where `kubectl describe` shows it.

Owns: writing events, and counting repeats instead of repeating them; the API server forgets old
ones. Must never: fail its caller; an event that cannot be written is logged. Used by the
provisioner and the snapshotter.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from shorthorn.domain import errors
from shorthorn.standalone.objects import Object, Objects, reference_to

log = logging.getLogger(__name__)

_MESSAGE_CHARS_MAX = 1024


class EventType(StrEnum):
    NORMAL = "Normal"
    WARNING = "Warning"


class EventRecorder:
    """Writes events in the name of one component."""

    def __init__(self, events: Objects, *, component: str) -> None:
        self._events = events
        self._component = component

    async def normal(self, obj: Mapping[str, Any], reason: str, message: str) -> None:
        await self._record(obj, EventType.NORMAL, reason, message)

    async def warning(self, obj: Mapping[str, Any], reason: str, message: str) -> None:
        await self._record(obj, EventType.WARNING, reason, message)

    async def _record(
        self, obj: Mapping[str, Any], kind: EventType, reason: str, message: str
    ) -> None:
        try:
            await self._write(obj, kind, reason, message[:_MESSAGE_CHARS_MAX])
        except errors.DomainError as exc:
            log.warning("event %s (%s) could not be written: %s", reason, message, exc)

    async def _write(
        self, obj: Mapping[str, Any], kind: EventType, reason: str, message: str
    ) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        involved = reference_to(obj)
        namespace = involved.get("namespace", "default")
        name = _event_name(involved, reason, message)
        known = await self._events.find(f"{namespace}/{name}")
        if known is not None:
            change = {"count": known.get("count", 1) + 1, "lastTimestamp": now}
            await self._events.merge(f"{namespace}/{name}", change)
            return
        event: Object = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": namespace},
            "involvedObject": involved,
            "type": kind.value,
            "reason": reason,
            "message": message,
            "count": 1,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "source": {"component": self._component},
        }
        await self._events.create(event)


def _event_name(involved: Mapping[str, Any], reason: str, message: str) -> str:
    """The same object, reason and message give the same event, so that a repeat is counted."""
    text = "\0".join((involved["uid"], reason, message))
    return f"{involved['name'][:200]}.{hashlib.sha256(text.encode()).hexdigest()[:16]}"
