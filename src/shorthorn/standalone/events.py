"""Kubernetes Events: why something did or did not happen, where `kubectl describe` shows it.

Owns: writing events, and counting repeats instead of repeating them; the API server forgets old
ones. Must never: fail or hold up its caller; an event that cannot be written is logged. Used by the
provisioner and the snapshotter.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from shorthorn.domain import errors
from shorthorn.standalone.objects import Object, Objects, reference_to

log = logging.getLogger(__name__)

_MESSAGE_CHARS_MAX = 1024
_WAITING_MAX = 1000
"""Events that may wait to be written; an API server that is this far behind has other worries."""


class EventType(StrEnum):
    NORMAL = "Normal"
    WARNING = "Warning"


@dataclass(frozen=True, slots=True)
class _Said:
    """An event that is to be written."""

    involved: Object
    type: EventType
    reason: str
    message: str
    at: str


class EventRecorder:
    """Writes events in the name of one component, in order, while `run` runs."""

    def __init__(self, events: Objects, *, component: str) -> None:
        self._events = events
        self._component = component
        self._waiting: asyncio.Queue[_Said] = asyncio.Queue(_WAITING_MAX)

    def normal(self, obj: Mapping[str, Any], reason: str, message: str) -> None:
        self._say(obj, EventType.NORMAL, reason, message)

    def warning(self, obj: Mapping[str, Any], reason: str, message: str) -> None:
        self._say(obj, EventType.WARNING, reason, message)

    def _say(self, obj: Mapping[str, Any], kind: EventType, reason: str, message: str) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        said = _Said(reference_to(obj), kind, reason, message[:_MESSAGE_CHARS_MAX], now)
        try:
            self._waiting.put_nowait(said)
        except asyncio.QueueFull:
            log.warning("event %s (%s) is dropped: too many wait", reason, message)

    async def run(self) -> None:
        """Write until cancelled; what waits then is lost, as events may be."""
        while True:
            said = await self._waiting.get()
            try:
                await self._write(said)
            except errors.DomainError as exc:
                log.warning("event %s (%s) is not written: %s", said.reason, said.message, exc)

    async def _write(self, said: _Said) -> None:
        namespace = said.involved.get("namespace", "default")
        name = _event_name(said.involved, said.reason, said.message)
        known = await self._events.find(f"{namespace}/{name}")
        if known is not None:
            change = {"count": known.get("count", 1) + 1, "lastTimestamp": said.at}
            await self._events.merge(f"{namespace}/{name}", change)
            return
        event: Object = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": namespace},
            "involvedObject": said.involved,
            "type": said.type.value,
            "reason": said.reason,
            "message": said.message,
            "count": 1,
            "firstTimestamp": said.at,
            "lastTimestamp": said.at,
            "source": {"component": self._component},
        }
        await self._events.create(event)


def _event_name(involved: Mapping[str, Any], reason: str, message: str) -> str:
    """The same object, reason and message give the same event, so that a repeat is counted."""
    text = "\0".join((involved["uid"], reason, message))
    return f"{involved['name'][:200].rstrip('.-')}.{hashlib.sha256(text.encode()).hexdigest()[:16]}"
