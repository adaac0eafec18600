"""Bytes into and out of a pool: resumed at any byte, judged at the end, read in every form.

The image copy reconciler is the real one, over a real pool: what is sent ends as a ready copy.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import random
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import zstandard
from tests.integration.bytes_host import (
    DATA,
    KEY,
    MIB,
    Host,
    broken,
    host_in,
    pieces,
    then_silence,
)

from shorthorn.domain import errors, names
from shorthorn.domain.image_bytes import VERIFY_AT, ArtifactForm, UploadState
from shorthorn.domain.models import CopyState, ImageCopy, ImageCopySpec, ImageKey, Meta
from shorthorn.host import extents
from shorthorn.images.uploads import JOURNAL_NAME
from shorthorn.kit import process

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.root


async def test_what_is_sent_becomes_an_image(pool_dir: Path) -> None:
    checksum = hashlib.sha512(DATA).hexdigest()
    async with host_in(pool_dir) as host:
        await host.begin(len(DATA), checksum)
        assert await host.bytes.upload_state(KEY.name) == UploadState(0, len(DATA))
        state = await host.bytes.append(KEY.name, 0, pieces(DATA))
        assert state.is_complete
        copy = await host.ended()
        assert copy.status.state is CopyState.READY, copy.status
        assert copy.status.checksum == checksum
        assert await host.bytes.upload_state(KEY.name) == state
        assert await host.read(ArtifactForm.ARTIFACT) == DATA
        assert host.staged() == []


async def test_many_small_requests_and_restarts_make_the_same_image(xfs_dir: Path) -> None:
    async with host_in(xfs_dir) as first:
        await first.begin(len(DATA))
        host = first
        source = random.Random(1)
        offset = 0
        for number in range(20):
            end = len(DATA) if number == 19 else min(len(DATA), offset + source.randrange(900_000))
            state = await host.bytes.append(KEY.name, offset, pieces(DATA[offset:end], 70_001))
            assert state.offset_bytes == end
            offset = end
            if number in (5, 12):
                host = await host.again()
                await host.awaited()
                assert await host.bytes.upload_state(KEY.name) == UploadState(offset, len(DATA))
        copy = await host.ended()
        assert copy.status.checksum == hashlib.sha512(DATA).hexdigest()
        await host.close()


async def test_what_came_before_a_break_is_kept_and_another_offset_is_refused(
    xfs_dir: Path,
) -> None:
    async with host_in(xfs_dir) as host:
        await host.begin(len(DATA))
        with pytest.raises(ConnectionResetError):
            await host.bytes.append(KEY.name, 0, broken(DATA[:12345]))
        with pytest.raises(errors.OffsetMismatch) as raised:
            await host.bytes.append(KEY.name, 99, pieces(b"x"))
        assert raised.value.offset_bytes == 12345
        await host.bytes.append(KEY.name, 12345, pieces(DATA[12345:]))
        assert (await host.ended()).status.checksum == hashlib.sha512(DATA).hexdigest()


@pytest.mark.parametrize("first", [0, 1000])
async def test_more_than_was_promised_is_refused_and_makes_no_image(
    xfs_dir: Path, first: int
) -> None:
    async with host_in(xfs_dir) as host:
        await host.begin(1024)
        await host.bytes.append(KEY.name, 0, pieces(bytes(first)))
        with pytest.raises(errors.SizeOutOfRange):
            await host.bytes.append(KEY.name, first, pieces(bytes(1025 - first), 1024 - first))
        assert await host.bytes.upload_state(KEY.name) == UploadState(first, 1024)


async def test_of_two_connections_one_is_refused_and_a_silent_one_makes_room(
    xfs_dir: Path,
) -> None:
    async with host_in(xfs_dir) as host:
        await host.begin(len(DATA))
        sent = asyncio.Event()
        old = asyncio.create_task(host.bytes.append(KEY.name, 0, then_silence(DATA[:1000], sent)))
        await sent.wait()
        with pytest.raises(errors.InUse):
            await host.bytes.append(KEY.name, 0, pieces(DATA))
        host.uploads._stale_s = 0  # as if the time had passed
        state = await host.bytes.append(KEY.name, 1000, pieces(DATA[1000:]))
        assert state.is_complete
        with pytest.raises(errors.Unavailable, match="took over"):
            await old


async def test_an_image_deleted_while_it_is_sent_leaves_nothing(xfs_dir: Path) -> None:
    async with host_in(xfs_dir) as host:
        await host.begin(len(DATA))
        sent = asyncio.Event()
        sending = asyncio.create_task(
            host.bytes.append(KEY.name, 0, then_silence(DATA[:1000], sent))
        )
        await sent.wait()
        await host.copies.delete(host.name)
        await host.reconciler.reconcile(host.name)
        with pytest.raises(errors.NotFound):
            await sending
        assert host.staged() == []


@pytest.mark.parametrize(
    ("content", "checksum", "reason"),
    [
        pytest.param(DATA, "ab" * 64, "ChecksumMismatch", id="another-checksum"),
        pytest.param(b"KDMV" + bytes(MIB), "", "ImageRejected", id="vmdk"),
        pytest.param(b"\x1f\x8b" + bytes(MIB), "", "ImageRejected", id="gzip"),
    ],
)
async def test_what_is_no_image_fails_and_leaves_nothing(
    xfs_dir: Path, content: bytes, checksum: str, reason: str
) -> None:
    async with host_in(xfs_dir) as host:
        await host.begin(len(content), checksum)
        with contextlib.suppress(errors.ImageRejected):
            await host.bytes.append(KEY.name, 0, pieces(content))
        copy = await host.ended()
        assert (copy.status.state, copy.status.reason) == (CopyState.FAILED, reason)
        assert host.staged() == []


async def test_a_full_pool_says_so(xfs_dir: Path) -> None:
    async with host_in(xfs_dir) as host:
        await host.begin(2 << 30)
        block = random.Random(3).randbytes(MIB)

        async def too_much() -> AsyncIterator[bytes]:
            for _ in range(2 << 10):
                yield block

        with pytest.raises(errors.NoSpace):
            await host.bytes.append(KEY.name, 0, too_much())
        assert (await host.ended()).status.reason == "NoSpace"
        assert host.staged() == []


async def test_an_upload_of_which_nothing_comes_fails_after_a_day(xfs_dir: Path) -> None:
    async with host_in(xfs_dir) as host:
        await host.begin(1024)
        journal = next(xfs_dir.glob(f"staging/images/*/*/{JOURNAL_NAME}"))
        text = journal.read_text()
        year = text[text.index("20") : text.index("20") + 4]
        journal.write_text(text.replace(year, str(int(year) - 1), 1))
        later = await host.again()
        copy = await later.ended()
        assert copy.status.reason == "BackingImageFailed"
        assert "24 hours" in copy.status.message
        assert later.staged() == []
        await later.close()


async def test_an_upload_can_be_given_up(xfs_dir: Path) -> None:
    async with host_in(xfs_dir) as host:
        await host.begin(1024)
        await host.bytes.abandon(KEY.name)
        assert (await host.ended()).status.state is CopyState.FAILED
        with pytest.raises(errors.NotFound):
            await host.bytes.upload_state(KEY.name)
        assert host.staged() == []


async def _sent(host: Host, data: bytes) -> None:
    await host.begin(len(data))
    await host.bytes.append(KEY.name, 0, pieces(data))
    assert (await host.ended()).status.state is CopyState.READY


async def test_every_form_holds_the_same_disk(pool_dir: Path, tmp_path: Path) -> None:
    data = DATA + bytes(100)  # no whole sectors: padded for guests
    disk = data + bytes(-len(data) % 512)
    async with host_in(pool_dir) as host:
        await _sent(host, data)
        assert (await host.bytes.describe(KEY.name, ArtifactForm.RAW)).size_bytes == len(disk)
        assert await host.read(ArtifactForm.ARTIFACT) == data
        assert await host.read(ArtifactForm.ARTIFACT, start=7, stop=3 * MIB) == data[7 : 3 * MIB]
        assert await host.read(ArtifactForm.RAW) == disk
        assert await host.read(ArtifactForm.RAW, start=len(disk)) == b""
        packed = await host.read(ArtifactForm.RAW_ZST)
        assert zstandard.ZstdDecompressor().decompressobj().decompress(packed) == disk
        async with host.bytes.read(KEY.name, ArtifactForm.QCOW2) as opened:
            image = b"".join([chunk async for chunk in opened.chunks])
            assert opened.artifact.size_bytes == len(image)
        assert host.staged() == []
    (tmp_path / "got.qcow2").write_bytes(image)
    await process.run(
        ["qemu-img", "convert", "-O", "raw", tmp_path / "got.qcow2", tmp_path / "got.raw"],
        timeout_s=30,
    )
    assert (tmp_path / "got.raw").read_bytes() == disk


@pytest.mark.parametrize("form", list(ArtifactForm))
async def test_a_reader_of_a_deleted_image_reads_it_whole(
    xfs_dir: Path, form: ArtifactForm
) -> None:
    async with host_in(xfs_dir) as host:
        await _sent(host, DATA)
        whole = await host.read(form)
        async with host.bytes.read(KEY.name, form) as opened:
            first = await anext(opened.chunks)
            await host.copies.delete(host.name)
            await host.reconciler.reconcile(host.name)
            rest = [chunk async for chunk in opened.chunks]
        if form is not ArtifactForm.QCOW2:  # which need not be the same bytes each time
            assert b"".join([first, *rest]) == whole
        assert host.staged() == []
        with pytest.raises(errors.NotFound):
            await host.bytes.describe(KEY.name, form)


async def test_ranges_beyond_the_end_or_of_a_stream_are_refused(xfs_dir: Path) -> None:
    async with host_in(xfs_dir) as host:
        await _sent(host, DATA)
        with pytest.raises(errors.SizeOutOfRange):
            await host.read(ArtifactForm.ARTIFACT, start=len(DATA) + 1)
        with pytest.raises(errors.InvalidArgument):
            await host.read(ArtifactForm.RAW_ZST, start=1)


async def test_a_conversion_that_nobody_waits_for_is_ended(xfs_dir: Path) -> None:
    async with host_in(xfs_dir) as host:
        await _sent(host, random.Random(9).randbytes(64 * MIB))
        reading = asyncio.create_task(host.read(ArtifactForm.QCOW2))
        while not host.staged():  # noqa: ASYNC110 - a tool's file, which tells nobody
            await asyncio.sleep(0.001)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert host.staged() == []


async def test_a_clone_shares_all_blocks_of_its_origin(xfs_dir: Path) -> None:
    async with host_in(xfs_dir) as host:
        await _sent(host, DATA)
        origin = await host.engine.find_image(KEY)
        assert origin is not None
        parameters = {"backing-image": KEY.name, "uuid": KEY.uuid}
        spec = ImageCopySpec(
            "second", "2b", "n", host.engine.pool_uuid, "clone", parameters, origin.checksum
        )
        name = names.copy_name("second", host.engine.pool_uuid)
        await host.copies.create(ImageCopy(Meta(name), spec))
        async with asyncio.timeout(30):
            while (copy := await host.copies.find(name)) and not copy.status.checksum:
                await host.reconciler.reconcile(name)
                await asyncio.sleep(0.005)
        clone = await host.engine.find_image(ImageKey("second", "2b"))
        assert clone is not None
        assert clone.checksum == origin.checksum
        shared = await extents.shared_with(Path(origin.base_path), Path(clone.base_path))
        assert shared == 6 * MIB
        async with host.bytes.read("second", ArtifactForm.ARTIFACT) as opened:
            assert b"".join([chunk async for chunk in opened.chunks]) == DATA


async def _says(host: Host, message: str) -> None:
    """Reconcile until the copy says so."""
    async with asyncio.timeout(30):
        while (copy := await host.copies.find(host.name)) and copy.status.message != message:
            await host.reconciler.reconcile(host.name)
            await asyncio.sleep(0.002)


async def test_an_upload_says_in_sizes_for_people_how_far_it_is(xfs_dir: Path) -> None:
    async with host_in(xfs_dir) as host:
        await host.begin(700 * MIB)
        await _says(host, "waiting for bytes, 0 of 700 MiB")
        await host.bytes.append(KEY.name, 0, pieces(bytes(3 * MIB // 2)))
        again = await host.again()  # where nobody sends, it tells at once where it goes on
        await _says(again, "waiting for bytes, 1.5 MiB of 700 MiB")
        await again.close()


async def _verified(host: Host, value: str) -> ImageCopy:
    """Ask for a verification, and reconcile until it has been carried out."""
    copy = await host.copies.find(host.name)
    assert copy is not None
    meta = dataclasses.replace(copy.meta, annotations={VERIFY_AT: value})
    await host.copies.update(dataclasses.replace(copy, meta=meta))
    async with asyncio.timeout(30):
        while copy.status.verify_at != value:
            await host.reconciler.reconcile(host.name)
            await asyncio.sleep(0.002)
            found = await host.copies.find(host.name)
            assert found is not None
            copy = found
    return copy


async def test_damage_on_the_disk_is_found_when_it_is_looked_for(pool_dir: Path) -> None:
    async with host_in(pool_dir) as host:
        await _sent(host, DATA)
        assert (await _verified(host, "t1")).status.state is CopyState.READY
        record = await host.engine.find_image(KEY)
        assert record is not None
        with Path(record.artifact_path).open("r+b") as file:
            file.seek(4 * MIB)
            file.write(b"\0")
        condemned = await _verified(host, "t2")
        assert (condemned.status.state, condemned.status.reason) == (CopyState.FAILED, "Corrupt")
        assert record.checksum in condemned.status.message
        again = await host.again()
        for _ in range(3):
            await again.reconciler.reconcile(again.name)
        assert await again.copies.find(again.name) == condemned
        with pytest.raises(errors.NotFound, match="damaged"):
            await again.read(ArtifactForm.RAW)
        await again.close()


@pytest.mark.parametrize("delay_ms", [30, 120, 300])
async def test_a_killed_process_leaves_an_upload_that_goes_on(xfs_dir: Path, delay_ms: int) -> None:
    """The sender dies at any moment; what its journal says is durable is right."""
    length = 64 * MIB
    data = random.Random(length).randbytes(length)
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.integration.upload_crasher"),
        *(str(xfs_dir), str(length), str(delay_ms / 1000)),
        cwd=Path(__file__).parents[2],
    )
    assert await child.wait() == -signal.SIGALRM
    async with host_in(xfs_dir) as host:
        await host.begin(length, hashlib.sha512(data).hexdigest())
        state = await host.bytes.upload_state(KEY.name)
        if not state.is_complete:  # it may have been killed after its commit
            offset = state.offset_bytes
            await host.bytes.append(KEY.name, offset, pieces(data[offset:], MIB))
        copy = await host.ended()
        assert copy.status.state is CopyState.READY, copy.status
        assert copy.status.checksum == hashlib.sha512(data).hexdigest()
