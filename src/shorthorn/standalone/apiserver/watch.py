"""Watches: a bounded history of committed changes, and one bounded queue per watcher.

Owns the history (a ring by count), the fan-out, and the turning of changes into watch events as
each selector sees them. It must not touch the database and runs in the event loop only. Fed by
`Store.on_commit`, read by the watch handler.

A watcher that cannot keep up is closed, never waited for: its client resumes from the last version
it saw, or lists again after 410 Expired. Lines are encoded once per change and form, whatever the
number of watchers.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from shorthorn.standalone.apiserver.selectors import Selection
    from shorthorn.standalone.apiserver.transactions import Change

#: Changes kept for resuming watches. Arbitrary: some seconds of a busy host, about 3 KiB each.
HISTORY_MAX = 2000
#: Changes that may wait for one slow client before it is cut off. Arbitrary.
WATCHER_BACKLOG_MAX = 1000


class HistoryExpired(Exception):
    """The asked version is older than the history kept: the client must list again."""

    def __init__(self, asked: int, oldest: int) -> None:
        super().__init__(f"too old resource version: {asked} ({oldest})")


class WatchEvent:
    """A change as watchers see it; caches its encoded lines."""

    __slots__ = ("_lines", "change")

    def __init__(self, change: Change) -> None:
        self.change = change
        self._lines: dict[object, bytes] = {}

    def line(self, form: object, event_type: str, render: Callable[[bytes], bytes]) -> bytes:
        """Return `{"type":…,"object":…}` and a newline; `form` names what `render` makes."""
        key = (form, event_type)
        cached = self._lines.get(key)
        if cached is None:
            cached = self._lines[key] = encode_line(event_type, render(self.change.data))
        return cached


def encode_line(event_type: str, obj: bytes) -> bytes:
    """Return one line of a watch response."""
    return b'{"type":"%s","object":%s}\n' % (event_type.encode(), obj)


def event_type_for(change: Change, selection: Selection) -> str | None:
    """Say what a watcher with this selection sees: entering is ADDED, leaving is DELETED."""
    if selection.is_everything:
        return change.type
    place = (change.namespace, change.name)
    is_in = change.type != "DELETED" and selection.matches(*place, change.data)
    was_in = change.previous is not None and selection.matches(*place, change.previous)
    if is_in:
        return "MODIFIED" if was_in else "ADDED"
    return "DELETED" if was_in else None


class Watcher:
    """One client's queue of changes of one resource, in all namespaces or one."""

    def __init__(self, namespace: str | None, after: int, backlog_max: int) -> None:
        self._namespace = namespace
        self._backlog_max = backlog_max
        self._queue: deque[WatchEvent] = deque()
        self._wakeup = asyncio.Event()
        #: The version up to which this client has been told everything.
        self.version = after
        self.is_closed = False

    def offer(self, event: WatchEvent) -> None:
        """Queue a change if it is in scope; closes the watcher when its backlog is full."""
        change = event.change
        if self.is_closed or change.resource_version <= self.version:
            return
        if self._namespace is not None and change.namespace != self._namespace:
            return
        if len(self._queue) >= self._backlog_max:
            self.close()
            return
        self._queue.append(event)
        self._wakeup.set()

    def skip_to(self, version: int) -> None:
        """Ignore what was already sent as part of the initial state."""
        self.version = max(self.version, version)
        while self._queue and self._queue[0].change.resource_version <= self.version:
            self._queue.popleft()

    def close(self) -> None:
        """End the stream after nothing more; the client is expected to come back."""
        self.is_closed = True
        self._queue.clear()
        self._wakeup.set()

    async def take(self, timeout_s: float) -> list[WatchEvent]:
        """Return all waiting changes, or none after `timeout_s` or when closed."""
        if not self._queue and not self.is_closed:
            try:
                async with asyncio.timeout(timeout_s):
                    await self._wakeup.wait()
            except TimeoutError:
                return []
        self._wakeup.clear()
        taken = list(self._queue)
        self._queue.clear()
        if taken:
            self.version = max(self.version, taken[-1].change.resource_version)
        return taken


class WatchHub:
    """Hands committed changes to watchers and keeps the recent ones for those who come later."""

    def __init__(
        self,
        *,
        history_max: int = HISTORY_MAX,
        backlog_max: int = WATCHER_BACKLOG_MAX,
    ) -> None:
        self._history_max = history_max
        self._backlog_max = backlog_max
        self._history: deque[WatchEvent] = deque()
        self._watchers: dict[str, set[Watcher]] = {}
        self._oldest = 0
        self._published = 0
        self._is_closed = False

    def start_at(self, version: int) -> None:
        """Begin an empty history at the version found in the database."""
        self._oldest = self._published = version

    def publish(self, changes: list[Change]) -> None:
        """Take a batch of committed changes, in version order."""
        for change in changes:
            event = WatchEvent(change)
            self._history.append(event)
            if len(self._history) > self._history_max:
                self._oldest = self._history.popleft().change.resource_version
            watchers = self._watchers.get(change.resource, set())
            for watcher in watchers:
                watcher.offer(event)
            # Those that fell behind: each stream ends as soon as its client reads again.
            watchers -= {watcher for watcher in watchers if watcher.is_closed}
        self._published = changes[-1].resource_version

    @property
    def published(self) -> int:
        """The newest version that has been handed out."""
        return self._published

    def subscribe(self, resource: str, namespace: str | None, after: int) -> Watcher:
        """Start a watcher that sees every change beyond `after`.

        Raises: HistoryExpired: changes since `after` are no longer all kept.
        """
        if after < self._oldest:
            raise HistoryExpired(after, self._oldest)
        watcher = Watcher(namespace, after, self._backlog_max)
        missed = [
            event
            for event in self._history
            if event.change.resource_version > after and event.change.resource == resource
        ]
        if len(missed) > self._backlog_max:
            raise HistoryExpired(after, self._oldest)
        for event in missed:
            watcher.offer(event)
        if self._is_closed:
            watcher.close()
        self._watchers.setdefault(resource, set()).add(watcher)
        return watcher

    def unsubscribe(self, resource: str, watcher: Watcher) -> None:
        """Forget a watcher."""
        watcher.close()
        self._watchers.get(resource, set()).discard(watcher)

    @property
    def watcher_count(self) -> int:
        """How many watchers there are, over all resources."""
        return sum(len(watchers) for watchers in self._watchers.values())

    def close(self) -> None:
        """End every watch, and those that come later at once."""
        self._is_closed = True
        for watchers in self._watchers.values():
            for watcher in watchers:
                watcher.close()
