"""Image bytes through peer servers when lines break, nodes go and somebody is slow.

What holds in quiet times is in tests/contract/image_bytes_suite.py. Real sockets, real mTLS.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import random
from typing import TYPE_CHECKING

import pytest
from tests.contract.image_bytes_suite import nobody_sends, sent
from tests.fakes.tcp_proxy import Proxy, proxy
from tests.integration.bytes_host import DATA, KEY, MIB, Host, host_in, pieces, then_silence
from tests.integration.peers import Served, Tls, behind_peer_server

from shorthorn.domain import errors, names
from shorthorn.domain.image_bytes import ArtifactForm, OpenArtifact, UploadState
from shorthorn.domain.models import (
    Condition,
    CopyState,
    ImageCopy,
    ImageCopySpec,
    ImageCopyStatus,
    Meta,
    Pool,
    PoolSpec,
)
from shorthorn.images import peer_bytes_client, peer_bytes_wire
from shorthorn.images.local_bytes import PoolBytes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from shorthorn.domain.models import ImageKey

pytestmark = [pytest.mark.root, pytest.mark.xfs]

OTHER = "00000000-0000-4000-8000-000000000000"
BIG = random.Random(9).randbytes(48 * MIB)


@pytest.fixture
async def host(xfs_dir: Path) -> AsyncIterator[Host]:
    async with host_in(xfs_dir) as made:
        yield made


@pytest.fixture
async def served(host: Host) -> AsyncIterator[Served]:
    async with behind_peer_server(host, Tls()) as made:
        yield made


@pytest.fixture
async def line(served: Served) -> AsyncIterator[Proxy]:
    """What lies between the controller and the node."""
    async with proxy(f"127.0.0.1:{served.server.port}") as made:
        await served.move(made.address)
        yield made


async def test_an_upload_that_is_cut_off_goes_on_at_what_is_durable(
    host: Host, line: Proxy
) -> None:
    await host.begin(len(DATA))
    begun = asyncio.Event()
    sending = asyncio.create_task(
        host.bytes.append(KEY.name, 0, then_silence(DATA[: 3 * MIB], begun))
    )
    await begun.wait()
    line.break_off()
    with pytest.raises(errors.Unavailable, match="node-a"):
        await sending
    await nobody_sends(host)
    state = await host.bytes.upload_state(KEY.name)
    assert 0 <= state.offset_bytes <= 3 * MIB
    done = await host.bytes.append(KEY.name, state.offset_bytes, pieces(DATA[state.offset_bytes :]))
    assert done.is_complete
    assert (await host.ended()).status.checksum == hashlib.sha512(DATA).hexdigest()


async def test_a_download_that_is_cut_off_says_so_and_goes_on_at_any_byte(
    host: Host, line: Proxy
) -> None:
    await sent(host, BIG)
    line.break_at, line.heals = line.received + 10 * MIB, True
    got = bytearray()

    async def read() -> None:
        async with host.bytes.read(KEY.name, ArtifactForm.ARTIFACT) as opened:
            async for chunk in opened.chunks:
                got.extend(chunk)

    with pytest.raises(errors.Unavailable, match="node-a"):
        await read()
    assert 0 < len(got) < len(BIG)
    assert bytes(got) + await host.read(ArtifactForm.ARTIFACT, start=len(got)) == BIG


@pytest.mark.parametrize("form", [ArtifactForm.QCOW2, ArtifactForm.RAW_ZST])
async def test_a_made_form_that_is_cut_off_is_never_taken_for_whole(
    host: Host, line: Proxy, form: ArtifactForm
) -> None:
    await sent(host, BIG)
    line.break_at, line.heals = line.received + 5 * MIB, True
    with pytest.raises(errors.Unavailable):
        await host.read(form)
    async with asyncio.timeout(60):
        while host.staged():  # noqa: ASYNC110 - removed when the node sees that nobody reads
            await asyncio.sleep(0.002)


async def test_a_slow_reader_makes_the_node_wait(host: Host, line: Proxy) -> None:
    await sent(host, bytes(256 * MIB))
    async with host.bytes.read(KEY.name, ArtifactForm.RAW) as opened:
        await anext(opened.chunks)
        before = -1
        while before != line.received:  # until nothing moves any more
            before = line.received
            await asyncio.sleep(0.2)
        assert line.received < 24 * MIB
        rest = sum([len(chunk) async for chunk in opened.chunks])
    assert rest >= 255 * MIB


async def test_a_slow_pool_makes_the_sender_wait(
    host: Host, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, go_on, stuck = 0, asyncio.Event(), asyncio.Event()

    async def slowly(
        pool: PoolBytes, key: ImageKey, offset_bytes: int, chunks: AsyncIterator[bytes]
    ) -> UploadState:
        await anext(chunks)
        stuck.set()
        await go_on.wait()
        async for _ in chunks:
            pass
        return UploadState(1, 1)

    async def counted() -> AsyncIterator[bytes]:
        nonlocal taken
        for _ in range(128):
            taken += 1
            yield bytes(MIB)

    monkeypatch.setattr(PoolBytes, "append", slowly)
    await host.begin(128 * MIB)
    sending = asyncio.create_task(host.bytes.append(KEY.name, 0, counted()))
    await stuck.wait()
    before = -1
    while before != taken:
        before = taken
        await asyncio.sleep(0.2)
    assert taken < 24
    go_on.set()
    await sending
    assert taken == 128


async def test_a_node_that_is_away_is_unavailable(host: Host, served: Served) -> None:
    await sent(host)
    address = f"127.0.0.1:{served.server.port}"
    for somewhere in ("", "127.0.0.1:1"):
        await served.move(somewhere)
        await _expect_unavailable(host)
    await served.move(address)
    pool = await served.pools.find(served.pool_uuid)
    assert pool is not None
    silent = dataclasses.replace(pool.status, conditions=(Condition("Ready", False, "Silent"),))
    await served.pools.update_status(dataclasses.replace(pool, status=silent))
    await _expect_unavailable(host)


async def _expect_unavailable(host: Host) -> None:
    with pytest.raises(errors.Unavailable):
        await host.bytes.upload_state(KEY.name)
    with pytest.raises(errors.Unavailable):
        await host.bytes.append(KEY.name, 0, pieces(DATA))
    with pytest.raises(errors.Unavailable):
        await host.bytes.describe(KEY.name, ArtifactForm.RAW)
    with pytest.raises(errors.Unavailable):
        await host.read(ArtifactForm.RAW)


async def test_a_stranger_gets_and_gives_nothing(host: Host) -> None:
    await host.begin(len(DATA))
    async with behind_peer_server(host, Tls(), client=Tls()):
        with pytest.raises(errors.Unavailable):
            await host.bytes.append(KEY.name, 0, pieces(DATA))
        with pytest.raises(errors.Unavailable):
            await host.bytes.abandon(KEY.name)
        assert host.uploads.state(KEY) == UploadState(0, len(DATA))
        await host.pool.append(KEY, 0, pieces(DATA))
        await host.ended()
        await _expect_unavailable(host)


@pytest.mark.parametrize("lack", ["address", "answer", "image"])
async def test_another_node_gives_it_where_the_first_cannot(
    host: Host, served: Served, lack: str
) -> None:
    await sent(host)
    await _claim_copy_on(OTHER, host, served, lack)
    assert (await host.bytes.describe(KEY.name, ArtifactForm.RAW)).size_bytes == len(DATA)
    assert await host.read(ArtifactForm.RAW) == DATA


async def _claim_copy_on(uuid: str, host: Host, served: Served, lack: str) -> None:
    """Add a copy that is asked first, and that cannot be had."""
    address = {"address": "", "answer": "127.0.0.1:1"}.get(lack)
    if address is None:
        address = f"127.0.0.1:{served.server.port}"
    await served.pools.create(Pool(Meta(uuid), PoolSpec("node-b", uuid, "/", peer_address=address)))
    other = "gone" if lack == "image" else KEY.uuid
    spec = ImageCopySpec(KEY.name, other, "node-b", uuid, "sync")
    name = "a-first"
    assert name < names.copy_name(KEY.name, served.pool_uuid)
    made = await host.copies.create(ImageCopy(Meta(name), spec))
    ready = ImageCopyStatus(state=CopyState.READY)
    await host.copies.update_status(dataclasses.replace(made, status=ready))


async def test_a_sent_image_is_known_as_such_when_its_first_copy_has_gone(
    host: Host, served: Served
) -> None:
    await sent(host)
    copy = await host.copies.find(host.name)
    assert copy is not None
    as_sync = dataclasses.replace(copy, spec=dataclasses.replace(copy.spec, source_type="sync"))
    await host.copies.update(as_sync)
    assert (await host.bytes.upload_state(KEY.name)).is_complete


async def test_a_form_that_takes_long_is_waited_for(
    host: Host, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node says that it lives; one that does not is given up."""
    await sent(host)
    await served.bytes.close()
    monkeypatch.setattr(peer_bytes_wire, "KEEPALIVE_S", 0.05)
    monkeypatch.setattr(peer_bytes_client, "IDLE_TIMEOUT_S", 1.5)
    served.bytes._client = peer_bytes_client.PeerBytesClient(served.bytes._tls)
    real = PoolBytes.read
    monkeypatch.setattr(PoolBytes, "read", _late(real, 3.0))
    assert await host.read(ArtifactForm.ARTIFACT) == DATA
    monkeypatch.setattr(peer_bytes_wire, "KEEPALIVE_S", 10)
    with pytest.raises(errors.Unavailable):
        await host.read(ArtifactForm.ARTIFACT)


