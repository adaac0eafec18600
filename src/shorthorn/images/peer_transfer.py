"""Bytes of an image from whichever peer gives them, in one pass: hashed and written sparse while
they arrive, resumed after any interruption.

Owns the order in which peers are asked, what is tried again and from where, and the proof that the
right bytes arrived. Must never let a peer that breaks the rules harm anything but its own turn:
nothing is written outside of the declared size, nothing kept in memory, and nothing called complete
whose SHA-512 is not the promised one. Called by `images.peer_fetcher`.

The bytes of an image never change, so any peer may go on where another one stopped. A broken line
goes on at the very next byte, a new process at the last checkpoint.
"""

from __future__ import annotations

import asyncio
import os
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shorthorn.domain.errors import ChecksumMismatch, NoSpace, NotFound, Unavailable
from shorthorn.images.download import ARTIFACT_NAME, RetryPolicy
from shorthorn.images.download_journal import DownloadJournal, read_journal, write_journal
from shorthorn.images.failures import allocated_bytes
from shorthorn.images.peer_client import PeerClient, PeerLacks, PeerTroubled
from shorthorn.images.peer_wire import Description, FrameDecoder, Hole, Violation
from shorthorn.images.rate import Rate, finish_reporting
from shorthorn.images.staged_writer import StagedWriter
from shorthorn.kit.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from shorthorn.domain.models import Peer
    from shorthorn.domain.ports import ReportProgress
    from shorthorn.images.peer_client import ClientTls

#: How long a sender's checksum is waited for when all bytes are here; then it is the caller's turn.
CHECKSUM_WAIT_S = 120.0
_CHECKSUM_DELAY_S = 0.5
_CHECKSUM_DELAY_S_MAX = 5.0


@dataclass(frozen=True, slots=True)
class TransferRequest:
    """What to get, from whom, and where it goes.

    `path`: on the wire, see `images.peer_wire`. `what`: in words, and `name` the image's, for
    messages. `expected_checksum`: empty where the senders' own word decides.
    """

    path: str
    what: str
    name: str
    peers: Sequence[Peer]
    expected_checksum: str
    staging: Path
    pool_name: str
    retry: RetryPolicy = field(default_factory=RetryPolicy)


@dataclass(frozen=True, slots=True)
class Transferred:
    """A complete, durable file: `checksum` is its SHA-512, and that which was promised."""

    path: Path
    description: Description
    checksum: str


class _StartOver(Exception):
    """The staged bytes are of no use."""


async def transfer(request: TransferRequest, tls: ClientTls, report: ReportProgress) -> Transferred:
    """Get the whole file, or go on with what an earlier call or process left.

    Raises: ChecksumMismatch: from every peer that gave it. NotFound: no peer has it. NoSpace:
        before anything was asked for. Unavailable: may be called again. OSError: of the disk.
    State:  what is durable stays for the next call, also after a cancellation or kill.
    """
    async with PeerClient(tls) as client:
        running = _Transfer(request, client, report)
        # Enough for every peer to spoil it once with others and once alone; who changes his mind
        # at every question shall not keep us for ever.
        for _ in range(2 * len(request.peers) + 1):
            try:
                return await running.run()
            except _StartOver:
                await running.forget()
        raise running.gave_up()


