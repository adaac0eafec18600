"""Copies in any order of events: the plan ends well, and loses nothing on the way.

A simulated cluster, in which copies arrive and fail, nodes fall silent and return, volumes come and
go: the last ready copy is never removed, no bound is exceeded, and in the end there is nothing left
to do.
"""

import dataclasses
from datetime import timedelta

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes.copy_scenes import (
    ASKED,
    EVICTED,
    NOW,
    copy,
    deleting,
    image,
    pool,
    seen,
    volume,
)

from shorthorn.domain.copies import CLEANUP_WAIT, SYNCS_MAX, plan_copies
from shorthorn.domain.copy_scene import is_alive
from shorthorn.domain.copy_steps import CreateCopy, DropWish, RemoveCopy
from shorthorn.domain.models import CopyState


class Cluster:
    """A simulated cluster: what the reconciler and the nodes would make of each plan."""

    def __init__(self, floor, pools):
        self.image = image(floor)
        self.pools = {p.spec.pool_uuid: p for p in pools}
        self.copies = {"a": copy("a", source="download")}
        self.volumes = {}
        self.now = NOW

    def look(self):
        pools, volumes = list(self.pools.values()), list(self.volumes.values())
        copies = list(self.copies.values())
        self.image = seen(self.image, copies, pools, volumes, self.now)
        return plan_copies(self.image, copies, pools, volumes, self.now)

    def ready(self):
        return [
            uuid
            for uuid, found in self.copies.items()
            if found.status.state is CopyState.READY
            and not found.meta.deleting
            and uuid in self.pools
            and is_alive(self.pools[uuid])
        ]

    def carry_out(self, steps):
        before = self.ready()
        moving = [
            u
            for u, c in self.copies.items()
            if c.status.state is CopyState.IN_PROGRESS
            and not c.meta.deleting
            and is_alive(self.pools[u])
        ]
        syncs = [s for s in steps if isinstance(s, CreateCopy) and s.source_type == "sync"]
        if syncs:
            assert len(moving) + len(syncs) <= min(len(before), SYNCS_MAX)
        for step in steps:
            match step:
                case CreateCopy(at, source):
                    uuid = at.spec.pool_uuid
                    assert uuid not in self.copies
                    assert is_alive(self.pools[uuid])
                    self.copies[uuid] = copy(uuid, CopyState.IN_PROGRESS, source=source)
                case RemoveCopy(name):
                    uuid = name.removeprefix("i-")
                    self.copies[uuid] = deleting(self.copies[uuid])
                case DropWish(uuid):
                    self.spec_files({u: e for u, e in self.files.items() if u != uuid})
        if before:
            assert self.ready(), steps
        unforced = [u for u in before if not self.is_evicted(u)]
        kept = [u for u in self.ready() if not self.is_evicted(u)]
        assert len(kept) >= min(len(unforced), self.image.spec.min_number_of_copies)

    def is_evicted(self, uuid):
        entry = self.files.get(uuid)
        return self.pools[uuid].spec.eviction_requested or (entry and entry.eviction_requested)

    @property
    def files(self):
        return self.image.spec.disk_file_spec

    def spec_files(self, files):
        spec = dataclasses.replace(self.image.spec, disk_file_spec=files)
        self.image = dataclasses.replace(self.image, spec=spec)

    def becomes(self, uuid, state):
        """The node of a pool that is there ends a transfer, or finds its files gone."""
        found = self.copies.get(uuid)
        if found is None or found.meta.deleting or not is_alive(self.pools[uuid]):
            return
        if state is CopyState.READY and found.status.state is not CopyState.IN_PROGRESS:
            return
        if state is CopyState.READY:
            source = found.spec.source_type
            self.copies[uuid] = copy(uuid, source=source, since=self.now)
        else:
            status = dataclasses.replace(found.status, state=state, changed_at=self.now)
            self.copies[uuid] = dataclasses.replace(found, status=status)

    def happen(self, event, uuid):
        there = self.pools[uuid]
        match event:
            case "arrives":
                self.becomes(uuid, CopyState.READY)
            case "fails":
                self.becomes(uuid, CopyState.FAILED)
            case "silent" | "back":
                node = there.spec.node_id
                self.pools[uuid] = pool(
                    uuid, node=node, evicted=there.spec.eviction_requested, alive=event == "back"
                )
            case "evict" | "keep":
                spec = dataclasses.replace(there.spec, eviction_requested=event == "evict")
                self.pools[uuid] = dataclasses.replace(there, spec=spec)
            case "ask":
                self.spec_files({**self.files, uuid: ASKED})
            case "evict entry":
                self.spec_files({**self.files, uuid: EVICTED})
            case "volume":
                self.volumes[uuid] = volume(uuid, name=f"v-{uuid}")
            case "volume gone":
                self.volumes.pop(uuid, None)
            case "removed":
                if uuid in self.copies and self.copies[uuid].meta.deleting:
                    del self.copies[uuid]
            case "minutes":
                self.now += timedelta(minutes=7)
            case "hours":
                self.now += CLEANUP_WAIT
            case _:
                self.carry_out(self.look())


EVENTS = [
    *("plan", "plan", "plan", "arrives", "arrives", "removed", "minutes"),
    *("fails", "silent", "back", "evict", "keep", "ask", "evict entry"),
    *("volume", "volume gone", "hours"),
]
STEPS = (CreateCopy, RemoveCopy, DropWish)


@settings(max_examples=300, deadline=None)
@given(
    floor=st.integers(1, 4),
    nodes=st.lists(st.sampled_from("xyz"), min_size=1, max_size=6),
    events=st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 5)), max_size=60),
)
def test_any_order_of_events_converges_and_loses_nothing(floor, nodes, events):
    uuids = "abcdef"[: len(nodes)]
    cluster = Cluster(floor, [pool(u, node=n) for u, n in zip(uuids, nodes, strict=True)])
    for event, number in events:
        cluster.happen(event, uuids[number % len(uuids)])
    for uuid in uuids:
        cluster.happen("back", uuid)
    for _ in range(60):
        steps = cluster.look()
        cluster.carry_out(steps)
        for uuid in uuids:
            cluster.happen("arrives", uuid)
            cluster.happen("removed", uuid)
        if not any(isinstance(step, STEPS) for step in cluster.look()):
            cluster.now += timedelta(minutes=30)
    cluster.carry_out(cluster.look())
    assert not any(isinstance(step, STEPS) for step in cluster.look())
    assert cluster.look() == cluster.look()
    evicted = [u for u in uuids if cluster.is_evicted(u)]
    usable = len(uuids) - len(evicted)
    staying = [u for u in cluster.ready() if u not in evicted]
    assert len(staying) >= min(floor, usable)
    if usable:
        assert [u for u in cluster.ready() if u in evicted] == []
    idle = [u for u in staying if u not in cluster.volumes]
    assert len(staying) == floor or not idle or len(staying) <= min(floor, usable)
    for uuid, entry in cluster.files.items():
        if not entry.eviction_requested and not cluster.is_evicted(uuid) and uuid not in staying:
            raise AssertionError(f"a copy was asked for on {uuid}")
