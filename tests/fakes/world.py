"""One host without Kubernetes: the real services and controllers over memory registries.

`world()` starts one with an engine, a kernel and a web in memory; `running()` one with whatever
parts it is given, and takes it down.
"""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tests.fakes.memory_engine import CHECKSUM, MemoryEngine
from tests.fakes.memory_node import MemoryNodeStorage
from tests.fakes.registries import MemoryRegistry

from shorthorn.controllers.backing_images import BackingImageReconciler
from shorthorn.controllers.controller import Controller
from shorthorn.controllers.image_copies import ImageCopyReconciler
from shorthorn.controllers.pools import PoolReporter
from shorthorn.controllers.volumes import SnapshotReconciler, VolumeReconciler
from shorthorn.domain.errors import ChecksumMismatch, ImageFailed
from shorthorn.domain.models import (
    BackingImage,
    ImageCopy,
    ImageFormat,
    ImageKey,
    ImageRecord,
    Pool,
    PoolSpec,
    Progress,
    Snapshot,
    Volume,
)
from shorthorn.kit.keyed import KeyedLocks, KeyedOperations
from shorthorn.services.images import ImageService
from shorthorn.services.node import NodeService
from shorthorn.services.snapshots import SnapshotService
from shorthorn.services.volumes import VolumeService

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
    from pathlib import Path

    from shorthorn.domain.node_ports import NodeStorage
    from shorthorn.domain.ports import Checksummer, Engine, ImageFetcher, ReportProgress

NODE = "node-a"
IMAGE_BYTES = 64 << 20


