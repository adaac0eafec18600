"""Which copies should exist where: the rules one by one.

Aspects: where the first copy goes; the floor and its spread; what is asked for; unused copies;
eviction; uploads. What fails and is lost: test_copies_lost. Any order: test_copies_in_any_order.
"""

from datetime import timedelta

import pytest
from tests.fakes.copy_scenes import (
    ASKED,
    EVICTED,
    GIB,
    HOUR,
    NOW,
    annotated,
    copy,
    created,
    image,
    plan,
    pool,
    removed,
    seen,
    volume,
    waits,
)

from shorthorn.domain.copies import SYNCS_MAX, plan_copies
from shorthorn.domain.copy_scene import room_needed
from shorthorn.domain.copy_steps import CreateCopy, DropWish, Refuse, Wait
from shorthorn.domain.models import CopyState, SourceType, VolumeState

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


# --- uploads


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
