"""A pool into which images are sent, and out of which they are read, with its reconciler.

The image copy reconciler is the real one, over a real pool: what is sent ends as a ready copy.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import TYPE_CHECKING, Any

from tests.fakes.registries import MemoryRegistry
from tests.fakes.world import MemoryWeb

from shorthorn.controllers.image_copies import ImageCopyReconciler
from shorthorn.domain import names
from shorthorn.domain.labels import copy_labels
from shorthorn.domain.models import CopyState, ImageCopy, ImageCopySpec, ImageKey, Meta, Pool
from shorthorn.engines.local import LocalEngine
from shorthorn.images.checksum import Sha512Checksummer
from shorthorn.images.clones import PoolCloner
from shorthorn.images.local_bytes import LocalBytes, PoolBytes
from shorthorn.images.uploads import Uploads
from shorthorn.kit.keyed import KeyedLocks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from shorthorn.domain.image_bytes import ArtifactForm, ImageBytes
    from shorthorn.domain.ports import PeerSource

MIB = 1 << 20
KEY = ImageKey("golden", "1f0c")
DATA = random.Random(5).randbytes(5 * MIB) + bytes(3 * MIB) + random.Random(6).randbytes(MIB)


class Host:
    """An open pool with its reconciler; `again` is the next process."""

    def __init__(self, root: Path, copies: MemoryRegistry[ImageCopy], **options: Any) -> None:
        self.root = root
        self.copies = copies
        self.engine = LocalEngine(root)
        self.woken = asyncio.Event()
        #: Set them before `open` for a host that takes image bytes from others.
        self.pools: MemoryRegistry[Pool] | None = None
        self.peers: PeerSource | None = None
        self.uploads = Uploads("pool-1", **options)

    async def open(self) -> None:
        await self.engine.open()
        self.pool = PoolBytes(self.engine, self.uploads, "pool-1")
        self.bytes: ImageBytes = LocalBytes(self.pool, self.copies, self.engine.pool_uuid)
        self.reconciler = ImageCopyReconciler(
            self.copies,
            self.engine,
            MemoryWeb(),
            Sha512Checksummer(),
            KeyedLocks(),
            lambda _: self.woken.set(),
            pools=self.pools,
            peers=self.peers,
            uploads=self.uploads,
            cloner=PoolCloner("pool-1"),
        )

    @property
    def name(self) -> str:
        return names.copy_name(KEY.name, self.engine.pool_uuid)

    async def close(self) -> None:
        await self.reconciler.close()
        await self.engine.close()

    async def again(self) -> Host:
        await self.close()
        host = Host(self.root, self.copies)
        await host.open()
        return host

    async def begin(self, length: int, checksum: str = "") -> None:
        uuid = self.engine.pool_uuid
        spec = ImageCopySpec(
            KEY.name, KEY.uuid, "n", uuid, "upload", {"length": str(length)}, checksum
        )
        labels = copy_labels(KEY.name, "n")
        await self.copies.create(ImageCopy(Meta(self.name, labels=labels), spec))
        await self.awaited()

    async def awaited(self) -> None:
        """Reconcile until bytes are awaited, or the image is there."""
        while self.uploads.state(KEY) is None and await self.engine.find_image(KEY) is None:
            await self.reconciler.reconcile(self.name)
            await asyncio.sleep(0.001)

    async def ended(self) -> ImageCopy:
        """Reconcile until the copy is ready or has failed."""
        async with asyncio.timeout(60):
            while True:
                await self.reconciler.reconcile(self.name)
                copy = await self.copies.find(self.name)
                assert copy is not None
                if copy.status.state in (CopyState.READY, CopyState.FAILED):
                    return copy
                await asyncio.sleep(0.005)

    async def read(self, form: ArtifactForm, **span: Any) -> bytes:
        async with self.bytes.read(KEY.name, form, **span) as opened:
            return b"".join([chunk async for chunk in opened.chunks])

    def staged(self) -> list[str]:
        return [str(path) for path in (self.root / "staging" / "images").glob("**/*")]


@contextlib.asynccontextmanager
async def host_in(directory: Path, **options: Any) -> AsyncIterator[Host]:
    host = Host(directory, MemoryRegistry(ImageCopy), **options)
    await host.open()
    try:
        yield host
    finally:
        await host.close()


async def pieces(data: bytes, size: int = 100_000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def broken(data: bytes) -> AsyncIterator[bytes]:
    yield data
    raise ConnectionResetError("the client went away")


async def then_silence(data: bytes, sent: asyncio.Event) -> AsyncIterator[bytes]:
    yield data
    sent.set()
    await asyncio.Event().wait()