class _Transfer:
    """One call of `transfer`: a file, its journal, and as many peers as it takes."""

    def __init__(
        self, request: TransferRequest, client: PeerClient, report: ReportProgress
    ) -> None:
        self._request = request
        self._client = client
        self._rate = Rate(report, "fetching")
        self._file = request.staging / ARTIFACT_NAME
        self._url = f"peer:{request.path}"
        found = read_journal(request.staging, self._url)
        size = self._file.stat().st_size if self._file.exists() else 0
        is_usable = found is not None and size >= found.durable_bytes
        self._journal = found if found is not None and is_usable else DownloadJournal(self._url)
        #: Who gave the staged bytes; None stands for an earlier call.
        self._givers: set[Peer | None] = {None} if self._journal.durable_bytes else set()
        #: What each peer's last answer was worth, for the message at the end.
        self._problems: dict[Peer, str] = {}
        self._lacking: set[Peer] = set()
        #: Peers that will not be asked again in this call.
        self._refused: set[Peer] = set()
        #: Those of them that might do better another time.
        self._unlucky: set[Peer] = set()
        #: Peers that might have it, but were not let go on in this round.
        self._skipped: set[Peer] = set()
        #: Whoever begins has to finish: bytes of several peers together turned out wrong.
        self._is_alone = False
        self._mismatch: ChecksumMismatch | None = None
        self._retry_after_s = 0.0

    async def run(self) -> Transferred:
        """Raises: _StartOver, and as `transfer`."""
        description = await self._rounds(self._choose, lambda: 0)
        if not self._journal.checksum:
            await self._check_space(description)
            await self._fetch(description)
        wanted = await self._wanted_checksum(description)
        if self._journal.checksum != wanted:
            self._blame(wanted)
            raise _StartOver
        return Transferred(self._file, description, wanted)

    async def forget(self) -> None:
        """Begin at the first byte, with nothing staged."""
        self._journal = DownloadJournal(self._url)
        self._givers = set()
        await write_journal(self._request.staging, self._journal)
        await in_thread(self._file.unlink, missing_ok=True)

    # ---- whom to ask

    async def _rounds(
        self, ask_all: Callable[[], Awaitable[Description | None]], position: Callable[[], int]
    ) -> Description:
        """Ask all peers, again and again as long as that brings new bytes, and a few times more."""
        policy, failures = self._request.retry, 0
        while True:
            before, self._retry_after_s = position(), 0.0
            self._lacking.clear()
            answer = await ask_all()
            if answer is not None:
                return answer
            failures = 1 if position() > before else failures + 1
            is_hopeless = self._lacking.issuperset(self._usable())
            if is_hopeless or failures >= policy.attempts:
                raise self.gave_up()
            delay_s = max(self._retry_after_s, policy.delay_s * 2 ** (failures - 1))
            delay_s = min(delay_s, policy.delay_s_max) * random.uniform(0.75, 1.25)
            self._rate.say(position(), self._journal.total_bytes, f"waiting: {self._complaints()}")
            await asyncio.sleep(delay_s)

    def _usable(self) -> list[Peer]:
        return [peer for peer in self._request.peers if peer not in self._refused]

    async def _choose(self) -> Description | None:
        """Return the first description that fits what is staged, else the first one at all; the
        journal is then of that one.
        """
        other: Description | None = None
        for peer in self._usable():
            described = await self._describe(peer)
            if described is not None and self._fits(described):
                return described
            other = other or described
        if other is not None:
            await self.forget()
        return other

    async def _describe(self, peer: Peer) -> Description | None:
        """Ask a peer what it has; None where that is nothing to go on with."""
        try:
            described = await self._client.describe(peer, self._request.path)
        except (PeerLacks, PeerTroubled, Violation) as exc:
            self._note(peer, exc)
            return None
        expected = self._request.expected_checksum
        if expected and described.checksum not in ("", expected):
            self._mismatch = ChecksumMismatch(self._request.name, expected, described.checksum)
            self._refuse(peer, "has it with another checksum")
            return None
        self._problems.pop(peer, None)
        return described

    def _fits(self, described: Description) -> bool:
        """Whether a peer's bytes go on where the staged ones end. `etag` is the first giver's
        word for the checksum.
        """
        journal = self._journal
        if not journal.total_bytes:
            return True
        is_same = described.checksum == journal.etag or not (described.checksum and journal.etag)
        return described.size_bytes == journal.total_bytes and is_same

    # ---- the bytes

    async def _check_space(self, description: Description) -> None:
        """Refuse before the pool is full what cannot fit into it."""
        usage = await in_thread(os.statvfs, self._request.staging)
        free = usage.f_bavail * usage.f_frsize
        needed = description.data_bytes - allocated_bytes(self._file)
        if needed > free:
            raise NoSpace(self._request.pool_name, needed, free)

    async def _fetch(self, description: Description) -> None:
        """Complete the file, its hash and its journal."""
        offset = self._journal.durable_bytes
        if offset == 0:
            self._journal = DownloadJournal(
                self._url, etag=description.checksum, total_bytes=description.size_bytes
            )
            await write_journal(self._request.staging, self._journal)
        async with StagedWriter(self._file, offset, self._on_durable) as writer:
            try:
                await self._rounds(lambda: self._fill(writer, description), lambda: writer.position)
            except Unavailable:
                self._give_others_a_turn()
                await writer.suspend()
                raise
            checksum = await finish_reporting(writer, self._rate)
        await self._on_durable(writer.position, checksum)

    async def _on_durable(self, durable_bytes: int, checksum: str = "") -> None:
        self._journal = DownloadJournal(
            self._url,
            etag=self._journal.etag,
            total_bytes=self._journal.total_bytes,
            durable_bytes=durable_bytes,
            checksum=checksum,
        )
        await write_journal(self._request.staging, self._journal)

    async def _fill(self, writer: StagedWriter, description: Description) -> Description | None:
        """Let one peer after the other go on; None if after all of them something is missing."""
        self._skipped.clear()
        for peer in self._usable():
            if not self._may_go_on(peer):
                self._skipped.add(peer)
                continue
            described = await self._describe(peer)
            if described is None:
                continue
            if not self._fits(described):
                self._problems[peer] = "has other bytes than those that are here already"
                self._skipped.add(peer)
                continue
            try:
                await self._take(peer, writer)
            except (PeerLacks, PeerTroubled, Violation) as exc:
                self._note(peer, exc)
            else:
                return description
        if self._skipped.issuperset(self._usable()):
            self._give_others_a_turn()
        return None

    def _may_go_on(self, peer: Peer) -> bool:
        return not self._is_alone or not self._givers or peer in self._givers

    def _give_others_a_turn(self) -> None:
        """Where the peers that were let go on cannot, begin anew with those that were not, if any.

        Raises: _StartOver. Each time at least one peer less is left to ask.
        """
        if not self._skipped.isdisjoint(self._usable()):
            for peer in self._usable():
                if peer not in self._skipped:
                    self._refused.add(peer)
                    self._unlucky.add(peer)
            raise _StartOver

    async def _take(self, peer: Peer, writer: StagedWriter) -> None:
        """Write what `peer` sends until the file is complete."""
        total = self._journal.total_bytes
        self._rate.doing = f"fetching from {peer.node_id}"
        decoder = FrameDecoder(offset_bytes=writer.position, size_bytes=total)
        async with self._client.stream(
            peer, self._request.path, offset_bytes=writer.position
        ) as pieces:
            async for piece in pieces:
                self._givers.add(peer)
                for part in decoder.feed(piece):
                    if isinstance(part, Hole):
                        await writer.write_hole(part.length_bytes)
                    else:
                        await writer.write(part)
                self._rate.say(writer.position, total)
                if decoder.is_complete:
                    return
        raise PeerTroubled(f"ended after {writer.position} of {total} bytes")

    # ---- the proof

    async def _wanted_checksum(self, description: Description) -> str:
        """Return what the bytes have to be; asks for it as long as the sender is computing it."""
        promised = self._request.expected_checksum or self._journal.etag or description.checksum
        delay_s = _CHECKSUM_DELAY_S
        deadline = asyncio.get_running_loop().time() + CHECKSUM_WAIT_S
        while not promised:
            self._lacking.clear()
            for peer in self._usable():
                described = await self._describe(peer)
                if described is not None and self._fits(described) and described.checksum:
                    return described.checksum
            if self._lacking.issuperset(self._usable()):
                raise self.gave_up()
            if asyncio.get_running_loop().time() >= deadline:
                raise Unavailable(
                    "peers", f"{self._request.what}: its checksum is still being computed"
                )
            total = self._journal.total_bytes
            self._rate.say(total, total, "waiting for the sender's checksum")
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, _CHECKSUM_DELAY_S_MAX)
        return promised

    def _blame(self, wanted: str) -> None:
        """Refuse the peer whose bytes these are. Where they are several's, nobody can tell whose
        are wrong: the next attempts are one peer's each.
        """
        self._mismatch = ChecksumMismatch(self._request.name, wanted, self._journal.checksum)
        if len(self._givers) > 1:
            self._is_alone = True
            return
        for peer in self._givers:
            if peer is not None:
                self._refuse(peer, "sent bytes that do not have the promised checksum")

    def _refuse(self, peer: Peer, problem: str) -> None:
        self._problems[peer] = problem
        self._refused.add(peer)

    def _note(self, peer: Peer, exc: PeerLacks | PeerTroubled | Violation) -> None:
        match exc:
            case PeerLacks():
                self._lacking.add(peer)
                self._problems[peer] = "does not have it"
            case PeerTroubled():
                self._problems[peer] = exc.problem
                self._retry_after_s = max(self._retry_after_s, exc.retry_after_s)
            case Violation():
                self._refuse(peer, exc.problem)

    def _complaints(self) -> str:
        said = (f"{peer.node_id} {problem}" for peer, problem in self._problems.items())
        return "; ".join(said) or "there is no peer to ask"

    def gave_up(self) -> NotFound | ChecksumMismatch | Unavailable:
        """Return what all answers together mean."""
        peers, refused = set(self._request.peers), self._refused - self._unlucky
        if peers and self._lacking == peers:
            return NotFound(self._request.what, self._request.path.rpartition("/")[2])
        if self._mismatch is not None and self._lacking | refused == peers:
            return self._mismatch
        return Unavailable("peers", f"{self._request.what}: {self._complaints()}")
