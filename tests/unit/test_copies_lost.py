"""Copies that fail, images of which nothing is left: what is made anew, when, and what is not."""

import dataclasses
from datetime import timedelta

import pytest
from tests.fakes.copy_scenes import (
    GIB,
    HOUR,
    NOW,
    annotated,
    copy,
    created,
    deleting,
    image,
    plan,
    pool,
    removed,
    seen,
    volume,
    waits,
)

from shorthorn.domain.copies import RECOVERY_WAIT, plan_copies
from shorthorn.domain.copy_steps import CreateCopy, NoteRetry, Refuse, RemoveCopy, Wait
from shorthorn.domain.models import CopyState, SourceType


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
