"""Peers with a good certificate that do not keep to the rules: told, bounded, and survived."""

from __future__ import annotations

import itertools
import json
import resource
from asyncio import timeout
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.lying_peer import GOOD, lying_peer
from tests.integration import peers
from tests.integration.peers import KEY, MIB, Tls, fetch, keep, node, sparse_file

from shorthorn.domain.errors import ChecksumMismatch, ImageRejected, Unavailable
from shorthorn.domain.models import Peer
from shorthorn.images.peer_wire import DESCRIPTION_BYTES_MAX, FrameKind, frame_header

DATA, HOLE, END = FrameKind.DATA, FrameKind.HOLE, FrameKind.END
PIECE = frame_header(DATA, MIB) + bytes(MIB)


def _endless() -> Iterable[bytes]:
    yield frame_header(DATA, MIB)
    yield from itertools.repeat(b"x" * MIB)


LIES = [
    pytest.param(lambda: [b"garbage" * 100], "sends something unknown at byte 0", id="garbage"),
    pytest.param(_endless, "sends something unknown at byte 1048576", id="endless"),
    pytest.param(lambda: itertools.repeat(PIECE), "of a file of 1048576", id="endless frames"),
    pytest.param(
        lambda: [frame_header(DATA, 2 * MIB), b"x" * MIB], "sends 2097152 bytes", id="too long"
    ),
    pytest.param(lambda: [frame_header(HOLE, 1 << 62)], "of a file of 1048576", id="huge hole"),
    pytest.param(lambda: [frame_header(HOLE, 1)] * 9, "sends 1 bytes", id="crumbs"),
    pytest.param(lambda: [frame_header(END, MIB)], "ends after 0 of 1048576", id="nothing"),
    pytest.param(list, "ended after 0 of 1048576", id="closed"),
    pytest.param(lambda: [PIECE], "at byte 1048576 of a file", id="no end"),
    pytest.param(
        lambda: [frame_header(HOLE, 4096), frame_header(END, 4096)],
        "ends after 4096 of 1048576",
        id="shorter than described",
    ),
]


@pytest.mark.parametrize(("body", "words"), LIES)
async def test_a_stream_that_breaks_the_rules_is_refused_with_what_it_did(
    tmp_path: Path, body: Callable[[], Iterable[bytes]], words: str
) -> None:
    tls = Tls()
    async with lying_peer(tls.contexts.server, body=body) as liar:
        with pytest.raises(Unavailable, match=words):
            await fetch(tls, [Peer("liar", "", liar.address)], tmp_path / "staging")
        sent = liar.sent
    artifact = tmp_path / "staging" / "artifact"
    assert artifact.stat().st_size <= MIB
    assert sent < 16 * MIB


@pytest.mark.root
@pytest.mark.parametrize(("body", "words"), LIES)
async def test_an_honest_peer_is_asked_after_a_liar_and_gives_it_all(
    xfs_dir: Path, body: Callable[[], Iterable[bytes]], words: str
) -> None:
    source = sparse_file(xfs_dir / "source", MIB, [(0, MIB)])
    tls, good = Tls(), peers.sha512(source)
    said = {"checksum": good}
    async with (
        node(xfs_dir / "a", tls) as a,
        lying_peer(tls.contexts.server, body=body, changes=said) as liar,
    ):
        await keep(a.engine, source, source)
        both = [Peer("liar", "", liar.address), a.peer]
        record = await fetch(tls, both, xfs_dir / "staging", checksum=good)
    assert Path(record.artifact_path).read_bytes() == source.read_bytes(), words


