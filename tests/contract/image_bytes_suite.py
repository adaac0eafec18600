"""What moves image bytes promises, as tests: the obligations of `domain.image_bytes.ImageBytes`.

A test module subclasses `ImageBytesSuite` and gives it a fixture `host`: an open pool whose `bytes`
is what is tested. Where it lies, on this host or behind a network, nobody can tell from here.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
from typing import TYPE_CHECKING

import pytest
import zstandard
from tests.integration.bytes_host import DATA, KEY, MIB, Host, broken, pieces, then_silence

from shorthorn.domain import errors
from shorthorn.domain.image_bytes import ArtifactForm, UploadState
from shorthorn.domain.models import CopyState
from shorthorn.domain.upload_sample import sample_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

EVERY_FORM = [pytest.param(form, id=form.value) for form in ArtifactForm]


async def sent(host: Host, data: bytes = DATA) -> None:
    """Make an image of `data`."""
    await host.begin(len(data))
    await host.bytes.append(KEY.name, 0, pieces(data))
    assert (await host.ended()).status.state is CopyState.READY


async def nobody_sends(host: Host) -> None:
    """Return when the node has noticed that a connection has gone."""
    async with asyncio.timeout(60):
        while host.uploads._open[KEY].turn.locked():  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.002)


def _has_taken(host: Host, count: int) -> bool:
    writer = host.uploads._open[KEY]._writer
    return writer is not None and writer.position >= count


class ImageBytesSuite:
    """Run by every implementation."""

    async def test_what_is_sent_is_what_is_read(self, host: Host) -> None:
        checksum = hashlib.sha512(DATA).hexdigest()
        await host.begin(len(DATA), checksum)
        assert await host.bytes.upload_state(KEY.name) == UploadState(0, len(DATA))
        done = await host.bytes.append(KEY.name, 0, pieces(DATA))
        assert done == UploadState(len(DATA), len(DATA))
        assert (await host.ended()).status.state is CopyState.READY
        assert await host.bytes.upload_state(KEY.name) == done
        assert await host.read(ArtifactForm.ARTIFACT) == DATA
        artifact = await host.bytes.describe(KEY.name, ArtifactForm.ARTIFACT)
        assert (artifact.size_bytes, artifact.etag) == (len(DATA), checksum)
        assert artifact.file_name == "golden.raw"
        raw = await host.bytes.describe(KEY.name, ArtifactForm.RAW)
        assert (raw.etag, raw.file_name) == (f"{checksum}-raw", "golden.raw")

    async def test_parts_are_exactly_those_that_were_asked_for(self, host: Host) -> None:
        await sent(host)
        for start, stop in [(0, 1), (7, 3 * MIB), (5 * MIB - 1, None), (9, 9), (len(DATA), None)]:
            for form in (ArtifactForm.ARTIFACT, ArtifactForm.RAW):
                assert await host.read(form, start=start, stop=stop) == DATA[start:stop]

    async def test_every_form_holds_the_same_disk(self, host: Host) -> None:
        data = DATA + bytes(100)  # no whole sectors: padded for guests
        disk = data + bytes(-len(data) % 512)
        await sent(host, data)
        assert await host.read(ArtifactForm.RAW) == disk
        packed = await host.read(ArtifactForm.RAW_ZST)
        assert zstandard.ZstdDecompressor().decompressobj().decompress(packed) == disk
        async with host.bytes.read(KEY.name, ArtifactForm.QCOW2) as opened:
            image = b"".join([chunk async for chunk in opened.chunks])
            assert opened.artifact.size_bytes == len(image)
        assert image[:4] == b"QFI\xfb"
        async with asyncio.timeout(60):
            while host.staged():  # noqa: ASYNC110 - removed when the node sees that we are done
                await asyncio.sleep(0.002)

    @pytest.mark.parametrize("form", EVERY_FORM)
    async def test_what_is_described_is_what_is_read(self, host: Host, form: ArtifactForm) -> None:
        await sent(host)
        told = await host.bytes.describe(KEY.name, form)
        async with host.bytes.read(KEY.name, form) as opened:
            assert opened.artifact.file_name == told.file_name
            assert opened.artifact.etag == told.etag
            if told.size_bytes is not None:
                assert opened.artifact.size_bytes == told.size_bytes

    async def test_no_chunk_is_larger_than_was_promised(self, host: Host) -> None:
        await sent(host)
        async with host.bytes.read(KEY.name, ArtifactForm.ARTIFACT) as opened:
            assert max([len(chunk) async for chunk in opened.chunks]) <= MIB

    async def test_what_has_arrived_is_told_apart_from_another_file(self, host: Host) -> None:
        await host.begin(len(DATA))
        assert (await host.bytes.upload_state(KEY.name)).sample == ""
        for end in (10, 3 * MIB, len(DATA) - 1):
            at = (await host.bytes.upload_state(KEY.name)).offset_bytes
            with pytest.raises(ConnectionResetError):
                await host.bytes.append(KEY.name, at, broken(DATA[at:end]))
            told = (await host.bytes.upload_state(KEY.name)).sample
            assert told == sample_of(lambda count, start: DATA[start : start + count], end)

    async def test_an_upload_goes_on_where_it_was_and_nowhere_else(self, host: Host) -> None:
        await host.begin(len(DATA))
        with pytest.raises(ConnectionResetError, match="the client went away"):
            await host.bytes.append(KEY.name, 0, broken(DATA[:12345]))
        assert await host.bytes.upload_state(KEY.name) == UploadState(12345, len(DATA))
        with pytest.raises(errors.OffsetMismatch) as raised:
            await host.bytes.append(KEY.name, 99, pieces(DATA[99:]))
        assert (raised.value.offset_bytes, raised.value.asked_bytes) == (12345, 99)
        await host.bytes.append(KEY.name, 12345, pieces(DATA[12345:]))
        assert (await host.ended()).status.checksum == hashlib.sha512(DATA).hexdigest()

    async def test_empty_chunks_are_no_end(self, host: Host) -> None:
        async def with_gaps() -> AsyncIterator[bytes]:
            for piece in (b"", DATA[:1000], b"", b"", DATA[1000:2000], b""):
                yield piece

        await host.begin(2000)
        assert (await host.bytes.append(KEY.name, 0, with_gaps())).is_complete

    async def test_a_second_connection_is_refused(self, host: Host) -> None:
        await host.begin(len(DATA))
        begun = asyncio.Event()
        old = asyncio.create_task(host.bytes.append(KEY.name, 0, then_silence(DATA[:9], begun)))
        await begun.wait()
        async with asyncio.timeout(60):
            while not host.uploads._open[KEY].is_sending:  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.002)
        with pytest.raises(errors.InUse):
            await host.bytes.append(KEY.name, 0, pieces(DATA))
        old.cancel()
        with pytest.raises(asyncio.CancelledError):
            await old

    async def test_who_is_cancelled_has_sent_what_arrived(self, host: Host) -> None:
        await host.begin(len(DATA))
        begun = asyncio.Event()
        sending = asyncio.create_task(
            host.bytes.append(KEY.name, 0, then_silence(DATA[:1000], begun))
        )
        await begun.wait()
        async with asyncio.timeout(60):
            while not _has_taken(host, 1000):  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.002)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        await nobody_sends(host)
        assert await host.bytes.upload_state(KEY.name) == UploadState(1000, len(DATA))
        assert (await host.bytes.append(KEY.name, 1000, pieces(DATA[1000:]))).is_complete

    async def test_more_than_was_promised_is_refused(self, host: Host) -> None:
        await host.begin(1024)
        with pytest.raises(errors.SizeOutOfRange) as raised:
            await host.bytes.append(KEY.name, 0, pieces(bytes(1 << 20), 1024))
        assert raised.value.maximum_bytes == 1024

    async def test_what_is_no_image_is_refused(self, host: Host) -> None:
        content = b"KDMV" + random.Random(1).randbytes(4 * MIB)
        await host.begin(len(content))
        with pytest.raises(errors.ImageRejected, match=r"(?i)vmdk"):
            await host.bytes.append(KEY.name, 0, pieces(content))
        assert (await host.ended()).status.reason == "ImageRejected"

    async def test_a_full_pool_says_so(self, host: Host) -> None:
        await host.begin(2 << 30)
        block = random.Random(3).randbytes(MIB)

        async def too_much() -> AsyncIterator[bytes]:
            for _ in range(2 << 10):
                yield block

        with pytest.raises(errors.NoSpace) as raised:
            await host.bytes.append(KEY.name, 0, too_much())
        assert raised.value.pool == "pool-1"
        assert (await host.ended()).status.reason == "NoSpace"

    async def test_an_upload_can_be_given_up(self, host: Host) -> None:
        await host.begin(1024)
        await host.bytes.abandon(KEY.name)
        assert (await host.ended()).status.state is CopyState.FAILED
        with pytest.raises(errors.NotFound):
            await host.bytes.upload_state(KEY.name)
        with pytest.raises(errors.NotFound):
            await host.bytes.append(KEY.name, 0, pieces(bytes(1024)))

    @pytest.mark.parametrize("is_begun", [False, True], ids=["no copy", "awaits bytes"])
    async def test_there_is_nothing_to_read_before_it_is_ready(
        self, host: Host, is_begun: bool
    ) -> None:
        if is_begun:
            await host.begin(1024)
        else:
            with pytest.raises(errors.NotFound):
                await host.bytes.upload_state(KEY.name)
            with pytest.raises(errors.NotFound):
                await host.bytes.abandon(KEY.name)
        for form in ArtifactForm:
            with pytest.raises(errors.NotFound):
                await host.bytes.describe(KEY.name, form)
            with pytest.raises(errors.NotFound):
                await host.read(form)

    async def test_bytes_that_were_not_sent_to_us_await_none(self, host: Host) -> None:
        await sent(host)
        with pytest.raises(errors.NotFound):
            await host.bytes.append(KEY.name, len(DATA), pieces(b"more"))
        with pytest.raises(errors.NotFound):
            await host.bytes.abandon(KEY.name)

    async def test_ranges_beyond_the_end_or_of_a_stream_are_refused(self, host: Host) -> None:
        await sent(host)
        with pytest.raises(errors.SizeOutOfRange) as raised:
            await host.read(ArtifactForm.ARTIFACT, start=len(DATA) + 1)
        assert raised.value.maximum_bytes == len(DATA)
        with pytest.raises(errors.SizeOutOfRange):
            await host.read(ArtifactForm.RAW, stop=len(DATA) + 1)
        with pytest.raises(errors.InvalidArgument) as refused:
            await host.read(ArtifactForm.RAW_ZST, start=1)
        assert refused.value.field == "range"

    async def test_who_leaves_early_frees_everything(self, host: Host) -> None:
        await sent(host, random.Random(9).randbytes(64 * MIB))
        for _ in range(20):  # more than are served at once
            for form in (ArtifactForm.ARTIFACT, ArtifactForm.RAW_ZST):
                async with asyncio.timeout(60):
                    while True:
                        with contextlib.suppress(errors.Unavailable):
                            async with host.bytes.read(KEY.name, form) as opened:
                                assert await anext(opened.chunks)
                            break
                        await asyncio.sleep(0.01)

    @pytest.mark.parametrize("form", [ArtifactForm.ARTIFACT, ArtifactForm.RAW])
    async def test_a_reader_of_a_deleted_image_reads_it_whole(
        self, host: Host, form: ArtifactForm
    ) -> None:
        data = random.Random(9).randbytes(32 * MIB)
        await sent(host, data)
        async with host.bytes.read(KEY.name, form) as opened:
            first = await anext(opened.chunks)
            await host.copies.delete(host.name)
            await host.reconciler.reconcile(host.name)
            rest = [chunk async for chunk in opened.chunks]
        assert b"".join([first, *rest]) == data
        with pytest.raises(errors.NotFound):
            await host.bytes.describe(KEY.name, form)
