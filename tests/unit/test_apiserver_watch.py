"""The watch hub: history, backlog and closing."""

from __future__ import annotations

import asyncio

import pytest

from shorthorn.standalone.apiserver.transactions import Change
from shorthorn.standalone.apiserver.watch import HistoryExpired, WatchEvent, WatchHub


def change(version: int, *, resource: str = "things", namespace: str = "a") -> Change:
    return Change(version, "ADDED", resource, namespace, f"n{version}", b"{}", None)


def started(**limits: int) -> WatchHub:
    hub = WatchHub(**limits)
    hub.start_at(10)
    return hub


def versions(events: list[WatchEvent]) -> list[int]:
    return [event.change.resource_version for event in events]


async def test_a_watcher_gets_what_it_missed_and_what_comes():
    hub = started()
    hub.publish([change(11), change(12)])
    watcher = hub.subscribe("things", None, 11)
    hub.publish([change(13), change(14, resource="others"), change(15)])
    assert versions(await watcher.take(1)) == [12, 13, 15]
    assert watcher.version == 15
    assert await watcher.take(0.001) == []


async def test_a_watcher_of_one_namespace_sees_only_that():
    hub = started()
    watcher = hub.subscribe("things", "a", 10)
    hub.publish([change(11, namespace="b"), change(12)])
    assert versions(await watcher.take(1)) == [12]


async def test_history_older_than_what_is_kept_has_expired():
    hub = started(history_max=2)
    hub.publish([change(11), change(12), change(13)])
    with pytest.raises(HistoryExpired, match=r"too old resource version: 10 \(11\)"):
        hub.subscribe("things", None, 10)
    assert versions(await hub.subscribe("things", None, 11).take(1)) == [12, 13]


async def test_a_fresh_hub_knows_nothing_before_its_start():
    hub = started()
    with pytest.raises(HistoryExpired):
        hub.subscribe("things", None, 9)
    hub.subscribe("things", None, 10)


async def test_a_watcher_that_cannot_keep_up_is_closed_and_forgets_its_backlog():
    hub = started(backlog_max=3)
    slow, quick = hub.subscribe("things", None, 10), hub.subscribe("things", None, 10)
    hub.publish([change(11), change(12), change(13)])
    assert versions(await quick.take(1)) == [11, 12, 13]
    hub.publish([change(14)])
    assert slow.is_closed
    assert await slow.take(1) == []
    assert versions(await quick.take(1)) == [14]


async def test_a_backlog_larger_than_the_limit_must_be_listed_again():
    hub = started(backlog_max=2)
    hub.publish([change(11), change(12), change(13)])
    with pytest.raises(HistoryExpired):
        hub.subscribe("things", None, 10)


async def test_what_the_initial_state_contains_is_not_sent_again():
    hub = started()
    watcher = hub.subscribe("things", None, 10)
    hub.publish([change(11), change(12)])
    watcher.skip_to(12)
    hub.publish([change(13)])
    assert versions(await watcher.take(1)) == [13]


async def test_a_committed_state_may_be_newer_than_what_was_published():
    hub = started()
    watcher = hub.subscribe("things", None, 10)
    watcher.skip_to(12)
    hub.publish([change(11), change(12), change(13)])
    assert versions(await watcher.take(1)) == [13]


async def test_closing_the_hub_wakes_every_watcher_and_later_ones():
    hub = started()
    watcher = hub.subscribe("things", None, 10)
    taking = asyncio.ensure_future(watcher.take(60))
    await asyncio.sleep(0)
    hub.close()
    assert await asyncio.wait_for(taking, 5) == []
    assert watcher.is_closed
    assert hub.subscribe("things", None, 10).is_closed


async def test_unsubscribing_forgets_the_watcher():
    hub = started()
    watcher = hub.subscribe("things", None, 10)
    assert hub.watcher_count == 1
    hub.unsubscribe("things", watcher)
    assert hub.watcher_count == 0


def test_a_line_is_encoded_once_per_form():
    rendered = []

    def render(data: bytes) -> bytes:
        rendered.append(data)
        return data

    event = WatchEvent(change(11))
    lines = {event.line("json", "ADDED", render) for _ in range(1000)}
    assert lines == {b'{"type":"ADDED","object":{}}\n'}
    assert len(rendered) == 1
    event.line("json", "DELETED", render)
    event.line("table", "ADDED", render)
    assert len(rendered) == 3