@pytest.mark.root
@pytest.mark.parametrize("is_expected", [True, False])
@pytest.mark.parametrize("body", [list, lambda: [frame_header(HOLE, MIB), b"?"]])
async def test_a_peer_that_lies_about_the_size_does_not_keep_the_others_out(
    xfs_dir: Path, body: Callable[[], Iterable[bytes]], is_expected: bool
) -> None:
    source = sparse_file(xfs_dir / "source", MIB, [(0, MIB)])
    tls, good = Tls(), peers.sha512(source)
    said = {"checksum": good, "sizeBytes": 3 * MIB, "virtualSizeBytes": 3 * MIB}
    async with (
        node(xfs_dir / "a", tls) as a,
        lying_peer(tls.contexts.server, body=body, changes=said) as liar,
    ):
        await keep(a.engine, source, source)
        first = Peer("liar", "", liar.address)
        with pytest.raises(Unavailable):
            await fetch(tls, [first], xfs_dir / "staging")
        checksum = good if is_expected else ""
        record = await fetch(tls, [first, a.peer], xfs_dir / "staging", checksum=checksum)
    assert Path(record.artifact_path).read_bytes() == source.read_bytes()


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"description": lambda: b"<html>"}, "cannot be read"),
        ({"description": lambda: b"{" * (DESCRIPTION_BYTES_MAX + 2)}, "without an end"),
        ({"changes": {"sizeBytes": 1 << 60, "virtualSizeBytes": 1 << 60}}, "says that it has"),
        ({"changes": {"checksum": "x"}}, "no SHA-512"),
        ({"changes": {"virtualSizeBytes": 1 << 21}}, "are a disk of 2097152"),
    ],
    ids=["html", "endless", "huge", "checksum", "sizes"],
)
async def test_a_description_that_makes_no_sense_is_refused(
    tmp_path: Path, said: dict[str, Any], words: str
) -> None:
    tls = Tls()
    async with lying_peer(tls.contexts.server, **said) as liar:
        with pytest.raises(Unavailable, match=f"liar .*{words}"):
            await fetch(tls, [Peer("liar", "", liar.address)], tmp_path / "staging")
    assert list((tmp_path / "staging").iterdir()) == []


async def test_a_peer_that_says_something_else_each_time_is_given_up(tmp_path: Path) -> None:
    tls, sizes = Tls(), itertools.count(1)

    def description() -> bytes:
        size = next(sizes) * 512
        changes = {"sizeBytes": size, "virtualSizeBytes": size, "dataBytes": 0}
        return json.dumps(GOOD | changes).encode()

    async with lying_peer(tls.contexts.server, description=description) as liar, timeout(30):
        with pytest.raises(Unavailable, match="has other bytes than those that are here"):
            await fetch(tls, [Peer("liar", "", liar.address)], tmp_path / "staging")


async def test_memory_stays_bounded_whatever_is_declared(tmp_path: Path) -> None:
    """A hole of 32 TiB is a number, and an endless frame is written as it comes."""
    tls, size = Tls(), 4 << 40
    said = {"sizeBytes": size, "virtualSizeBytes": size, "dataBytes": 0}

    def body() -> Iterable[bytes]:
        yield frame_header(HOLE, size - 96 * MIB)
        yield frame_header(DATA, 96 * MIB)
        yield from itertools.repeat(b"x" * MIB, 95)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with lying_peer(tls.contexts.server, changes=said, body=body) as liar:
        with pytest.raises(Unavailable):
            await fetch(tls, [Peer("liar", "", liar.address)], tmp_path / "staging")
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown << 10 < 64 * MIB
    assert (tmp_path / "staging" / "artifact").stat().st_size <= size


async def test_right_bytes_that_are_no_disk_as_described_are_rejected(tmp_path: Path) -> None:
    """Only its name says that it is qcow2; the checksum is right."""
    tls = Tls()
    checksum = "ab" * 64
    source = tmp_path / "source"
    source.write_bytes(bytes(MIB))
    checksum = peers.sha512(source)
    said = {"format": "qcow2", "checksum": checksum, "dataBytes": 0}
    body = [frame_header(HOLE, MIB) + frame_header(END, MIB)]
    async with lying_peer(tls.contexts.server, changes=said, body=lambda: body) as liar:
        with pytest.raises(ImageRejected, match="not qcow2"):
            await fetch(tls, [Peer("liar", "", liar.address)], tmp_path / "staging")
    assert list((tmp_path / "staging").iterdir()) == []


async def test_wrong_bytes_from_all_peers_are_a_mismatch(tmp_path: Path) -> None:
    tls = Tls()
    body = [frame_header(HOLE, MIB) + frame_header(END, MIB)]
    async with (
        lying_peer(tls.contexts.server, body=lambda: body) as one,
        lying_peer(tls.contexts.server, body=lambda: body) as other,
    ):
        both = [Peer("one", "", one.address), Peer("other", "", other.address)]
        with pytest.raises(ChecksumMismatch) as raised:
            await fetch(tls, both, tmp_path / "staging", key=KEY)
    assert raised.value.expected == GOOD["checksum"]
    assert list((tmp_path / "staging").iterdir()) == []
