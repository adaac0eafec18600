"""What is renewed when, and that what belongs together stays together."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st

from shorthorn.kube.peer_certificates import (
    LEAF_VALID,
    SETTLING,
    Authority,
    Leaf,
    issue_leaf,
    make_authority,
    plan,
)

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)


def certificates(pem: str) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(pem.encode())


def is_trusted(leaf: Leaf, bundle: str, at: datetime) -> bool:
    """Whether somebody with `bundle` would take `leaf`."""
    [certificate] = certificates(leaf.certificate)
    if not certificate.not_valid_before_utc <= at < certificate.not_valid_after_utc:
        return False
    for issuer in certificates(bundle):
        is_valid = issuer.not_valid_before_utc <= at < issuer.not_valid_after_utc
        if issuer.subject == certificate.issuer and is_valid:
            certificate.verify_directly_issued_by(issuer)
            return True
    return False


def test_the_first_plan_makes_both_and_the_second_changes_nothing() -> None:
    first = plan(None, None, START)
    assert is_trusted(first.leaf, first.leaf.bundle, START)
    assert first.leaf.bundle == first.authority.bundle
    again = plan(first.authority, first.leaf, START)
    assert again == first
    assert START + 19 * DAY < first.look_again_at < START + 21 * DAY


def test_a_leaf_is_renewed_after_two_thirds_by_the_same_authority() -> None:
    first = plan(None, None, START)
    before = plan(first.authority, first.leaf, START + 19 * DAY)
    assert before.leaf == first.leaf
    after = plan(first.authority, first.leaf, START + 21 * DAY)
    assert after.authority == first.authority
    assert after.leaf.certificate != first.leaf.certificate
    assert is_trusted(after.leaf, first.leaf.bundle, START + 21 * DAY)


def test_a_new_authority_is_shown_before_it_signs_and_the_old_one_leaves_at_last() -> None:
    now = START + 250 * DAY
    old = plan(make_authority(START), None, now - 7 * DAY)
    assert len(certificates(old.authority.bundle)) == 1
    shown = plan(old.authority, old.leaf, now)
    assert len(certificates(shown.authority.bundle)) == 2
    assert shown.leaf.certificate == old.leaf.certificate
    assert shown.leaf.bundle == shown.authority.bundle
    signed = plan(shown.authority, shown.leaf, now + 14 * DAY)
    assert signed.leaf.certificate != old.leaf.certificate
    assert is_trusted(signed.leaf, shown.authority.bundle, now + 14 * DAY)
    assert len(certificates(signed.authority.bundle)) == 2
    alone = plan(signed.authority, signed.leaf, now + 31 * DAY)
    assert len(certificates(alone.authority.bundle)) == 1
    assert alone.leaf.bundle == alone.authority.bundle


def test_a_leaf_due_while_a_new_authority_settles_waits_for_it() -> None:
    now = START + 250 * DAY
    old_leaf = issue_leaf(make_authority(START), now)
    authority = make_authority(START)
    leaf = issue_leaf(authority, now - 20 * DAY - timedelta(hours=1))
    shown = plan(authority, leaf, now)
    assert shown.leaf.certificate == leaf.certificate
    assert old_leaf.certificate != leaf.certificate
    assert now < shown.look_again_at <= now + SETTLING
    signed = plan(shown.authority, shown.leaf, shown.look_again_at)
    assert signed.leaf.certificate != leaf.certificate


@settings(max_examples=25, deadline=None)
@given(hours=st.lists(st.integers(1, 24 * 20), min_size=25, max_size=40))
def test_whenever_it_is_looked_at_every_node_trusts_every_node(hours: list[int]) -> None:
    """A node that is one change behind trusts the others, and they trust it."""
    now, made = START, plan(None, None, START)
    for wait in hours:
        before = made
        now = min(now + timedelta(hours=wait), made.look_again_at)
        made = plan(before.authority, before.leaf, now)
        assert is_trusted(made.leaf, made.leaf.bundle, now)
        assert is_trusted(made.leaf, before.leaf.bundle, now)
        assert is_trusted(before.leaf, made.leaf.bundle, now)
        assert now < made.look_again_at
    assert plan(made.authority, made.leaf, now) == made


@pytest.mark.parametrize(
    "broken",
    [
        lambda made: (Authority("", ""), made.leaf),
        lambda made: (Authority("garbage", made.authority.key), made.leaf),
        lambda made: (Authority(made.authority.bundle, "garbage"), made.leaf),
        lambda made: (Authority(made.authority.bundle, make_authority(START).key), made.leaf),
        lambda made: (None, made.leaf),
        lambda made: (made.authority, None),
        lambda made: (made.authority, Leaf("", "", "")),
        lambda made: (made.authority, Leaf(made.leaf.certificate, "x", made.leaf.bundle)),
        lambda made: (made.authority, issue_leaf(make_authority(START), START)),
        lambda made: (made.authority, Leaf(made.leaf.certificate, made.leaf.key, "")),
    ],
)
def test_what_is_missing_damaged_or_foreign_is_made_anew(broken: object) -> None:
    authority, leaf = broken(plan(None, None, START))  # type: ignore[operator]
    made = plan(authority, leaf, START)
    assert is_trusted(made.leaf, made.leaf.bundle, START)
    assert made.leaf.bundle == made.authority.bundle
    assert plan(made.authority, made.leaf, START) == made


def test_all_that_is_over_is_made_anew() -> None:
    first = plan(None, None, START)
    late = START + 400 * DAY
    made = plan(first.authority, first.leaf, late)
    assert is_trusted(made.leaf, made.leaf.bundle, late)
    assert len(certificates(made.authority.bundle)) == 1
    assert certificates(made.leaf.certificate)[0].not_valid_after_utc == late + LEAF_VALID


def test_no_key_is_shown() -> None:
    made = plan(None, None, START)
    for value in (made, made.authority, made.leaf):
        assert "PRIVATE" not in repr(value)
        assert "PRIVATE" not in str(value)
