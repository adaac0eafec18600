"""One of several: a Lease (coordination.k8s.io/v1) that one process holds at a time.

Owns: taking, renewing and giving back the lease, and that what runs under it has stopped before
anybody else may hold it. Must never: know what runs. Wired by `daemon`.

The rules are client-go's. Clocks of other machines are not believed: a lease has ended when it has
not changed for its duration by *our* clock, counted from when we first saw it so. A holder stops
`renew_deadline_s` after its last renewal, which leaves the rest of `lease_s` for its work to end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from lightkube import AsyncClient

from shorthorn.domain import errors
from shorthorn.kube.client import domain_errors
from shorthorn.kube.generic import resource_class
from shorthorn.kube.informer import as_mapping

log = logging.getLogger(__name__)

_LEASE: Any = resource_class("coordination.k8s.io/v1", "Lease", "leases", is_namespaced=True)

_RELEASE_S = 2.0
"""How long giving the lease back may hold up a stop; else it just runs out."""

Lease = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Terms:
    """Seconds, client-go's defaults. Who follows a leader that was killed waits `lease_s`."""

    lease_s: float = 15.0
    renew_deadline_s: float = 10.0
    retry_s: float = 2.0

    def __post_init__(self) -> None:
        assert self.lease_s > self.renew_deadline_s > self.retry_s > 0, "two could lead at a time"


class Leases(Protocol):
    """Where leases are kept; raises domain errors as registries do."""

    async def find(self, name: str) -> Lease | None:
        """Return the object, or None."""

    async def create(self, lease: Lease) -> None:
        """Raises: AlreadyExists."""

    async def replace(self, lease: Lease) -> None:
        """Raises: Conflict: it is another than the one that was read."""


class KubeLeases:
    """Leases of one namespace, at an API server."""

    def __init__(self, client: AsyncClient, namespace: str) -> None:
        self._client: Any = client
        self._namespace = namespace

    async def find(self, name: str) -> Lease | None:
        try:
            with domain_errors("Lease", name):
                return as_mapping(await self._client.get(_LEASE, name, namespace=self._namespace))
        except errors.NotFound:
            return None

    async def create(self, lease: Lease) -> None:
        with domain_errors("Lease", lease["metadata"]["name"]):
            await self._client.create(_LEASE(lease), namespace=self._namespace)

    async def replace(self, lease: Lease) -> None:
        name = lease["metadata"]["name"]
        with domain_errors("Lease", name):
            await self._client.replace(_LEASE(lease), name, namespace=self._namespace)


class LeaderElection:
    """Competes for lease `name` in the name of `identity`, which no other living process has."""

    def __init__(
        self,
        leases: Leases,
        *,
        name: str,
        identity: str,
        terms: Terms | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._leases = leases
        self._name = name
        self._identity = identity
        self._terms = terms or Terms()
        self._now = now
        self._seen: Any = None
        self._seen_at = 0.0
        self._is_leading = False

    @property
    def is_leading(self) -> bool:
        """Whether what runs under the lease may be running."""
        return self._is_leading

    @property
    def holder(self) -> str:
        """Who held the lease when it was last looked at; empty: nobody."""
        return str((self._seen or {}).get("holderIdentity") or "")

    async def run(self, lead: Callable[[], Awaitable[None]]) -> None:
        """Compete until cancelled; run `lead` whenever and only while the lease is ours.

        `lead` is cancelled when the lease is lost, and must end soon then.
        Raises: whatever `lead` raises, or RuntimeError when it ends by itself.
        """
        while True:
            renewed_at = await self._acquire()
            log.info("%s leads: it holds lease %s", self._identity, self._name)
            self._is_leading = True
            try:
                await self._lead(lead, renewed_at)
            finally:
                self._is_leading = False
            log.warning("%s leads no more: lease %s is lost", self._identity, self._name)

    async def _lead(self, lead: Callable[[], Awaitable[None]], renewed_at: float) -> None:
        """Return when the lease was lost and `lead` has stopped."""
        work = asyncio.ensure_future(lead())
        keeping = asyncio.create_task(self._keep(renewed_at), name="lease")
        try:
            await asyncio.wait({work, keeping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            has_lost = keeping.done()
            for task in (work, keeping):
                task.cancel()
            # Ended, and not only asked to end, before the lease can be anybody else's.
            await asyncio.wait({work, keeping})
            if not has_lost:
                await self._release()
        if not work.cancelled():
            raise work.exception() or RuntimeError("what runs under the lease ended by itself")
        keeping.result()

    async def _acquire(self) -> float:
        """Return when the lease is ours: the time just before it was written."""
        told = ""
        while True:
            started, problem = _time(), ""
            try:
                if await self._try():
                    return started
            except errors.DomainError as exc:
                problem = str(exc)
            if problem and problem != told:
                log.warning("lease %s cannot be had: %s", self._name, problem)
            told = problem
            await asyncio.sleep(self._terms.retry_s)

    async def _keep(self, renewed_at: float) -> None:
        """Return when the lease is another's, or could not be renewed in time."""
        while True:
            await asyncio.sleep(self._terms.retry_s)
            started, deadline = _time(), renewed_at + self._terms.renew_deadline_s
            try:
                async with asyncio.timeout_at(deadline):
                    if not await self._try():
                        return
                renewed_at = started
            except TimeoutError:
                return
            except errors.DomainError as exc:
                log.warning("lease %s is not renewed: %s", self._name, exc)

    async def _try(self) -> bool:
        """Take or renew the lease; False: it is another's. Raises: DomainError: nobody knows."""
        lease = await self._leases.find(self._name)
        if lease is None:
            spec = self._spec({})
            await self._leases.create({"metadata": {"name": self._name}, "spec": spec})
        else:
            old = lease.get("spec") or {}
            if self._is_anothers(old):
                return False
            spec = self._spec(old)
            await self._leases.replace({**lease, "spec": spec})
        self._see(spec)
        return True

    def _is_anothers(self, spec: Mapping[str, Any]) -> bool:
        self._see(spec)
        if self.holder in ("", self._identity):
            return False
        lease_s = spec.get("leaseDurationSeconds") or self._terms.lease_s
        return bool(_time() < self._seen_at + lease_s)

    def _see(self, spec: Mapping[str, Any]) -> None:
        if spec != self._seen:
            self._seen, self._seen_at = dict(spec), _time()

    def _spec(self, old: Mapping[str, Any]) -> dict[str, Any]:
        now = self._now().astimezone(UTC).isoformat(timespec="microseconds")
        now = now.replace("+00:00", "Z")
        is_ours = old.get("holderIdentity") == self._identity
        changes = old.get("leaseTransitions") or 0
        return {
            **old,
            "holderIdentity": self._identity,
            "leaseDurationSeconds": max(1, round(self._terms.lease_s)),
            "acquireTime": old["acquireTime"] if is_ours and "acquireTime" in old else now,
            "renewTime": now,
            "leaseTransitions": changes if is_ours or not old else changes + 1,
        }

    async def _release(self) -> None:
        """Let others have it at once. Best effort: it runs out by itself."""
        with contextlib.suppress(errors.DomainError, TimeoutError):
            async with asyncio.timeout(_RELEASE_S):
                lease = await self._leases.find(self._name)
                spec = (lease or {}).get("spec") or {}
                if lease is None or spec.get("holderIdentity") != self._identity:
                    return
                given_back = {**spec, "holderIdentity": "", "leaseDurationSeconds": 1}
                await self._leases.replace({**lease, "spec": given_back})


def _time() -> float:
    return asyncio.get_running_loop().time()
