"""Who is looked at as whom: sealed cookies, one-time login links, and tokens against forged forms.

Owns: what a cookie holds and for how long it counts. Must never: write a token into a log, or keep
sessions anywhere (a cookie that can be opened is a session, unless it was signed out here). Called
by `web.guard` and the login pages; `commands.login` makes links with the same key.

A form token belongs to a *user*, not to a session: whoever signs in again, perhaps in another tab,
can still send the forms that were open before. Against forged forms that is as good. What another
site's page lacks is the token, since it can read no page of ours; and it is an HMAC with our key,
so nobody can make it who is not shown it as that user. Against a forged sign-in (a victim is signed
in as the attacker, who then waits for what they write): a form that was opened as the victim has
the victim's token, which a session of the attacker refuses. It counts for the half day in which it
was made and the next one, so a token that was seen somewhere is of no use for long.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import time
import zlib
from base64 import urlsafe_b64encode
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from cryptography.fernet import Fernet, InvalidToken

SESSION_S: Final = 12 * 3600
LINK_S: Final = 600
#: Sessions that were signed out before their time and are remembered for that (100 bytes each).
ENDED_MAX: Final = 10_000
#: What browsers keep of one cookie, name and attributes included (RFC 6265 section 6.1).
COOKIE_BYTES_MAX: Final = 4000

Clock = Callable[[], float]


class TokenTooLong(Exception):
    """The token does not fit into a cookie, even compressed."""


@dataclass(frozen=True, slots=True)
class Session:
    """Somebody who may ask. `id` is empty for a request that brings its token itself."""

    user: str
    token: str = field(repr=False)
    id: str = ""
    expires_at: float = 0.0


class Sessions:
    """Seals and opens sessions with one key, which all replicas share."""

    def __init__(self, key: str, *, clock: Clock = time.time) -> None:
        """`key`: 32 bytes in URL-safe base64, as `make_key` returns it."""
        self._fernet = Fernet(key)
        self._forms = _derived(key, "forms")
        self._clock = clock
        self._ended: dict[str, float] = {}

    def begin(self, user: str, token: str) -> tuple[Session, str]:
        """Return a new session and its cookie's value. Raises: TokenTooLong."""
        session = Session(user, token, secrets.token_urlsafe(12), self._clock() + SESSION_S)
        members = {"u": user, "t": token, "i": session.id, "e": session.expires_at}
        packed = zlib.compress(json.dumps(members).encode(), 9)
        cookie = self._fernet.encrypt(packed).decode().rstrip("=")  # which would be quoted
        if len(cookie) > COOKIE_BYTES_MAX:
            raise TokenTooLong
        return session, cookie

    def find(self, cookie: str) -> Session | None:
        """Return the session of a cookie; None where it was not made here, or is over."""
        try:
            padded = cookie + "=" * (-len(cookie) % 4)
            members = json.loads(zlib.decompress(self._fernet.decrypt(padded)))
        except (InvalidToken, ValueError, TypeError, zlib.error):
            return None
        session = Session(members["u"], members["t"], members["i"], members["e"])
        return session if self.is_current(session) else None

    def is_current(self, session: Session) -> bool:
        """Whether the session has neither ended by itself nor been signed out here."""
        if not session.id:
            return True
        return self._clock() < session.expires_at and session.id not in self._ended

    def end(self, session: Session) -> None:
        """Have the session's cookie open nothing any more, in this process and until it restarts.

        Where too many are remembered, the one that would have ended soonest is forgotten.
        """
        now = self._clock()
        self._ended = {id: at for id, at in self._ended.items() if now < at}  # noqa: A001
        if session.id:
            self._ended[session.id] = session.expires_at
        while len(self._ended) > ENDED_MAX:
            del self._ended[min(self._ended, key=self._ended.__getitem__)]

    def form_token(self, session: Session) -> str:
        """Return what every unsafe request of the session's user has to carry from now on."""
        return self._form_token(session, self._half_day())

    def is_form_token(self, session: Session, presented: str) -> bool:
        """Whether the user was given this token, at most a day ago."""
        now = self._half_day()
        good = [self._form_token(session, half_day).encode() for half_day in (now, now - 1)]
        return any(hmac.compare_digest(token, presented.encode()) for token in good)

    def _form_token(self, session: Session, half_day: int) -> str:
        members = json.dumps([session.user, half_day]).encode()
        digest = hmac.new(self._forms, members, hashlib.sha256).digest()
        return urlsafe_b64encode(digest).decode().rstrip("=")

    def _half_day(self) -> int:
        return int(self._clock() // SESSION_S)


class LoginLinks:
    """One-time login links: good once, for ten minutes, on the process that was running by then.

    Links need no table: each is sealed with the time of its making. What was used is remembered;
    a restart forgets that, so links from before it are refused.
    """

    def __init__(self, key: str, *, clock: Clock = time.time) -> None:
        self._fernet = Fernet(urlsafe_b64encode(_derived(key, "links")))
        self._clock = clock
        self._started_at = clock()
        self._used: dict[str, float] = {}

    def make(self) -> str:
        """Return the value of `once`."""
        members = {"n": secrets.token_urlsafe(12), "at": self._clock()}
        return self._fernet.encrypt(json.dumps(members).encode()).decode().rstrip("=")

    def use(self, once: str) -> bool:
        """Whether the link is good, which it is not a second time."""
        members = self._opened(once)
        now = self._clock()
        if members is None or not self._started_at <= members["at"] <= now + 1:
            return False
        if now - members["at"] > LINK_S or members["n"] in self._used:
            return False
        self._used = {n: at for n, at in self._used.items() if now - at <= LINK_S}
        self._used[members["n"]] = members["at"]
        return True

    def _opened(self, once: str) -> dict[str, Any] | None:
        try:
            padded = once + "=" * (-len(once) % 4)
            members: dict[str, Any] = json.loads(self._fernet.decrypt(padded))
        except (InvalidToken, ValueError, TypeError):
            return None
        return members


def make_key() -> str:
    """Return a new key."""
    return Fernet.generate_key().decode()


def is_key(text: str) -> bool:
    """Whether `text` can be the key."""
    try:
        Fernet(text)
    except ValueError:
        return False
    return True


def _derived(key: str, purpose: str) -> bytes:
    return hmac.new(key.encode(), purpose.encode(), hashlib.sha256).digest()
