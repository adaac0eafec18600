"""How long the roles leave an object alone after it failed."""

from __future__ import annotations

from shorthorn.standalone.back_off import BackOff


def test_each_failure_doubles_the_wait_up_to_half_a_minute() -> None:
    back_off = BackOff()
    assert [back_off.failed("a") for _ in range(7)] == [1, 2, 4, 8, 16, 30, 30]


def test_a_thousand_failures_later_the_wait_is_still_half_a_minute() -> None:
    back_off = BackOff()
    for _ in range(1000):
        last_s = back_off.failed("a")
    assert last_s == 30


def test_one_objects_failures_do_not_hold_up_another() -> None:
    back_off = BackOff()
    back_off.failed("a")
    back_off.failed("a")
    assert not back_off.is_failing("b")
    assert back_off.failed("b") == 1


def test_what_succeeded_begins_anew() -> None:
    back_off = BackOff()
    back_off.failed("a")
    assert back_off.is_failing("a")
    back_off.forget("a")
    assert not back_off.is_failing("a")
    assert back_off.failed("a") == 1


def test_what_never_failed_may_be_forgotten() -> None:
    back_off = BackOff()
    back_off.forget("a")
    assert not back_off.is_failing("a")
