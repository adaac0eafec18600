"""The controller's side of trust between nodes: it keeps an authority and its certificate.

Owns the content of the Secrets `shorthorn-peer-ca` and `shorthorn-peer-tls`. Must never replace one
that somebody else changed since it was read, nor say what is in them. Run by the controller that
leads; a second one beside it does no harm, for the API server lets one of them be first.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from shorthorn.domain.errors import Conflict, DomainError, NotFound, Unavailable
from shorthorn.kube.peer_certificates import plan
from shorthorn.kube.peer_secrets import (
    AUTHORITY_SECRET,
    LEAF_SECRET,
    Secret,
    Secrets,
    authority_data,
    authority_of,
    leaf_data,
    leaf_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from lightkube import AsyncClient

_logger = logging.getLogger(__name__)

#: Somebody may delete a Secret; nodes that restart then wait for no longer than this.
_LOOK_INTERVAL = timedelta(minutes=10)
_RETRY_S = 1.0
_RETRY_S_MAX = 60.0
#: Each attempt after the first means that somebody else was first, who then has done the work.
_ATTEMPTS = 5


class PeerAuthority:
    """Keeps both Secrets. `now` is the clock, in UTC."""

    def __init__(
        self,
        client: AsyncClient,
        *,
        namespace: str,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._secrets = Secrets(client, namespace=namespace)
        self._now = now

    async def run(self) -> None:
        """Keep them until cancelled: the life of one leadership."""
        delay_s = _RETRY_S
        while True:
            try:
                look_again_at = await self.ensure()
            except DomainError as exc:
                _logger.warning("the peers' certificates, again in %.0f s: %s", delay_s, exc)
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, _RETRY_S_MAX)
            else:
                delay_s = _RETRY_S
                wait = min(look_again_at - self._now(), _LOOK_INTERVAL)
                await asyncio.sleep(max(wait.total_seconds(), _RETRY_S))

    async def ensure(self) -> datetime:
        """Make and renew what has to be now; return when something will have to be next.

        Raises: Unavailable. State: may be repeated; the authority is durable before anything that
            it signed is shown.
        """
        for _ in range(_ATTEMPTS):
            try:
                return await self._ensure()
            except (Conflict, NotFound):
                continue
        raise Unavailable("API server", "the peers' Secrets change again and again")

    async def _ensure(self) -> datetime:
        stored = await self._secrets.find(AUTHORITY_SECRET)
        shown = await self._secrets.find(LEAF_SECRET)
        authority = None if stored is None else authority_of(stored)
        leaf = None if shown is None else leaf_of(shown)
        wanted = plan(authority, leaf, self._now())
        if wanted.authority != authority:
            data = authority_data(wanted.authority)
            await self._write(AUTHORITY_SECRET, "Opaque", data, stored)
        if wanted.leaf != leaf:
            await self._write(LEAF_SECRET, "kubernetes.io/tls", leaf_data(wanted.leaf), shown)
        return wanted.look_again_at

    async def _write(
        self, name: str, kind: str, data: dict[str, str], before: Secret | None
    ) -> None:
        if before is None:
            await self._secrets.write(Secret(name, kind, data))
        else:  # the type of a Secret cannot be changed
            await self._secrets.write(Secret(name, before.type, data, before.resource_version))
        _logger.info("Secret %s is %s", name, "made" if before is None else "renewed")
