"""Nodes that give each other images: pools, servers and certificates for tests.

`Tls` stands for the identity of one node; what it hands out can be changed at any time. `node`
is an open engine with a running server, on real sockets and real TLS.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
import shutil
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from tests.fakes.registries import MemoryRegistry

from shorthorn.domain.errors import Unavailable
from shorthorn.domain.models import ImageFormat, ImageKey, ImageRecord, Meta, Peer, Pool, PoolSpec
from shorthorn.engines.local import LocalEngine
from shorthorn.images.download import RetryPolicy
from shorthorn.images.peer_bytes import PeerBytes
from shorthorn.images.peer_fetcher import PeerFetcher
from shorthorn.images.peer_server import PeerServer
from shorthorn.kube.peer_certificates import PEER_SERVER_NAME, Leaf, issue_leaf, make_authority
from shorthorn.kube.peer_identity import Contexts, make_contexts

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Sequence

    from tests.integration.bytes_host import Host

    from shorthorn.kube.peer_identity import PeerIdentity

MIB = 1 << 20
KEY = ImageKey("golden", "1f0c")
QUICK = RetryPolicy(attempts=3, restarts=2, delay_s=0.01, delay_s_max=0.05)


def new_leaf() -> Leaf:
    """A certificate of an authority of its own."""
    now = datetime.now(UTC)
    return issue_leaf(make_authority(now), now)


async def wait_trusted(identity: PeerIdentity) -> None:
    """Return once a node has a certificate; its `run` must be running."""
    while True:
        with contextlib.suppress(Unavailable):
            identity.client_context()
            return
        await asyncio.sleep(0.01)


class Tls:
    """What the servers and clients of one cluster use. `handed_out` counts the server's."""

    server_name = PEER_SERVER_NAME

    def __init__(self, leaf: Leaf | None = None) -> None:
        self.leaf = leaf or new_leaf()
        self.contexts: Contexts = make_contexts(self.leaf)
        self.handed_out = 0

    def use(self, leaf: Leaf) -> None:
        self.leaf = leaf
        self.contexts = make_contexts(leaf)

    def server_context(self) -> ssl.SSLContext:
        self.handed_out += 1
        return self.contexts.server

    def client_context(self) -> ssl.SSLContext:
        return self.contexts.client


@dataclass
class Node:
    """A pool with a server."""

    name: str
    engine: LocalEngine
    server: PeerServer
    peer: Peer
    requests: list[str] = field(default_factory=list)


@contextlib.asynccontextmanager
async def node(root: Path, tls: Tls, *, streams_max: int = 4) -> AsyncIterator[Node]:
    """A node with a pool in `root`, which is made."""
    root.mkdir(exist_ok=True)
    engine = LocalEngine(root)
    await engine.open()
    server = PeerServer(engine, tls, host="127.0.0.1", streams_max=streams_max)
    await server.start()
    peer = Peer(root.name, engine.pool_uuid, f"127.0.0.1:{server.port}")
    try:
        yield Node(root.name, engine, server, peer)
    finally:
        await server.stop()
        await engine.close()


async def keep(
    engine: LocalEngine,
    artifact: Path,
    base: Path,
    *,
    image_format: ImageFormat = ImageFormat.RAW,
    key: ImageKey = KEY,
    checksum: str | None = None,
) -> ImageRecord:
    """Commit copies of two files as an image."""
    staging = await engine.staging_dir(key)
    clone(artifact, staging / "artifact")
    if artifact == base:
        (staging / "base.raw").hardlink_to(staging / "artifact")
    else:
        clone(base, staging / "base.raw")
    return await engine.commit_image(
        ImageRecord(
            key=key,
            format=image_format,
            size_bytes=artifact.stat().st_size,
            virtual_size_bytes=base.stat().st_size,
            checksum=sha512(artifact) if checksum is None else checksum,
            source={"type": "download", "url": "http://example.org/golden"},
            created_at=datetime(2026, 1, 2, tzinfo=UTC),
            point_in_time=None,
            artifact_path="",
            base_path="",
        )
    )


async def fetch(
    tls: Tls,
    peers: Sequence[Peer],
    staging: Path,
    *,
    checksum: str = "",
    key: ImageKey = KEY,
    retry: RetryPolicy = QUICK,
) -> ImageRecord:
    """Fetch an image into `staging`, which is made."""
    staging.mkdir(parents=True, exist_ok=True)
    fetcher = PeerFetcher("pool-1", tls, retry)
    return await fetcher.fetch_image(key, peers, checksum, staging, lambda progress: None)


def clone(source: Path, target: Path) -> None:
    """Copy a file with its holes, sharing nothing that a later write could change."""
    shutil.copyfile(source, target) if source.stat().st_blocks == 0 else _copy(source, target)


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as reading, target.open("wb") as writing:
        writing.truncate(source.stat().st_size)
        for start, end in data_ranges(source):
            reading.seek(start)
            writing.seek(start)
            writing.write(reading.read(end - start))


def data_ranges(path: Path) -> list[tuple[int, int]]:
    """What of a file is no hole."""
    found: list[tuple[int, int]] = []
    with path.open("rb") as file:
        size, end = path.stat().st_size, 0
        while end < size:
            try:
                start = os.lseek(file.fileno(), end, os.SEEK_DATA)
            except OSError:
                return found
            end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            found.append((start, end))
    return found


def sparse_file(path: Path, size_bytes: int, pieces: Sequence[tuple[int, int]]) -> Path:
    """Make a file with random data at [offset, length) and holes elsewhere; synced."""
    source = random.Random(size_bytes)
    with path.open("wb") as file:
        file.truncate(size_bytes)
        for offset, length in pieces:
            file.seek(offset)
            file.write(source.randbytes(length))
        file.flush()
        os.fsync(file.fileno())
    return path


def scattered(path: Path, count: int) -> Path:
    """`count` blocks of 4 KiB, each with a hole of 16 KiB behind it."""
    return sparse_file(path, count * 20480, [(number * 20480, 4096) for number in range(count)])


def sha512(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha512").hexdigest()


@dataclass
class Served:
    """A host whose `bytes` go through its peer server."""

    server: PeerServer
    pools: MemoryRegistry[Pool]
    bytes: PeerBytes
    pool_uuid: str

    async def move(self, address: str) -> None:
        """Let the node be at another address, or at none."""
        pool = await self.pools.find(self.pool_uuid)
        assert pool is not None
        spec = replace(pool.spec, peer_address=address)
        await self.pools.update(replace(pool, spec=spec))


@contextlib.asynccontextmanager
async def behind_peer_server(
    host: Host, tls: Tls, *, client: Tls | None = None
) -> AsyncIterator[Served]:
    """Put a peer server before the pool of `host`, and into `host.bytes` what asks it."""
    server = PeerServer(host.engine, tls, host="127.0.0.1", pool_bytes=host.pool)
    await server.start()
    uuid = host.engine.pool_uuid
    pools: MemoryRegistry[Pool] = MemoryRegistry(Pool)
    spec = PoolSpec("node-a", uuid, "/pool", peer_address=f"127.0.0.1:{server.port}")
    await pools.create(Pool(Meta(uuid), spec))
    asking = PeerBytes(host.copies, pools, client or tls)
    host.bytes = asking
    try:
        yield Served(server, pools, asking, uuid)
    finally:
        await asking.close()
        await server.stop()
