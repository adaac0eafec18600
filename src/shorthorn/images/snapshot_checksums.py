"""SHA-512 of snapshots that peers ask for, computed once each.

Owns the memory of those that are known and the work on the others, which goes on when whoever
asked has gone: he comes back. Must never name a checksum of other bytes than the file's: a
snapshot's file never changes, so its inode, time and size stand for them. Called by
`images.peer_server`.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from shorthorn.domain.errors import DomainError

if TYPE_CHECKING:
    from pathlib import Path

    from shorthorn.domain.ports import Checksummer

_logger = logging.getLogger(__name__)

#: Of one cluster's worth of snapshots that are being cloned; each costs 200 bytes.
_KNOWN_MAX = 1024

_Identity = tuple[int, int, int, int]


class SnapshotChecksums:
    """The checksums of one pool's snapshots."""

    def __init__(self, checksummer: Checksummer) -> None:
        self._checksummer = checksummer
        self._known: dict[_Identity, str] = {}
        self._running: dict[_Identity, asyncio.Task[None]] = {}

    def find_or_begin(self, path: Path) -> str:
        """Return the checksum of `path`; empty while it is being computed, from now at the latest.

        Raises: FileNotFoundError.
        """
        status = path.stat()
        identity = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
        known = self._known.get(identity)
        if known is None and identity not in self._running:
            task = asyncio.create_task(self._compute(path, identity), name="snapshot-checksum")
            self._running[identity] = task
        return known or ""

    async def _compute(self, path: Path, identity: _Identity) -> None:
        try:
            checksum = await self._checksummer.sha512(path, lambda progress: None)
        except (OSError, DomainError) as exc:  # deleted meanwhile, say; whoever asks begins again
            _logger.info("the checksum of %s is not known: %s", path, exc)
        else:
            while len(self._known) >= _KNOWN_MAX:
                del self._known[next(iter(self._known))]
            self._known[identity] = checksum
        finally:
            del self._running[identity]

    async def close(self) -> None:
        """Stop all work."""
        for task in list(self._running.values()):
            task.cancel()
        if self._running:
            await asyncio.wait(self._running.values())
