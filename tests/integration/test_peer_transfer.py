"""Images from peer to peer: real sockets, real TLS, real file systems."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.integration import peers
from tests.integration.peers import KEY, MIB, Tls, fetch, keep, node, sparse_file
from tests.integration.storage import allocated_bytes

pytestmark = pytest.mark.root


async def test_a_sparse_raw_image_arrives_as_it_is_and_its_holes_stay_holes(
    pool_dir: Path,
) -> None:
    source = sparse_file(
        pool_dir / "source", 300 * MIB, [(0, 5 * MIB), (100 * MIB, 4096), (250 * MIB, 9 * MIB)]
    )
    tls = Tls()
    async with node(pool_dir / "a", tls) as a, node(pool_dir / "b", tls) as b:
        sent = await keep(a.engine, source, source)
        staging = await b.engine.staging_dir(KEY)
        record = await fetch(tls, [a.peer], staging, checksum=sent.checksum)
        committed = await b.engine.commit_image(record)
    assert committed.checksum == sent.checksum == peers.sha512(source)
    artifact = Path(committed.artifact_path)
    assert peers.sha512(artifact) == sent.checksum
    assert peers.data_ranges(artifact) == peers.data_ranges(source)
    assert allocated_bytes(artifact) == allocated_bytes(source)
    assert artifact.samefile(committed.base_path)
    assert (committed.source, committed.created_at) == (sent.source, sent.created_at)
