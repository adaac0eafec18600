"""Who may what: the API server's answer, kept for a moment.

Owns: which question stands before each look at what this process knows anyway, and for how long an
answer counts. Must never: answer by itself. Called by pages, event streams and /api/v1.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from shorthorn.kube.user_api import Refused

if TYPE_CHECKING:
    from shorthorn.kube.user_api import Resource, UserApi
    from shorthorn.web.sessions import Session

KEPT_S: Final = 10.0
_KEPT_MAX: Final = 10_000


class Forbidden(Refused):
    """The user may not. Told as the API server tells it."""

    def __init__(self, user: str, verb: str, resource: Resource, name: str = "") -> None:
        what = f"{resource.plural}.{resource.group}" if resource.group else resource.plural
        one = f' "{name}"' if name else ""
        super().__init__(403, "Forbidden", f'user "{user}" may not {verb} {what}{one}')


class Access:
    """Rights in the one namespace that holds our objects, and elsewhere."""

    def __init__(
        self, api: UserApi, *, namespace: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.api = api
        self.namespace = namespace
        self._clock = clock
        self._known: dict[tuple[str, ...], tuple[float, bool]] = {}

    async def may(self, session: Session, verb: str, resource: Resource, name: str = "") -> bool:
        """Whether the user may do `verb` to our objects. Raises: Refused (401), Unavailable."""
        asked = (_digest(session.token), verb, resource.group, resource.plural, name)
        known = self._known.get(asked)
        now = self._clock()
        if known is not None and now - known[0] < KEPT_S:
            return known[1]
        namespace = self.namespace if resource.is_namespaced else ""
        answer = await self.api.may(session.token, verb, resource, namespace=namespace, name=name)
        if len(self._known) >= _KEPT_MAX:
            self._known.clear()
        self._known[asked] = (now, answer)
        return answer

    async def require(
        self, session: Session, verb: str, resource: Resource, name: str = ""
    ) -> None:
        """Raise Forbidden where the user may not."""
        if not await self.may(session, verb, resource, name):
            raise Forbidden(session.user, verb, resource, name)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
