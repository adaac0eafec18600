"""Images from peer to peer: real sockets, real TLS, real file systems."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
import resource
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tests.fakes.tcp_proxy import proxy
from tests.integration import peers
from tests.integration.peers import KEY, MIB, QUICK, Tls, fetch, keep, node, scattered, sparse_file
from tests.integration.storage import allocated_bytes

from shorthorn.domain.errors import ChecksumMismatch, NoSpace, NotFound, Unavailable
from shorthorn.domain.models import ImageFormat, ImageKey, Peer, Progress, VolumeSource
from shorthorn.host import extents
from shorthorn.images import peer_transfer, peer_wire
from shorthorn.images.download import RetryPolicy
from shorthorn.images.download_journal import JOURNAL_NAME
from shorthorn.images.peer_client import PeerClient, PeerLacks, PeerTroubled
from shorthorn.images.peer_fetcher import PeerFetcher
from shorthorn.kit import process

FAKE = "ab" * 64

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


async def test_holes_are_told_and_not_sent(xfs_dir: Path) -> None:
    source = sparse_file(xfs_dir / "source", 64 * 1024 * MIB, [(MIB, 8 * MIB), (2 << 30, 4 * MIB)])
    tls = Tls()
    async with node(xfs_dir / "a", tls) as a:
        await keep(a.engine, source, source, checksum=FAKE)
        async with proxy(a.peer.address) as line, asyncio.timeout(60):
            with pytest.raises(_Enough):
                await _position_reached(tls, replace(a.peer, address=line.address), 64 << 30)
            assert 12 * MIB < line.received < 12.5 * MIB


async def test_thousands_of_scattered_blocks_arrive_with_every_hole(pool_dir: Path) -> None:
    source = scattered(pool_dir / "source", 5000)
    data_bytes = sum(end - start for start, end in peers.data_ranges(source))
    tls = Tls()
    async with node(pool_dir / "a", tls) as a:
        sent = await keep(a.engine, source, source)
        async with proxy(a.peer.address) as line:
            via = replace(a.peer, address=line.address)
            record = await fetch(tls, [via], pool_dir / "staging")
            received = line.received
    artifact = Path(record.artifact_path)
    assert peers.sha512(artifact) == sent.checksum == record.checksum
    assert peers.data_ranges(artifact) == peers.data_ranges(source)
    assert allocated_bytes(artifact) == allocated_bytes(source)
    assert data_bytes < received < data_bytes * 1.03


async def test_a_qcow2_becomes_a_raw_disk_that_shares_its_blocks(
    pool_dir: Path, tmp_path: Path
) -> None:
    disk = sparse_file(tmp_path / "disk", 24 * MIB, [(0, 10 * MIB)])
    image = pool_dir / "image"
    await process.run(
        ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", disk, image], timeout_s=30
    )
    tls = Tls()
    async with node(pool_dir / "a", tls) as a, node(pool_dir / "b", tls) as b:
        sent = await keep(a.engine, image, disk, image_format=ImageFormat.QCOW2)
        staging = await b.engine.staging_dir(KEY)
        record = await fetch(tls, [a.peer], staging, checksum=sent.checksum.upper())
        record = await b.engine.commit_image(record)
    assert record.format is ImageFormat.QCOW2
    assert Path(record.artifact_path).read_bytes() == image.read_bytes()
    assert Path(record.base_path).read_bytes() == disk.read_bytes()
    shared = await extents.shared_with(Path(record.artifact_path), Path(record.base_path))
    assert shared == 10 * MIB


async def test_raw_bytes_of_any_kind_are_a_disk_and_not_looked_into(xfs_dir: Path) -> None:
    """A volume may begin with anything, a qcow2 header or a web page too."""
    source = xfs_dir / "source"
    source.write_bytes(b"<html>" + b"QFI\xfb" * 250 + b"x" * 700)
    tls = Tls()
    async with node(xfs_dir / "a", tls) as a:
        base = xfs_dir / "base"
        base.write_bytes(source.read_bytes().ljust(2048, b"\0"))
        sent = await keep(a.engine, source, base)
        record = await fetch(tls, [a.peer], xfs_dir / "staging", checksum=sent.checksum)
    assert record.format is ImageFormat.RAW
    assert Path(record.artifact_path).read_bytes() == source.read_bytes()
    assert Path(record.base_path).read_bytes() == base.read_bytes()


async def test_when_the_sender_dies_another_peer_goes_on_at_the_next_byte(
    xfs_dir: Path, asked: list[tuple[str, int]]
) -> None:
    source = sparse_file(xfs_dir / "source", 40 * MIB, [(0, 40 * MIB)])
    tls = Tls()
    async with node(xfs_dir / "a", tls) as a, node(xfs_dir / "b", tls) as b:
        sent = await keep(a.engine, source, source)
        await keep(b.engine, source, source)
        async with proxy(a.peer.address) as line:
            line.break_at = 17 * MIB
            dying = replace(a.peer, address=line.address)
            record = await fetch(tls, [dying, b.peer], xfs_dir / "staging")
    assert record.checksum == sent.checksum
    assert Path(record.artifact_path).read_bytes() == source.read_bytes()
    assert [(name, offset > 0) for name, offset in asked] == [("a", False), ("b", True)]
    assert 10 * MIB < asked[1][1] < 18 * MIB


async def test_a_lost_line_keeps_what_came_and_the_next_call_goes_on_there(
    xfs_dir: Path, asked: list[tuple[str, int]]
) -> None:
    source = sparse_file(xfs_dir / "source", 40 * MIB, [(0, 40 * MIB)])
    tls = Tls()
    async with node(xfs_dir / "a", tls) as a, node(xfs_dir / "b", tls) as b:
        sent = await keep(a.engine, source, source)
        await keep(b.engine, source, source)
        async with proxy(a.peer.address) as line:
            line.break_at = 17 * MIB
            dying = replace(a.peer, address=line.address)
            with pytest.raises(Unavailable, match="image golden: a "):
                await fetch(tls, [dying], xfs_dir / "staging")
        record = await fetch(tls, [dying, b.peer], xfs_dir / "staging")
    assert Path(record.artifact_path).read_bytes() == source.read_bytes()
    assert record.checksum == sent.checksum
    assert [name for name, _ in asked] == ["a", "b"]
    assert 10 * MIB < asked[1][1] < 18 * MIB


async def test_an_image_deleted_while_it_is_sent_arrives_and_is_then_not_found(
    xfs_dir: Path,
) -> None:
    source = sparse_file(xfs_dir / "source", 40 * MIB, [(0, 40 * MIB)])
    tls = Tls()
    async with node(xfs_dir / "a", tls) as a:
        sent = await keep(a.engine, source, source)
        async with proxy(a.peer.address) as line:
            line.hold_at = 8 * MIB
            via = replace(a.peer, address=line.address)
            fetching = asyncio.create_task(fetch(tls, [via], xfs_dir / "staging"))
            await line.held.wait()
            await a.engine.delete_image(KEY)
            line.release()
            record = await fetching
        assert peers.sha512(Path(record.artifact_path)) == sent.checksum
        with pytest.raises(Unavailable, match="none of them has it"):
            await fetch(tls, [a.peer], xfs_dir / "again")


async def test_a_wrong_checksum_drops_the_bytes_and_the_next_peer_is_asked(
    xfs_dir: Path, asked: list[tuple[str, int]]
) -> None:
    source = sparse_file(xfs_dir / "source", 4 * MIB, [(0, 4 * MIB)])
    rotten = xfs_dir / "rotten"
    content = bytearray(source.read_bytes())
    content[3 * MIB] ^= 1
    rotten.write_bytes(content)
    tls, good = Tls(), peers.sha512(source)
    async with node(xfs_dir / "a", tls) as a, node(xfs_dir / "b", tls) as b:
        await keep(a.engine, rotten, rotten, checksum=good)
        await keep(b.engine, source, source)
        record = await fetch(tls, [a.peer, b.peer], xfs_dir / "staging", checksum=good)
        assert Path(record.artifact_path).read_bytes() == source.read_bytes()
        assert asked == [("a", 0), ("b", 0)]
        for expected in (good, ""):
            with pytest.raises(ChecksumMismatch) as raised:
                await fetch(tls, [a.peer], xfs_dir / "alone", checksum=expected)
            assert raised.value.expected == good
            assert raised.value.actual == peers.sha512(rotten)
            assert list((xfs_dir / "alone").iterdir()) == []


async def test_bytes_of_two_peers_that_are_wrong_together_are_taken_from_each_alone(
    xfs_dir: Path, asked: list[tuple[str, int]]
) -> None:
    source = sparse_file(xfs_dir / "source", 40 * MIB, [(0, 40 * MIB)])
    rotten = xfs_dir / "rotten"
    content = bytearray(source.read_bytes())
    content[38 * MIB] ^= 1
    rotten.write_bytes(content)
    tls = Tls()
    async with node(xfs_dir / "a", tls) as a, node(xfs_dir / "b", tls) as b:
        sent = await keep(a.engine, source, source)
        await keep(b.engine, rotten, rotten, checksum=sent.checksum)
        async with proxy(a.peer.address) as line:
            line.break_at = 17 * MIB
            line.heals = True
            honest = replace(a.peer, address=line.address)
            record = await fetch(tls, [honest, b.peer], xfs_dir / "staging")
    assert Path(record.artifact_path).read_bytes() == source.read_bytes()
    assert [name for name, _ in asked] == ["a", "b", "a"]
    assert asked[2][1] == 0


async def test_an_expected_checksum_that_a_peer_contradicts_costs_no_bytes(
    xfs_dir: Path, asked: list[tuple[str, int]]
) -> None:
    source = sparse_file(xfs_dir / "source", MIB, [(0, MIB)])
    tls = Tls()
    async with node(xfs_dir / "a", tls) as a:
        await keep(a.engine, source, source)
        with pytest.raises(ChecksumMismatch):
            await fetch(tls, [a.peer], xfs_dir / "staging", checksum="ab" * 64)
    assert asked == []


async def test_a_checksum_that_is_still_being_computed_is_waited_for(xfs_dir: Path) -> None:
    source = sparse_file(xfs_dir / "source", MIB, [(0, MIB)])
    tls = Tls()
    async with node(xfs_dir / "a", tls) as a:
        await keep(a.engine, source, source, checksum="")
        waiting = asyncio.Event()
        staging = xfs_dir / "staging"
        staging.mkdir()

        def report(progress: Progress) -> None:
            if progress.message.startswith("waiting for the sender's checksum"):
                waiting.set()

        fetching = asyncio.create_task(
            PeerFetcher("pool-1", tls, QUICK).fetch_image(KEY, [a.peer], "", staging, report)
        )
        await waiting.wait()
        await a.engine.record_checksum(KEY, peers.sha512(source))
        record = await fetching
    assert record.checksum == peers.sha512(source)


async def test_a_checksum_that_does_not_come_is_unavailable_and_the_bytes_stay(
    xfs_dir: Path, asked: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_transfer, "CHECKSUM_WAIT_S", 0.0)
    source = sparse_file(xfs_dir / "source", MIB, [(0, MIB)])
    tls = Tls()
    async with node(xfs_dir / "a", tls) as a:
        await keep(a.engine, source, source, checksum="")
        with pytest.raises(Unavailable, match="still being computed"):
            await fetch(tls, [a.peer], xfs_dir / "staging")
        await a.engine.record_checksum(KEY, peers.sha512(source))
        await fetch(tls, [a.peer], xfs_dir / "staging")
    assert asked == [("a", 0)]


async def test_a_snapshot_arrives_as_a_raw_image_with_the_senders_checksum(pool_dir: Path) -> None:
    tls = Tls()
    key = ImageKey("snapshot-content", "77")
    async with node(pool_dir / "a", tls) as a, node(pool_dir / "b", tls) as b:
        volume = await a.engine.create_volume("pvc-1", 64 * MIB, VolumeSource())
        sparse_file(Path(volume.path), 64 * MIB, [(0, MIB), (30 * MIB, 4096)])
        snapshot = await a.engine.create_snapshot("snapshot-1", "pvc-1")
        fetcher = PeerFetcher("pool-1", tls, QUICK)
        staging = await b.engine.staging_dir(key)
        record = await fetcher.fetch_snapshot(
            "snapshot-1", [b.peer, a.peer], key, staging, lambda progress: None
        )
        await b.engine.commit_image(record)
        source = VolumeSource(snapshot="snapshot-1")
        made = await b.engine.create_volume("pvc-2", 64 * MIB, source, content=key)
        assert record.checksum == peers.sha512(Path(snapshot.path)) == peers.sha512(Path(made.path))
        assert record.point_in_time == snapshot.point_in_time
        assert allocated_bytes(Path(made.path)) == allocated_bytes(Path(snapshot.path))
        with pytest.raises(NotFound, match="snapshot snapshot-2 not found"):
            await fetcher.fetch_snapshot(
                "snapshot-2", [a.peer, b.peer], key, pool_dir / "a", lambda progress: None
            )


async def test_a_full_pool_is_told_before_it_is_full_and_nothing_is_left(
    xfs_dir: Path, tmp_path: Path
) -> None:
    source = sparse_file(xfs_dir / "source", 12 * MIB, [(0, 12 * MIB)])
    small = tmp_path / "small"
    small.mkdir()
    await process.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", small], timeout_s=10)
    tls = Tls()
    try:
        async with node(xfs_dir / "a", tls) as a:
            await keep(a.engine, source, source)
            with pytest.raises(NoSpace, match=f"{12 * MIB} bytes\\) needed"):
                await fetch(tls, [a.peer], small / "staging")
            assert list((small / "staging").iterdir()) == []
    finally:
        await process.run(["umount", small], timeout_s=10)


async def test_a_pool_that_fills_up_meanwhile_is_told_and_nothing_is_left(
    xfs_dir: Path, tmp_path: Path
) -> None:
    source = sparse_file(xfs_dir / "source", 12 * MIB, [(0, 12 * MIB)])
    small = tmp_path / "small"
    small.mkdir()
    await process.run(["mount", "-t", "tmpfs", "-o", "size=14m", "tmpfs", small], timeout_s=10)
    tls = Tls()
    try:
        async with node(xfs_dir / "a", tls) as a:
            await keep(a.engine, source, source)
            async with proxy(a.peer.address) as line:
                line.hold_at = 4 * MIB
                via = replace(a.peer, address=line.address)
                fetching = asyncio.create_task(fetch(tls, [via], small / "staging"))
                await line.held.wait()
                (small / "other").write_bytes(bytes(8 * MIB))
                line.release()
                with pytest.raises(NoSpace):
                    await fetching
            assert list((small / "staging").iterdir()) == []
    finally:
        await process.run(["umount", small], timeout_s=10)


async def test_ten_fetches_at_once_wait_for_their_turn_and_all_arrive(xfs_dir: Path) -> None:
    source = sparse_file(xfs_dir / "source", 20 * MIB, [(0, 12 * MIB)])
    tls = Tls()
    patient = RetryPolicy(attempts=500, delay_s=0.01, delay_s_max=0.05)
    async with node(xfs_dir / "a", tls, streams_max=2) as a:
        await keep(a.engine, source, source)
        records = await asyncio.gather(
            *(
                fetch(tls, [a.peer], xfs_dir / f"staging-{number}", retry=patient)
                for number in range(10)
            )
        )
    assert {peers.sha512(Path(record.artifact_path)) for record in records} == {
        peers.sha512(source)
    }


async def test_a_peer_whose_streams_are_taken_sends_to_another_one(
    xfs_dir: Path, asked: list[tuple[str, int]]
) -> None:
    source = sparse_file(xfs_dir / "source", 40 * MIB, [(0, 40 * MIB)])
    tls = Tls()
    async with node(xfs_dir / "a", tls, streams_max=1) as a, node(xfs_dir / "b", tls) as b:
        await keep(a.engine, source, source)
        await keep(b.engine, source, source)
        async with proxy(a.peer.address) as line:
            line.hold_at = 2 * MIB
            slow = replace(a.peer, address=line.address)
            first = asyncio.create_task(fetch(tls, [slow], xfs_dir / "first"))
            await line.held.wait()
            with pytest.raises(Unavailable, match="answered 503: all streams are taken"):
                await fetch(tls, [a.peer], xfs_dir / "second")
            await fetch(tls, [a.peer, b.peer], xfs_dir / "second")
            line.release()
            await first
    assert asked[-1][0] == "b"


async def test_nothing_but_what_is_committed_can_be_had(xfs_dir: Path) -> None:
    source = sparse_file(xfs_dir / "source", MIB, [(0, MIB)])
    tls = Tls()
    async with node(xfs_dir / "a", tls) as a, PeerClient(tls) as client:
        staging = await a.engine.staging_dir(KEY)
        peers.clone(source, staging / "artifact")
        (xfs_dir / "a" / "images" / "image.json").write_text("{}")
        for path in (
            peer_wire.image_path(KEY),
            peer_wire.image_path(ImageKey("..", "images")),
            peer_wire.image_path(ImageKey("../../a", "images")),
            peer_wire.image_path(ImageKey("golden", "../golden/1f0c")),
            peer_wire.snapshot_path("../images"),
            "/v1/images/..%2f..%2fetc/passwd",
            "/v1/images/../../../../etc/passwd",
            "/v1",
        ):
            with pytest.raises(PeerLacks):
                await client.describe(a.peer, path)
            with pytest.raises(PeerLacks):
                async with client.stream(a.peer, path, offset_bytes=0):
                    pass


async def test_an_offset_behind_the_end_is_refused(xfs_dir: Path) -> None:
    source = sparse_file(xfs_dir / "source", MIB, [(0, MIB)])
    tls = Tls()
    async with node(xfs_dir / "a", tls) as a, PeerClient(tls) as client:
        await keep(a.engine, source, source)
        with pytest.raises(PeerTroubled, match="answered 416"):
            async with client.stream(a.peer, peer_wire.image_path(KEY), offset_bytes=MIB + 1):
                pass


async def test_a_process_killed_at_any_time_goes_on_at_its_last_checkpoint(
    xfs_dir: Path, tmp_path: Path
) -> None:
    source = sparse_file(xfs_dir / "source", 64 * MIB, [(0, 64 * MIB)])
    staging, tls = xfs_dir / "staging", Tls()
    staging.mkdir()
    (tmp_path / "leaf.json").write_text(json.dumps(dataclasses.asdict(tls.leaf)))
    async with node(xfs_dir / "a", tls) as a:
        sent = await keep(a.engine, source, source)
        async with proxy(a.peer.address) as line:
            durable = 0
            for kill in range(6):
                # Some in the middle of things, some when a checkpoint was made.
                line.hold_at = line.received + random.Random(kill).randint(5 * MIB, 8 * MIB)
                line.held.clear()
                child = await asyncio.create_subprocess_exec(
                    *(sys.executable, str(Path(peers.__file__).with_name("peer_receiver.py"))),
                    *(str(tmp_path / "leaf.json"), line.address, str(staging)),
                )
                async with asyncio.timeout(60):
                    await line.held.wait()
                    while kill % 2 and _durable_bytes(staging) <= durable:  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
                child.send_signal(signal.SIGKILL)
                await child.wait()
                line.release()
                assert _durable_bytes(staging) >= durable
                durable = _durable_bytes(staging)
                assert (staging / "artifact").stat().st_size >= durable
            before = line.received
            via = replace(a.peer, address=line.address)
            record = await fetch(tls, [via], staging)
            resent = line.received - before
    assert durable >= 6 * MIB
    assert resent < 64 * MIB - durable + MIB // 2
    assert record.checksum == sent.checksum
    assert Path(record.artifact_path).read_bytes() == source.read_bytes()


async def test_memory_does_not_grow_with_the_image(xfs_dir: Path) -> None:
    """Both ends in this process; the receiver's disk is the slower part."""
    source = sparse_file(xfs_dir / "source", 160 * MIB, [(0, 160 * MIB)])
    tls = Tls()
    async with node(xfs_dir / "a", tls) as a:
        await keep(a.engine, source, source)
        small = sparse_file(xfs_dir / "small", 24 * MIB, [(0, 24 * MIB)])
        await keep(a.engine, small, small, key=ImageKey("small", "1"))
        await fetch(tls, [a.peer], xfs_dir / "first", key=ImageKey("small", "1"))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        await fetch(tls, [a.peer], xfs_dir / "second")
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown << 10 < 48 * MIB


class _Enough(Exception):
    """The position that was waited for."""


async def _position_reached(tls: Tls, peer: Peer, position: int) -> None:
    """Decode a stream up to `position` and leave it; nothing is written or hashed."""
    path = peer_wire.image_path(KEY)
    async with PeerClient(tls) as client:
        said = await client.describe(peer, path)
        decoder = peer_wire.FrameDecoder(offset_bytes=0, size_bytes=said.size_bytes)
        async with client.stream(peer, path, offset_bytes=0) as pieces:
            async for piece in pieces:
                for _ in decoder.feed(piece):
                    if decoder.position >= position:
                        raise _Enough


def _durable_bytes(staging: Path) -> int:
    try:
        return int(json.loads((staging / JOURNAL_NAME).read_bytes())["durable_bytes"])
    except FileNotFoundError:
        return 0


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Every stream that is asked for: the peer's node, and the first byte."""
    found: list[tuple[str, int]] = []
    original = PeerClient.stream

    def stream(self: PeerClient, peer: Peer, path: str, *, offset_bytes: int) -> object:
        found.append((peer.node_id, offset_bytes))
        return original(self, peer, path, offset_bytes=offset_bytes)

    monkeypatch.setattr(PeerClient, "stream", stream)
    return found
