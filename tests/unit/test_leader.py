"""One leads at a time, whoever dies, hangs or loses its way to the API server. In virtual time."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from typing import TYPE_CHECKING, Any

import pytest
from tests.fakes import virtual_time

from shorthorn.domain.errors import AlreadyExists, Conflict, Unavailable
from shorthorn.kube.leader import LeaderElection, Terms

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

NAME = "shorthorn-controller"


class MemoryLeases:
    """Leases with resource versions. `is_away` as an API server that does not answer."""

    def __init__(self) -> None:
        self.leases: dict[str, dict[str, Any]] = {}
        self.is_away = False
        self.hangs = False
        self._versions = itertools.count(1)

    async def find(self, name: str) -> Mapping[str, Any] | None:
        await self._reach()
        return self.leases.get(name)

    async def create(self, lease: Mapping[str, Any]) -> None:
        await self._reach()
        name = lease["metadata"]["name"]
        if name in self.leases:
            raise AlreadyExists("Lease", name, "somebody was first")
        self._store(lease)

    async def replace(self, lease: Mapping[str, Any]) -> None:
        await self._reach()
        name = lease["metadata"]["name"]
        if lease["metadata"] != self.leases[name]["metadata"]:
            raise Conflict("Lease", name)
        self._store(lease)

    @property
    def holder(self) -> str:
        return str(self.leases[NAME]["spec"]["holderIdentity"])

    def _store(self, lease: Mapping[str, Any]) -> None:
        metadata = {**lease["metadata"], "resourceVersion": str(next(self._versions))}
        self.leases[metadata["name"]] = {"metadata": metadata, "spec": dict(lease["spec"])}

    async def _reach(self) -> None:
        await asyncio.sleep(0.01)
        if self.hangs:
            await asyncio.Event().wait()
        if self.is_away:
            raise Unavailable("API server", "away")


class Candidate:
    """A process: an election, and whether its work is running."""

    def __init__(self, leases: MemoryLeases, identity: str) -> None:
        self.election = LeaderElection(leases, name=NAME, identity=identity)
        self.works = False
        self.leads = asyncio.Event()
        self.stops_in_s = 0.0
        self.task = asyncio.create_task(self.election.run(self._lead))

    async def _lead(self) -> None:
        self.works = True
        self.leads.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(self.stops_in_s)
            self.works = False
            self.leads.clear()

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])


@contextlib.asynccontextmanager
async def two(leases: MemoryLeases) -> AsyncIterator[tuple[Candidate, Candidate]]:
    """Two candidates, of which the first leads."""
    first = Candidate(leases, "first")
    await first.leads.wait()
    second = Candidate(leases, "second")
    try:
        yield first, second
    finally:
        await first.stop()
        await second.stop()


def now() -> float:
    return asyncio.get_running_loop().time()


def test_only_one_of_two_works_for_as_long_as_it_renews() -> None:
    async def main() -> None:
        async with two(MemoryLeases()) as (first, second):
            await asyncio.sleep(3600)
            assert (first.works, second.works) == (True, False)
            assert (first.election.is_leading, second.election.is_leading) == (True, False)
            assert second.election.holder == "first"

    virtual_time.run(main())


def test_an_orderly_stop_hands_over_at_once_and_after_the_work_has_ended() -> None:
    async def main() -> None:
        leases = MemoryLeases()
        async with two(leases) as (first, second):
            first.stops_in_s = 3.0
            stopping = asyncio.create_task(first.stop())
            await asyncio.sleep(1)
            assert leases.holder == "first", "it still works"
            await stopping
            stopped_at = now()
            assert not first.works
            await second.leads.wait()
            assert now() - stopped_at < 3
            assert leases.leases[NAME]["spec"]["leaseTransitions"] == 1

    virtual_time.run(main())


def test_a_killed_leader_is_followed_when_its_lease_has_run_out() -> None:
    async def main() -> None:
        leases = MemoryLeases()
        spec = {"holderIdentity": "dead", "leaseDurationSeconds": 15, "renewTime": "whenever"}
        await leases.create({"metadata": {"name": NAME}, "spec": spec})
        candidate = Candidate(leases, "next")
        await candidate.leads.wait()
        assert 15 <= now() < 19
        await candidate.stop()

    virtual_time.run(main())


def test_a_restarted_leader_of_the_same_name_goes_on_at_once() -> None:
    async def main() -> None:
        leases = MemoryLeases()
        spec = {"holderIdentity": "pod-1", "leaseDurationSeconds": 15, "acquireTime": "then"}
        await leases.create({"metadata": {"name": NAME}, "spec": spec})
        candidate = Candidate(leases, "pod-1")
        await candidate.leads.wait()
        assert now() < 1
        assert leases.leases[NAME]["spec"]["acquireTime"] == "then"
        await candidate.stop()

    virtual_time.run(main())


@pytest.mark.parametrize("fault", ["is_away", "hangs"])
def test_who_cannot_renew_stops_before_another_may_begin(fault: str) -> None:
    async def main() -> None:
        leases = MemoryLeases()
        async with two(leases) as (first, second):
            await asyncio.sleep(60)
            mine = MemoryLeases()
            mine.leases = leases.leases
            setattr(mine, fault, True)
            first.election._leases = mine
            cut_off_at = now()
            while first.works:
                assert not second.works
                await asyncio.sleep(0.1)
            assert 7 < now() - cut_off_at <= 10.2
            await second.leads.wait()
            assert not first.works
            setattr(mine, fault, False)
            await asyncio.sleep(60)
            assert (first.works, second.works) == (False, True)

    virtual_time.run(main())


def test_a_short_absence_of_the_api_server_ends_no_leadership() -> None:
    async def main() -> None:
        leases = MemoryLeases()
        async with two(leases) as (first, second):
            leases.is_away = True
            await asyncio.sleep(7)
            leases.is_away = False
            await asyncio.sleep(60)
            assert (first.works, second.works) == (True, False)

    virtual_time.run(main())


def test_a_lease_that_another_took_ends_leadership() -> None:
    async def main() -> None:
        leases = MemoryLeases()
        async with two(leases) as (first, _):
            await leases.replace(
                {**leases.leases[NAME], "spec": {"holderIdentity": "x", "leaseDurationSeconds": 99}}
            )
            await asyncio.sleep(3)
            assert not first.works
            assert first.election.holder == "x"

    virtual_time.run(main())


def test_work_that_fails_ends_the_election_and_gives_the_lease_back() -> None:
    async def main() -> None:
        leases = MemoryLeases()

        async def lead() -> None:
            raise RuntimeError("broken")

        election = LeaderElection(leases, name=NAME, identity="a")
        with pytest.raises(RuntimeError, match="broken"):
            await election.run(lead)
        assert leases.holder == ""
        assert not election.is_leading

    virtual_time.run(main())


def test_terms_by_which_two_could_lead_are_refused() -> None:
    with pytest.raises(AssertionError, match="two could lead"):
        Terms(lease_s=10, renew_deadline_s=10)
