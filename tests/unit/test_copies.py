"""Which copies should exist where: the rules one by one, and that they end well in any order.

Aspects: where the first copy goes; the floor and its spread; what is asked for; eviction; unused
and failed copies; all lost. Then a simulated cluster in which copies arrive and fail, nodes fall
silent and return, volumes come and go, in every order: the last ready copy is never removed, no
bound is exceeded, and in the end there is nothing left to do.
"""

import dataclasses
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shorthorn.domain import image_status
from shorthorn.domain.copies import (
    CLEANUP_WAIT,
    RECOVERY_WAIT,
    SYNCS_MAX,
    last_references,
    plan_copies,
)
from shorthorn.domain.copy_scene import is_alive, room_needed
from shorthorn.domain.copy_steps import (
    CreateCopy,
    DropWish,
    NoteRetry,
    Refuse,
    RemoveCopy,
    Wait,
)
from shorthorn.domain.models import (
    BackingImage,
    BackingImageSpec,
    Condition,
    CopyState,
    DiskFileSpec,
    ImageCopy,
    ImageCopySpec,
    ImageCopyStatus,
    Meta,
    Pool,
    PoolSpec,
    PoolStatus,
    SourceType,
    Volume,
    VolumeSource,
    VolumeSpec,
    VolumeState,
    VolumeStatus,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
GIB = 1 << 30
ASKED = DiskFileSpec()
EVICTED = DiskFileSpec(eviction_requested=True)


def pool(uuid, *, node="", room=100 * GIB, tags=(), node_tags=(), evicted=False, alive=True):
    spec = PoolSpec(node or f"node-{uuid}", uuid, "/", tags, node_tags, "h:1", evicted)
    ready = Condition("Ready", alive, "Open" if alive else "Silent")
    return Pool(Meta(uuid), spec, PoolStatus(available_bytes=room, conditions=(ready,)))


def copy(uuid, state=CopyState.READY, *, node="", source="sync", since=NOW, **status):
    spec = ImageCopySpec("i", "u", node or f"node-{uuid}", uuid, source)
    if state is CopyState.READY:
        status = {"size_bytes": GIB, "real_size_bytes": GIB, "checksum": "c", **status}
    return ImageCopy(Meta(f"i-{uuid}"), spec, ImageCopyStatus(state, changed_at=since, **status))


def deleting(obj):
    return dataclasses.replace(obj, meta=dataclasses.replace(obj.meta, deleting=True))


def image(floor=1, *, source="download", parameters=None, files=None, **selectors):
    spec = BackingImageSpec(
        source,
        parameters or {},
        min_number_of_copies=floor,
        disk_file_spec=files or {},
        **selectors,
    )
    return BackingImage(Meta("i"), spec)


def volume(uuid, state=VolumeState.READY, *, name="v", source="i"):
    spec = VolumeSpec(name, f"node-{uuid}", uuid, GIB, VolumeSource(image=source))
    return Volume(Meta(name), spec, VolumeStatus(state))


def seen(wanted, copies, pools, volumes=(), now=NOW):
    """Return the image with the status that the reconciler gives it before it plans."""
    alive = {p.spec.pool_uuid for p in pools if is_alive(p)}
    status = image_status.gather(wanted, copies, alive, now)
    references = last_references(wanted, copies, volumes, now)
    return dataclasses.replace(
        wanted, status=dataclasses.replace(status, disk_last_ref_at=references)
    )


def plan(wanted, copies, pools, volumes=(), now=NOW, since=None):
    """Plan as the reconciler does. `since`: when copies were last used, by pool."""
    status = dataclasses.replace(wanted.status, disk_last_ref_at=since or {})
    wanted = dataclasses.replace(wanted, status=status)
    wanted = seen(wanted, copies, pools, volumes, now)
    return list(plan_copies(wanted, copies, pools, volumes, now))


def created(steps):
    return [step.pool.spec.pool_uuid for step in steps if isinstance(step, CreateCopy)]


def removed(steps):
    return [step.name.removeprefix("i-") for step in steps if isinstance(step, RemoveCopy)]


def waits(steps):
    return [step.reason for step in steps if isinstance(step, Wait)]


# --- the first copy


def test_a_download_goes_where_most_room_is():
    steps = plan(image(), [], [pool("a", room=1), pool("b", room=2), pool("c", room=1)])
    assert steps == [CreateCopy(pool("b", room=2), SourceType.DOWNLOAD)]


@pytest.mark.parametrize(
    "unfit",
    [
        pytest.param({"alive": False}, id="silent"),
        pytest.param({"evicted": True}, id="evicted"),
        pytest.param({"tags": ("slow",)}, id="disk tags"),
        pytest.param({"node_tags": ()}, id="node tags"),
    ],
)
def test_selectors_eviction_and_silence_keep_a_download_away(unfit):
    wanted = image(disk_selector=("fast",), node_selector=("ssd",))
    good = {"tags": ("fast", "new"), "node_tags": ("ssd", "x")}
    pools = [pool("a", room=9, **{**good, **unfit}), pool("b", room=1, **good)]
    assert created(plan(wanted, [], pools)) == ["b"]
    (step,) = plan(wanted, [], pools[:1])
    assert (step.reason, bool(step.message)) == ("NoPool", True)


def test_a_pool_that_is_asked_for_gets_the_download_whatever_the_selectors_say():
    wanted = image(disk_selector=("fast",), files={"b": ASKED})
    assert created(plan(wanted, [], [pool("a", tags=("fast",)), pool("b")])) == ["b"]


def test_an_export_stays_in_the_pool_of_its_volume():
    pools = [pool("a", room=5), pool("b", room=1)]
    export = image(source="export-from-volume", parameters={"volume-name": "v"})
    own = volume("b", source="")
    assert created(plan(export, [], pools, [own])) == ["b"]
    assert isinstance(plan(export, [], pools)[0], Refuse)
    pending = volume("b", VolumeState.PENDING, source="")
    assert plan(export, [], pools, [pending])[0].reason == "VolumeNotFound"
    silent = [pools[0], pool("b", alive=False)]
    assert waits(plan(export, [], silent, [own])) == ["NoPool"]


@pytest.mark.parametrize("source", ["restore"])
def test_a_source_that_is_not_supported_is_refused(source):
    (step,) = plan(image(source=source), [], [pool("a")])
    assert step.reason == "UnsupportedSource"


# --- the floor


def test_the_floor_is_reached_by_sync_on_other_nodes_first():
    pools = [pool("a", node="n1"), pool("b", node="n1", room=900 * GIB), pool("c", node="n2")]
    steps = plan(image(2), [copy("a", node="n1")], pools)
    assert steps == [CreateCopy(pools[2], SourceType.SYNC)]
    steps = plan(image(3), [copy("a", node="n1"), copy("c", node="n2")], pools)
    assert created(steps) == ["b"]


def test_one_copy_moves_while_one_is_ready_and_more_when_more_are():
    pools = [pool(name) for name in "abcdefgh"]
    one = [copy("a")]
    assert len(created(plan(image(8), one, pools))) == 1
    moving = copy("b", CopyState.IN_PROGRESS)
    assert waits(plan(image(8), [*one, moving], pools)) == ["Copying"]
    assert len(created(plan(image(8), [*one, copy("b")], pools))) == 2
    many = [copy(name) for name in "abcd"]
    assert len(created(plan(image(8), many, pools))) == SYNCS_MAX


def test_a_copy_that_waits_for_a_peer_takes_nobodys_turn():
    waiting = copy("b", CopyState.IN_PROGRESS, reason="Unavailable")
    steps = plan(image(3), [copy("a"), waiting], [pool("a"), pool("b"), pool("c")])
    assert created(steps) == ["c"]


def test_copies_are_made_once_the_checksum_is_known():
    steps = plan(image(2), [copy("a", checksum="")], [pool("a"), pool("b")])
    assert waits(steps) == ["Computing"]


def test_too_few_pools_are_told_and_no_failure():
    steps = plan(image(3), [copy("a")], [pool("a")])
    assert waits(steps) == ["NoPool"]
    assert "1 of 3" in steps[0].message


def test_a_full_pool_gets_no_copy():
    ready = copy("a", real_size_bytes=5 * GIB, format="qcow2")
    wanted = seen(image(2), [ready], [pool("a")])
    assert room_needed(wanted) == 6 * GIB
    assert waits(plan(image(2), [ready], [pool("a"), pool("b", room=6 * GIB - 1)])) == ["NoPool"]
    assert created(plan(image(2), [ready], [pool("a"), pool("b", room=6 * GIB)])) == ["b"]


def test_copies_on_silent_nodes_do_not_count():
    pools = [pool("a"), pool("b", alive=False), pool("c")]
    assert created(plan(image(2), [copy("a"), copy("b")], pools)) == ["c"]
    # Nor is anything decided about them.
    assert removed(plan(image(1), [copy("a"), copy("b")], pools, now=NOW + 9 * HOUR)) == []


def test_an_exports_copy_outside_the_selectors_is_no_copy_of_the_floor():
    export = image(source="export-from-volume", disk_selector=("fast",))
    pools = [pool("a"), pool("b", tags=("fast",))]
    first = copy("a", source="export-from-volume")
    assert created(plan(export, [first], pools)) == ["b"]
    both = [first, copy("b")]
    assert removed(plan(export, both, pools, since={"a": NOW, "b": NOW})) == []
    steps = plan(export, both, pools, now=NOW + HOUR, since={"a": NOW, "b": NOW})
    assert removed(steps) == ["a"]


# --- what is asked for


def test_what_is_asked_for_comes_first_and_needs_no_tags():
    wanted = image(2, disk_selector=("fast",), files={"c": ASKED})
    pools = [pool("a", tags=("fast",)), pool("b", tags=("fast",)), pool("c")]
    assert created(plan(wanted, [copy("a")], pools)) == ["c"]
    both = [copy("a"), copy("c")]
    assert plan(wanted, both, pools) == []


@pytest.mark.parametrize("unfit", [{"alive": False}, {"evicted": True}], ids=["silent", "evicted"])
def test_a_pool_that_cannot_take_a_copy_is_not_asked(unfit):
    wanted = image(files={"b": ASKED})
    assert created(plan(wanted, [copy("a")], [pool("a"), pool("b", **unfit)])) == []


def test_asking_counts_as_use_from_that_moment():
    wanted, pools = image(files={"b": ASKED}), [pool("a"), pool("b")]
    asked = seen(wanted, [copy("a")], pools)
    assert asked.status.disk_last_ref_at == {"a": NOW, "b": NOW}
    later = NOW + timedelta(minutes=30)
    assert seen(asked, [copy("a")], pools, now=later).status.disk_last_ref_at["b"] == NOW
    used = seen(asked, [copy("a"), copy("b")], pools, [volume("b")], later)
    assert set(used.status.disk_last_ref_at) == {"a"}
    again = seen(used, [copy("a"), copy("b")], pools, (), later)
    assert again.status.disk_last_ref_at == {"a": NOW, "b": later}


# --- unused copies


def test_a_copy_above_the_floor_goes_after_an_hour_without_volumes():
    old = NOW - HOUR
    both, pools = [copy("a", since=old), copy("b", since=old)], [pool("a"), pool("b")]
    since = {"a": NOW, "b": NOW - timedelta(minutes=1)}
    (wait,) = plan(image(), both, pools, since=since)
    assert (wait.reason, wait.until) == ("Unused", NOW + timedelta(minutes=59))
    assert removed(plan(image(), both, pools, now=NOW + HOUR, since=since)) == ["b"]
    assert plan(image(2), both, pools, now=NOW + 9 * HOUR, since=since) == []


def test_a_copy_that_volumes_came_from_stays():
    both, pools = [copy("a"), copy("b")], [pool("a"), pool("b")]
    volumes = [volume("a"), volume("b", name="w")]
    assert plan(image(), both, pools, volumes, NOW + 9 * HOUR, {"a": NOW, "b": NOW}) == []


def test_the_hour_begins_when_the_copy_is_ready():
    late = copy("b", since=NOW + HOUR)
    steps = plan(
        image(files={"b": ASKED}),
        [copy("a", since=NOW + 2 * HOUR), late],
        [pool("a"), pool("b")],
        now=NOW + HOUR,
        since={"a": NOW, "b": NOW},
    )
    assert removed(steps) == []


def test_an_unused_wish_goes_with_its_copy():
    both, pools = [copy("a"), copy("b")], [pool("a"), pool("b")]
    wanted = image(files={"b": ASKED})
    since = {"a": NOW + HOUR, "b": NOW}  # a was used later
    steps = plan(wanted, both, pools, now=NOW + HOUR, since=since)
    assert steps[0] == DropWish("b")
    assert removed(steps) == ["b"]


def test_a_node_with_two_copies_loses_one_first():
    copies = [copy("a", node="n1"), copy("b", node="n2"), copy("c", node="n2")]
    pools = [pool("a", node="n1"), pool("b", node="n2"), pool("c", node="n2")]
    since = {"a": NOW - HOUR, "b": NOW, "c": NOW}
    assert removed(plan(image(2), copies, pools, now=NOW + HOUR, since=since)) == ["b"]


# --- eviction


@pytest.mark.parametrize("by_pool", [True, False], ids=["pool", "entry"])
def test_an_evicted_copy_is_replaced_first(by_pool):
    wanted = image() if by_pool else image(files={"a": EVICTED})
    pools = [pool("a", evicted=by_pool), pool("b")]
    assert plan(wanted, [copy("a")], pools) == [CreateCopy(pools[1], SourceType.SYNC)]
    moving = [copy("a"), copy("b", CopyState.IN_PROGRESS)]
    assert removed(plan(wanted, moving, pools)) == []
    assert removed(plan(wanted, [copy("a"), copy("b")], pools)) == ["a"]
    assert waits(plan(wanted, [copy("a")], pools[:1])) == ["NoPool"]


def test_eviction_keeps_to_the_floor_while_it_can():
    pools = [pool("a", evicted=True), pool("b"), pool("c")]
    both = [copy("a"), copy("b")]
    steps = plan(image(2), both, pools)
    assert (created(steps), removed(steps)) == (["c"], [])
    # Nowhere else to go: one that stays is enough.
    assert removed(plan(image(2), both, pools[:2])) == ["a"]


def test_a_copy_is_not_evicted_under_a_volume_that_is_being_made():
    pools = [pool("a", evicted=True), pool("b")]
    making = volume("a", VolumeState.PENDING)
    assert removed(plan(image(), [copy("a"), copy("b")], pools, [making])) == []


# --- failures


def test_a_failed_copy_is_made_anew_after_five_minutes():
    copies = [copy("a"), copy("b", CopyState.FAILED, message="full")]
    pools = [pool("a"), pool("b"), pool("c")]
    (wait,) = plan(image(2), copies, pools)
    assert (wait.message, wait.until) == ("full", NOW + RECOVERY_WAIT)
    assert removed(plan(image(2), copies, pools, now=NOW + RECOVERY_WAIT)) == ["b"]
    gone = [copies[0], deleting(copies[1])]
    assert created(plan(image(2), gone, pools)) == ["c"]
    assert created(plan(image(2), gone, pools[:2])) == []
    assert created(plan(image(2), gone[:1], pools[:2])) == ["b"]


def test_the_last_ready_copy_on_a_silent_node_is_waited_for():
    pools = [pool("a", alive=False), pool("b")]
    copies = [copy("a"), copy("b", CopyState.FAILED)]
    assert waits(plan(image(2), copies, pools, now=NOW + 9 * HOUR)) == ["NodeAway"]


def lost(source="download", *, was_ready=True):
    """Return an image all of whose copies failed, and them."""
    size = {"size_bytes": GIB, "checksum": "c"} if was_ready else {}
    failed = copy("a", CopyState.FAILED, source=source, reason="Corrupt", **size)
    return seen(image(source=source), [failed], [pool("a")]), failed


def test_a_download_that_was_ready_is_downloaded_again_after_five_minutes():
    wanted, failed = lost()
    pools = [pool("a"), pool("b")]
    (wait,) = plan(wanted, [failed], pools)
    assert (wait.reason, wait.until) == ("Recovering", NOW + RECOVERY_WAIT)
    later = NOW + RECOVERY_WAIT
    assert removed(plan(wanted, [failed], pools, now=later)) == ["a"]
    assert waits(plan(wanted, [deleting(failed)], pools, now=later)) == ["Removing"]
    again = plan(wanted, [], pools, now=later)
    assert again == [CreateCopy(pools[0], SourceType.DOWNLOAD)]
    assert waits(plan(wanted, [], pools)) == ["Recovering"]


@pytest.mark.parametrize(
    ("source", "was_ready"),
    [
        pytest.param("export-from-volume", True, id="an export"),
        pytest.param("download", False, id="never ready"),
    ],
)
def test_what_cannot_be_had_again_stays_failed(source, was_ready):
    wanted, failed = lost(source, was_ready=was_ready)
    assert plan(wanted, [failed], [pool("a")], now=NOW + 9 * HOUR) == []


def test_copies_that_vanish_are_a_damage():
    whole = seen(image(), [copy("a")], [pool("a")])
    assert plan(whole, [], [pool("a")]) == [Refuse("Corrupt", "all copies of the image are gone")]


def test_a_copy_that_is_being_removed_by_somebody_is_not_ready():
    whole = seen(image(), [copy("a")], [pool("a")])
    going = seen(whole, [deleting(copy("a"))], [pool("a")])
    assert not going.is_ready
    assert going.status.disk_file_status == {}
    assert isinstance(plan(going, [], [pool("a")])[0], Refuse)


# --- every order


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


# --- uploads, and what is asked for again


def annotated(made, **annotations):
    keys = {f"shorthorn.io/{key.replace('_', '-')}": text for key, text in annotations.items()}
    return dataclasses.replace(made, meta=dataclasses.replace(made.meta, annotations=keys))


def reasons(wanted, pools):
    steps = plan_copies(wanted, [], pools, [], NOW)
    return [step.reason for step in steps if isinstance(step, Refuse | Wait)]


def test_an_upload_goes_where_its_length_fits():
    pools = [pool("a", room=GIB), pool("b", room=3 * GIB)]
    wanted = annotated(image(source="upload"), upload_length=str(2 * GIB))
    assert plan_copies(wanted, [], pools, [], NOW) == (CreateCopy(pools[1], "upload"),)
    assert reasons(wanted, pools[:1]) == ["NoPool"]


@pytest.mark.parametrize("text", ["", "0", "-1", "1e9", "9" * 30])
def test_an_upload_without_a_length_is_refused(text):
    wanted = annotated(image(source="upload"), upload_length=text)
    assert reasons(wanted, [pool("a")]) == ["InvalidArgument"]


def test_a_failed_copy_is_made_anew_once_for_each_value():
    pools = [pool("a")]
    wanted = annotated(image(), retry_at="t1")
    failed = copy("a", CopyState.FAILED, source="download")
    assert plan_copies(wanted, [failed], pools, [], NOW) == (RemoveCopy("i-a", "it is made anew"),)
    assert plan_copies(wanted, [], pools, [], NOW) == (CreateCopy(pools[0], "download"),)
    again = annotated(failed, retry_at="t1")
    assert plan_copies(wanted, [again], pools, [], NOW) == (NoteRetry("t1"),)
    noted = annotated(image(), retry_at="t1", retried="t1")
    assert plan_copies(noted, [again], pools, [], NOW) == ()


def test_an_export_whose_moment_was_told_is_not_made_anew_of_another():
    """Its VolumeSnapshot tells a creation time; what the volume holds now is something else."""
    pools, source = [pool("a")], volume("a", name="pvc-1", source="")
    export = image(source="export-from-volume", parameters={"volume-name": "pvc-1"})
    failed = copy("a", CopyState.FAILED, source="export-from-volume")
    wanted = annotated(export, retry_at="t1")
    told = annotated(export, retry_at="t1", point_in_time_promised="true")
    assert plan_copies(wanted, [failed], pools, [source], NOW) == (
        RemoveCopy("i-a", "it is made anew"),
    )
    assert plan_copies(told, [failed], pools, [source], NOW)[0] == NoteRetry("t1")
    for copies in ([failed], []):
        steps = plan_copies(told, copies, pools, [source], NOW)
        assert not any(isinstance(step, CreateCopy | RemoveCopy) for step in steps)


def test_a_copy_that_fails_on_a_node_whose_clock_is_slow_is_not_made_anew_without_a_pause():
    pools = [pool("a"), pool("b")]
    failed = copy("b", CopyState.FAILED, since=NOW - HOUR, reason="NoSpace")
    failed = dataclasses.replace(failed, meta=dataclasses.replace(failed.meta, created_at=NOW))
    copies = [copy("a"), failed]
    steps = plan(image(2), copies, pools, now=NOW + timedelta(seconds=1))
    assert [step.until for step in steps if isinstance(step, Wait)] == [NOW + RECOVERY_WAIT]
    assert not any(isinstance(step, RemoveCopy) for step in steps)
    assert RemoveCopy("i-b", "it failed") in plan(image(2), copies, pools, now=NOW + RECOVERY_WAIT)
