"""What a new volume begins with, brought from the node that has it.

Owns: fetching a snapshot of another pool into this one, as an image that lives until its volume is
made: `content-<volume id>`, with the volume's UID. Must never: make the volume
(`controllers.volumes` does) or block a reconcile: transfers run in the background.

A volume restored from a snapshot names it. The clone of a volume on another node comes from the
snapshot that `services.origins` made of it, whose name follows from the new volume's.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from shorthorn.controllers.controller import back_off_s
from shorthorn.controllers.outcomes import is_final, reason_of
from shorthorn.controllers.peers import find_peer
from shorthorn.controllers.retries import Retries
from shorthorn.controllers.transfers import Transfers, failure_of
from shorthorn.domain import errors
from shorthorn.domain.models import ImageKey, ImageRecord, Pool, Snapshot, Volume
from shorthorn.domain.names import clone_source_name
from shorthorn.domain.ports import Engine, PeerSource, Registry, ReportProgress

CONTENT = "content-of-volume"
"""Source type in the image.json of such an image; no image of a user has it."""


_FETCHES_MAX = 5
"""Most sources that come to this node at once; the same bound as for copies of images."""


@dataclass(frozen=True, slots=True)
class Content:
    """How far a volume's source is. `key`: the image it was brought into, None where it is in this
    pool by itself. `again_s`: when to look again; None: a transfer will tell.
    """

    is_here: bool = True
    key: ImageKey | None = None
    reason: str = ""
    message: str = ""
    again_s: float | None = None


class ContentFetcher:
    """One per node. `enqueue` wakes the volume's controller."""

    def __init__(
        self,
        engine: Engine,
        *,
        volumes: Registry[Volume],
        snapshots: Registry[Snapshot],
        pools: Registry[Pool],
        peers: PeerSource,
        enqueue: Callable[[str], None],
    ) -> None:
        self._engine = engine
        self._volumes = volumes
        self._snapshots = snapshots
        self._pools = pools
        self._peers = peers
        self._transfers: Transfers[ImageRecord] = Transfers(enqueue)
        self._retries = Retries(lambda failures: back_off_s(failures))
        self._turns = asyncio.Semaphore(_FETCHES_MAX)
        self._keys: dict[str, ImageKey] = {}
        self._sweeping = asyncio.Lock()
        self._is_swept = False

    async def close(self) -> None:
        """Stop all transfers; what arrived so far is resumed by the next process."""
        await self._transfers.close()

    async def sweep(self) -> None:
        """Remove, once, the contents of volumes that are there no more. Only what an earlier
        process of ours brought is ever removed.
        """
        if self._is_swept:
            return
        async with self._sweeping:
            if self._is_swept:
                return
            for record in await self._engine.list_images():
                if record.source.get("type") != CONTENT:
                    continue
                volume = await self._volumes.find(record.source.get("volume", "-"))
                if volume is None or content_key(volume) != record.key:
                    await self._engine.delete_image(record.key)
            self._is_swept = True

    async def bring(self, volume: Volume) -> Content:
        """Return how far the volume's source is, and bring it nearer.

        Raises: what a transfer failed of for good, nothing half made being left. NotFound: there is
            no such source.
        """
        if not has_foreign_source(volume):
            return Content()
        name, key = volume.meta.name, content_key(volume)
        if await self._engine.find_image(key) is not None:
            self._end(name)
            return Content(key=key)
        ended = self._transfers.find_ended(name)
        if ended is not None:
            failure = failure_of(ended)
            if failure is not None:
                return await self._give_up(name, key, failure)
            self._transfers.forget(name)  # committed, and taken away since
        if self._transfers.is_known(name):
            return Content(is_here=False, message=self._progress(name))
        snapshot = await self._find_elsewhere(volume)
        if snapshot is None:
            return Content()
        return self._start(volume, snapshot)

    async def remove(self, volume: Volume) -> None:
        """Make absent what was brought for the volume, also half of it; missing is success."""
        if has_foreign_source(volume):
            await self._transfers.cancel(volume.meta.name)
            self._end(volume.meta.name)
            await self._engine.delete_image(content_key(volume))

    async def forget(self, name: str) -> None:
        """The volume was taken away by force: stop, and leave nothing of what was brought."""
        await self._transfers.cancel(name)
        key = self._keys.get(name)
        self._end(name)
        if key is not None:
            await self._engine.delete_image(key)

    def _end(self, name: str) -> None:
        if self._transfers.find_ended(name) is not None:
            self._transfers.forget(name)
        self._retries.forget(name)
        self._keys.pop(name, None)

    async def _give_up(self, name: str, key: ImageKey, failure: BaseException) -> Content:
        if is_final(failure):
            await self._engine.discard_staging(key)
            self._end(name)
            raise failure
        self._transfers.forget(name)
        delay_s = self._retries.failed(name)
        return Content(
            is_here=False, reason=reason_of(failure), message=str(failure), again_s=delay_s
        )

    def _progress(self, name: str) -> str:
        progress = self._transfers.progress(name)
        said = f" ({progress.message})" if progress.message else ""
        return f"its data is brought from another node: {progress.percent} %{said}"

    async def _find_elsewhere(self, volume: Volume) -> Snapshot | None:
        """Return the snapshot to bring, None where the source is in this pool.

        Raises: NotFound: there is none, here or elsewhere.
        """
        source, own = volume.spec.source, self._engine.pool_uuid
        if source.snapshot:
            if await self._engine.find_snapshot(source.snapshot) is not None:
                return None
            snapshot = await self._snapshots.find(source.snapshot)
        else:
            if await self._is_here(source.volume):
                return None
            snapshot = await self._snapshots.find(clone_source_name(volume.meta.name))
        if snapshot is None:
            kind = "snapshot" if source.snapshot else "volume"
            raise errors.NotFound(kind, source.snapshot or source.volume)
        return None if snapshot.spec.pool_uuid == own else snapshot

    async def _is_here(self, source: str) -> bool:
        """Whether a volume is in this pool. What its object says comes first: a node that came back
        may hold old data of that name, which nothing names any more.
        """
        if await self._engine.find_volume(source) is None:
            return False
        named = await self._volumes.find(source)
        return named is None or named.spec.pool_uuid == self._engine.pool_uuid

    def _start(self, volume: Volume, snapshot: Snapshot) -> Content:
        name = volume.meta.name
        wait_s = self._retries.wait_s(name)
        if wait_s > 0:
            status = volume.status
            return Content(
                is_here=False, reason=status.reason, message=status.message, again_s=wait_s
            )
        self._keys[name] = content_key(volume)
        self._transfers.start(name, lambda report: self._fetch(volume, snapshot, report))
        return Content(is_here=False, message=self._progress(name))

    async def _fetch(
        self, volume: Volume, snapshot: Snapshot, report: ReportProgress
    ) -> ImageRecord:
        key, spec = content_key(volume), snapshot.spec
        async with self._turns:
            peer = await find_peer(self._pools, spec.pool_uuid)
            if peer is None:
                raise errors.Unavailable(f"node {spec.node_id}", "it has the source, and is away")
            staging = await self._engine.staging_dir(key)
            record = await self._peers.fetch_snapshot(
                snapshot.meta.name, [peer], key, staging, report
            )
        source = {"type": CONTENT, "volume": volume.meta.name}
        return await self._engine.commit_image(dataclasses.replace(record, key=key, source=source))


def content_key(volume: Volume) -> ImageKey:
    """Return the key of the image that a volume's source is brought into."""
    return ImageKey(f"content-{volume.meta.name}", volume.meta.uid)


def has_foreign_source(volume: Volume) -> bool:
    """Whether the volume's source may be on another node: images have copies of their own."""
    return bool(volume.spec.source.snapshot or volume.spec.source.volume)
