"""Sessions, login links and form tokens: how long they count, and for whom."""

from __future__ import annotations

import pytest

from shorthorn.web.sessions import (
    LINK_S,
    SESSION_S,
    LoginLinks,
    Sessions,
    TokenTooLong,
    is_key,
    make_key,
)

KEY = make_key()


class Clock:
    """A time that only moves when told to."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def test_a_session_comes_back_from_its_cookie() -> None:
    session, cookie = Sessions(KEY).begin("ann", "token-1")
    found = Sessions(KEY).find(cookie)
    assert found == session
    assert found is not None
    assert (found.user, found.token) == ("ann", "token-1")


def test_a_cookie_needs_no_quotes_and_hides_the_token() -> None:
    _, cookie = Sessions(KEY).begin("ann", "token-1")
    assert '"' not in cookie
    assert "=" not in cookie
    assert "token-1" not in cookie
    assert "token-1" not in repr(Sessions(KEY).find(cookie))


def test_a_session_ends_after_its_time() -> None:
    clock = Clock()
    sessions = Sessions(KEY, clock=clock)
    session, cookie = sessions.begin("ann", "t")
    clock.now += SESSION_S - 1
    assert sessions.find(cookie) is not None
    clock.now += 2
    assert sessions.find(cookie) is None
    assert not sessions.is_current(session)


@pytest.mark.parametrize("cookie", ["", "x", "gAAAAA", "ü", "=" * 10])
def test_what_was_not_made_here_is_no_session(cookie: str) -> None:
    assert Sessions(KEY).find(cookie) is None


def test_another_key_opens_nothing() -> None:
    _, cookie = Sessions(KEY).begin("ann", "t")
    assert Sessions(make_key()).find(cookie) is None


def test_a_token_that_no_cookie_holds_is_refused() -> None:
    noise = "".join(make_key() for _ in range(120))
    with pytest.raises(TokenTooLong):
        Sessions(KEY).begin("ann", noise)


def test_form_tokens_belong_to_one_user() -> None:
    sessions = Sessions(KEY)
    one, again, other = (sessions.begin(user, "t")[0] for user in ("ann", "ann", "bob"))
    assert sessions.is_form_token(one, sessions.form_token(one))
    assert sessions.is_form_token(again, sessions.form_token(one))
    assert not sessions.is_form_token(other, sessions.form_token(one))
    assert not sessions.is_form_token(one, "")
    assert not sessions.is_form_token(one, "ü")
    assert not Sessions(make_key()).is_form_token(one, sessions.form_token(one))


def test_form_tokens_count_for_a_day_at_most() -> None:
    clock = Clock()
    sessions = Sessions(KEY, clock=clock)
    session, _ = sessions.begin("ann", "t")
    token = sessions.form_token(session)
    clock.now += SESSION_S
    assert sessions.is_form_token(session, token)
    clock.now += SESSION_S
    assert not sessions.is_form_token(session, token)


def test_a_session_that_was_signed_out_opens_nothing() -> None:
    sessions = Sessions(KEY)
    (one, cookie), (_, other) = sessions.begin("ann", "t"), sessions.begin("ann", "t")
    sessions.end(one)
    assert sessions.find(cookie) is None
    assert not sessions.is_current(one)
    assert sessions.find(other) is not None


def test_what_was_signed_out_is_remembered_while_it_matters_and_within_bounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shorthorn.web.sessions.ENDED_MAX", 2)
    clock = Clock()
    sessions = Sessions(KEY, clock=clock)
    cookies = []
    for _ in range(3):
        session, cookie = sessions.begin("ann", "t")
        sessions.end(session)
        cookies.append(cookie)
        clock.now += 1
    assert [sessions.find(cookie) is None for cookie in cookies] == [False, True, True]
    clock.now += SESSION_S
    session, _ = sessions.begin("ann", "t")
    sessions.end(session)
    assert len(sessions._ended) == 1


def test_a_link_is_good_once() -> None:
    links = LoginLinks(KEY)
    once = links.make()
    assert links.use(once)
    assert not links.use(once)


def test_a_link_that_another_process_made_is_good_too() -> None:
    clock = Clock()
    links = LoginLinks(KEY, clock=clock)
    clock.now += 5
    assert links.use(LoginLinks(KEY, clock=clock).make())


def test_a_link_is_good_for_ten_minutes() -> None:
    clock = Clock()
    links = LoginLinks(KEY, clock=clock)
    once = links.make()
    clock.now += LINK_S + 1
    assert not links.use(once)


def test_a_restart_ends_all_links() -> None:
    clock = Clock()
    once = LoginLinks(KEY, clock=clock).make()
    clock.now += 1
    assert not LoginLinks(KEY, clock=clock).use(once)


def test_a_session_is_no_link() -> None:
    _, cookie = Sessions(KEY).begin("ann", "t")
    assert not LoginLinks(KEY).use(cookie)


def test_a_key_is_told_from_other_texts() -> None:
    assert is_key(make_key())
    assert not is_key("")
    assert not is_key("short")