async def test_a_sender_may_pause_for_longer_than_a_node_may(
    host: Host, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    await host.begin(len(DATA))
    # Long enough for the node, which makes all of it durable at the end.
    monkeypatch.setattr(peer_bytes_client, "IDLE_TIMEOUT_S", 3.0)

    async def pausing() -> AsyncIterator[bytes]:
        yield DATA[:1000]
        await asyncio.sleep(4)
        yield DATA[1000:]

    assert (await host.bytes.append(KEY.name, 0, pausing())).is_complete


async def test_a_refusal_does_not_wait_for_bytes_that_never_come(
    host: Host, served: Served
) -> None:
    await host.begin(len(DATA))
    with pytest.raises(errors.OffsetMismatch):
        async with asyncio.timeout(60):
            await host.bytes.append(KEY.name, 7, then_silence(DATA[:9], asyncio.Event()))


def _late(read: object, delay_s: float) -> object:
    """Return `PoolBytes.read`, which begins later."""
    import contextlib

    @contextlib.asynccontextmanager
    async def later(*arguments: object, **span: object) -> AsyncIterator[OpenArtifact]:
        await asyncio.sleep(delay_s)
        async with read(*arguments, **span) as opened:  # type: ignore[operator]
            yield opened

    return later


async def test_a_certificate_that_changes_is_used_at_once(host: Host) -> None:
    tls = Tls()
    await host.begin(len(DATA))
    async with behind_peer_server(host, tls):
        assert (await host.bytes.upload_state(KEY.name)).offset_bytes == 0
        tls.use(Tls().leaf)
        assert (await host.bytes.append(KEY.name, 0, pieces(DATA))).is_complete


async def test_peers_transfers_go_on_beside_all_places_of_people(
    host: Host, served: Served
) -> None:
    from shorthorn.images.peer_bytes_server import READERS_MAX

    await sent(host, bytes(64 * MIB))
    readers = [host.bytes.read(KEY.name, ArtifactForm.RAW) for _ in range(READERS_MAX)]
    for reader in readers:
        await reader.__aenter__()
    with pytest.raises(errors.Unavailable, match="streams"):
        await host.read(ArtifactForm.RAW)
    assert served.server._streams_left > 0
    for reader in readers:
        await reader.__aexit__(None, None, None)
