"""An image made of one that another node has: its bytes come by way of a peer, and are proved.

Two pools with their real reconcilers, the peer server of one, real mTLS.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.contract.image_bytes_suite import sent
from tests.integration.bytes_host import DATA, KEY, Host, host_in
from tests.integration.peers import QUICK, Served, Tls, behind_peer_server

from shorthorn.controllers import image_copies
from shorthorn.domain import names
from shorthorn.domain.labels import copy_labels
from shorthorn.domain.models import (
    CopyState,
    ImageCopy,
    ImageCopySpec,
    ImageCopyStatus,
    ImageKey,
    ImageRecord,
    Meta,
)
from shorthorn.images.peer_fetcher import PeerFetcher

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = [pytest.mark.root, pytest.mark.xfs]

CLONE = ImageKey("second", "2b")
SUM = hashlib.sha512(DATA).hexdigest()


class Pair:
    """`here`, where the clone is made, and `there`, which has its origin and is `served`."""

    def __init__(self, here: Host, there: Host, served: Served) -> None:
        self.here = here
        self.there = there
        self.served = served
        self.name = names.copy_name(CLONE.name, here.engine.pool_uuid)

    async def begin(self, checksum: str = SUM) -> None:
        spec = ImageCopySpec(
            *(CLONE.name, CLONE.uuid, "here", self.here.engine.pool_uuid, "clone"),
            {"backing-image": KEY.name, "uuid": KEY.uuid},
            checksum,
        )
        labels = copy_labels(CLONE.name, "here")
        await self.here.copies.create(ImageCopy(Meta(self.name, labels=labels), spec))

    async def get(self) -> ImageCopy:
        copy = await self.here.copies.find(self.name)
        assert copy is not None
        return copy

    async def until(self, state: CopyState, reason: str = "") -> ImageCopy:
        async with asyncio.timeout(60):
            while True:
                await self.here.reconciler.reconcile(self.name)
                copy = await self.get()
                if (copy.status.state, copy.status.reason) == (state, reason):
                    return copy
                await asyncio.sleep(0.005)

    async def made(self) -> ImageRecord:
        await self.until(CopyState.READY)
        record = await self.here.engine.find_image(CLONE)
        assert record is not None
        return record


@pytest.fixture
async def pair(xfs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Pair]:
    monkeypatch.setattr(image_copies, "back_off_s", lambda failures: 0.01)
    (xfs_dir / "there").mkdir()
    (xfs_dir / "here").mkdir()
    tls = Tls()
    async with host_in(xfs_dir / "there") as there, behind_peer_server(there, tls) as served:
        here = Host(xfs_dir / "here", there.copies)
        here.pools, here.peers = served.pools, PeerFetcher("pool-2", tls, QUICK)
        await here.open()
        await sent(there)
        yield Pair(here, there, served)
        await here.close()


async def test_a_clone_of_what_another_node_has_is_an_image_of_its_own(pair: Pair) -> None:
    await pair.begin()
    made = await pair.made()
    assert (made.checksum, made.key) == (SUM, CLONE)
    assert dict(made.source) == {"type": "clone", "backing-image": KEY.name}
    assert Path(made.artifact_path).read_bytes() == DATA
    assert pair.here.staged() == []
    await pair.there.copies.delete(pair.there.name)
    await pair.there.reconciler.reconcile(pair.there.name)
    assert Path(made.base_path).read_bytes() == DATA


async def test_a_clone_waits_while_the_node_of_its_origin_is_away(pair: Pair) -> None:
    address = f"127.0.0.1:{pair.served.server.port}"
    await pair.served.move("")
    await pair.begin()
    waiting = await pair.until(CopyState.IN_PROGRESS, "Unavailable")
    assert KEY.name in waiting.status.message
    await pair.served.move(address)
    assert (await pair.made()).checksum == SUM


async def test_a_clone_of_a_deleted_image_fails(pair: Pair) -> None:
    await pair.there.copies.delete(pair.there.name)
    await pair.there.reconciler.reconcile(pair.there.name)
    await pair.begin()
    failed = await pair.until(CopyState.FAILED, "NotFound")
    assert "was deleted" in failed.status.message
    assert pair.here.staged() == []


async def test_a_clone_of_other_bytes_than_were_promised_fails(pair: Pair) -> None:
    await pair.begin("ab" * 64)
    failed = await pair.until(CopyState.FAILED, "ChecksumMismatch")
    assert "ab" * 64 in failed.status.message
    assert pair.here.staged() == []


async def test_a_damaged_copy_in_the_same_pool_is_passed_over(pair: Pair) -> None:
    """What is here was found damaged; its record still says that it is the image."""
    sound = await pair.there.engine.find_image(KEY)
    assert sound is not None
    staging = await pair.here.engine.staging_dir(KEY)
    for name in ("artifact", "base.raw"):
        (staging / name).write_bytes(b"damaged" + DATA[7:])
    record = dataclasses.replace(
        sound, artifact_path=str(staging / "artifact"), base_path=str(staging / "base.raw")
    )
    await pair.here.engine.commit_image(record)
    uuid = pair.here.engine.pool_uuid
    spec = ImageCopySpec(KEY.name, KEY.uuid, "here", uuid, "sync")
    meta = Meta(names.copy_name(KEY.name, uuid), labels=copy_labels(KEY.name, "here"))
    copy = await pair.here.copies.create(ImageCopy(meta, spec))
    condemned = ImageCopyStatus(state=CopyState.FAILED, reason="Corrupt", verify_at="t1")
    await pair.here.copies.update_status(dataclasses.replace(copy, status=condemned))
    await pair.begin()
    assert Path((await pair.made()).artifact_path).read_bytes() == DATA