class MemoryWeb:
    """Fetches from nowhere: `/missing` in a URL is refused, everything else is 64 MiB of qcow2."""

    def __init__(self) -> None:
        self.fetched: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def fetch(
        self,
        key: ImageKey,
        parameters: Mapping[str, str],
        expected_checksum: str,
        staging: Path,
        report: ReportProgress,
    ) -> ImageRecord:
        url = parameters["url"]
        self.fetched.append(url)
        report(Progress(IMAGE_BYTES // 4, IMAGE_BYTES))
        await self.gate.wait()
        if "/missing" in url:
            raise ImageFailed(key.name, "the server answered 404")
        if expected_checksum not in ("", CHECKSUM):
            raise ChecksumMismatch(key.name, expected_checksum, CHECKSUM)
        return ImageRecord(
            key,
            ImageFormat.QCOW2,
            IMAGE_BYTES,
            IMAGE_BYTES,
            CHECKSUM,
            {"type": "download", "url": url},
            datetime.now(UTC),
            None,
            "",
            "",
        )


class MemoryChecksummer:
    """Every artifact has the same checksum, `found`, known once `gate` is set."""

    def __init__(self) -> None:
        self.found = CHECKSUM
        self.failure: OSError | None = None
        #: What `base_problem` says or fails of.
        self.base: str | Exception = ""
        self.gate = asyncio.Event()
        self.gate.set()

    async def sha512(self, path: Path, report: ReportProgress, *, from_disk: bool = False) -> str:
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        return self.found

    async def base_problem(self, record: ImageRecord, report: ReportProgress) -> str:
        if isinstance(self.base, Exception):
            raise self.base
        return self.base


class MemoryClaims:
    """Claims by name."""

    def __init__(self) -> None:
        self.handles: dict[str, list[str]] = {}

    async def volume_handles_of_claim(self, claim: str) -> Sequence[str]:
        return self.handles.get(claim, [])


class Host:
    """The services of one host over memory registries, an engine and a kernel that are given."""

    def __init__(
        self,
        *,
        engine: Engine,
        storage: NodeStorage,
        fetcher: ImageFetcher,
        checksummer: Checksummer,
    ) -> None:
        self.images: MemoryRegistry[BackingImage] = MemoryRegistry(BackingImage)
        self.copies: MemoryRegistry[ImageCopy] = MemoryRegistry(ImageCopy)
        self.volumes: MemoryRegistry[Volume] = MemoryRegistry(Volume)
        self.snapshots: MemoryRegistry[Snapshot] = MemoryRegistry(Snapshot)
        self.pools: MemoryRegistry[Pool] = MemoryRegistry(Pool)
        self.claims = MemoryClaims()
        self.engine = engine
        self.storage = storage
        self.fetcher = fetcher
        self.checksummer = checksummer
        self.locks: KeyedLocks[str] = KeyedLocks()
        self.take_over()

    def take_over(self) -> None:
        """Make new services, as a process does that follows a killed one."""
        self.operations = KeyedOperations()
        self.node = NodeService(
            engine=self.engine,
            storage=self.storage,
            operations=self.operations,
            locks=self.locks,
        )
        self.image_service = ImageService(
            images=self.images,
            volumes=self.volumes,
            claims=self.claims,
            operations=self.operations,
        )
        self.snapshot_service = SnapshotService(
            snapshots=self.snapshots,
            volumes=self.volumes,
            images=self.image_service,
            operations=self.operations,
        )
        self.volume_service = VolumeService(
            volumes=self.volumes,
            pools=self.pools,
            images=self.image_service,
            snapshots=self.snapshot_service,
            operations=self.operations,
            use=self.node,
        )


class World(Host):
    """A host of which every part is in memory, for tests to look at and to hold up."""

    engine: MemoryEngine
    storage: MemoryNodeStorage
    checksummer: MemoryChecksummer

    def __init__(self) -> None:
        engine, self.web = MemoryEngine(), MemoryWeb()
        super().__init__(
            engine=engine,
            storage=MemoryNodeStorage(engine),
            fetcher=self.web,
            checksummer=MemoryChecksummer(),
        )


@contextlib.asynccontextmanager
async def world() -> AsyncIterator[World]:
    """Run a world with its controllers; work that is left over at the end is cancelled."""
    made = World()
    async with running(made):
        yield made


@contextlib.asynccontextmanager
async def running(made: Host) -> AsyncIterator[None]:
    """Run the controllers of a host as its daemon does."""
    reporter = PoolReporter(
        made.pools, made.volumes, made.engine, PoolSpec(NODE, made.engine.pool_uuid, "/pool")
    )
    await reporter.report()
    tasks: list[asyncio.Task[None]] = []
    close = _start_controllers(made, lambda work: tasks.append(asyncio.create_task(work)))
    try:
        yield
        ended = [task for task in tasks if task.done()]
        assert not ended, [task.exception() for task in ended]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await close()
        await made.operations.drain(timeout_s=0)


def _start_controllers(
    made: Host, spawn: Callable[[Coroutine[Any, Any, None]], None]
) -> Callable[[], Coroutine[Any, Any, None]]:
    """Start the controllers as the daemon does; return what closes the last of them."""
    copy_queue: list[Callable[[str], None]] = []
    copy_reconciler = ImageCopyReconciler(
        made.copies,
        made.engine,
        made.fetcher,
        made.checksummer,
        made.locks,
        lambda name: copy_queue[0](name),
    )
    image_reconciler = BackingImageReconciler(made.images, made.copies, made.pools, made.volumes)
    volumes = Controller(
        "volume", VolumeReconciler(made.volumes, made.engine, made.locks).reconcile
    )
    snapshots = Controller(
        "snapshot", SnapshotReconciler(made.snapshots, made.engine, made.locks).reconcile
    )
    copies = Controller("copy", copy_reconciler.reconcile)
    images = Controller("image", image_reconciler.reconcile)
    copy_queue.append(copies.enqueue)

    def copy_changed(name: str) -> None:
        copies.enqueue(name)
        image = image_reconciler.image_of_copy(name)
        if image is not None:
            images.enqueue(image)

    for controller in (volumes, snapshots, copies, images):
        spawn(controller.run())
    spawn(_follow(made.volumes, volumes.enqueue))
    spawn(_follow(made.snapshots, snapshots.enqueue))
    spawn(_follow(made.copies, copy_changed))
    spawn(_follow(made.images, images.enqueue))
    return copy_reconciler.close


async def _follow(registry: MemoryRegistry[Any], changed: Callable[[str], None]) -> None:
    async with registry.subscribe() as names:
        async for name in names:
            changed(name)
