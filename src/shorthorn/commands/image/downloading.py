"""`shorthorn image download`: an image becomes a file of this machine.

Owns: asking for what is missing, and the comparison at the end. Must never: leave a file of the
final name that is not complete. Killed at any line, the same command goes on. `app` puts the
commands together.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

import aiohttp

from shorthorn.commands.image.byte_client import (
    BLOCK_BYTES,
    ByteClient,
    Lost,
    Patience,
)
from shorthorn.commands.image.cluster import Cluster
from shorthorn.commands.image.part_file import Origin, Sink
from shorthorn.commands.image.progress import Meter
from shorthorn.domain import errors
from shorthorn.domain.image_bytes import ArtifactForm
from shorthorn.domain.models import BackingImage
from shorthorn.kube.resources import BACKING_IMAGE


class NotWritten(Exception):
    """What came could not be written: the disk is full, or nobody reads the pipe any more."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """What was written. `checksum` is empty where nothing was compared."""

    bytes_written: int
    checksum: str


async def download(
    cluster: Cluster,
    client: ByteClient,
    name: str,
    form: ArtifactForm,
    sink: Sink,
    *,
    retry_for_s: float,
    meter: Meter,
) -> Fetched:
    """Write an image, or what is missing of it, into `sink` and complete it.

    Raises: NotFound. WrongState: it is not ready. ChecksumMismatch: the bytes that came are not the
        image's; nothing of the final name is left. NotWritten, Refused, Lost.
    """
    image = BACKING_IMAGE.from_object(await cluster.image(name))
    if not image.is_ready:
        raise errors.WrongState("backing image", name, "not ready", "ready")
    sink.begin(Origin(image.status.uuid, form))
    patience = Patience(retry_for_s)
    while True:
        try:
            await _fetch(client, name, form, sink, meter, patience)
            break
        except Lost as exc:
            meter.say(f"connection lost ({exc}); going on soon")
            await patience.wait(exc)
    checksum = await _compare(cluster, image, form, sink)
    sink.commit()
    return Fetched(sink.offset, checksum)


async def _fetch(
    client: ByteClient, name: str, form: ArtifactForm, sink: Sink, meter: Meter, patience: Patience
) -> None:
    """Write what one connection gives. Raises: Lost: it ended too early; Refused."""
    headers = {}
    if sink.offset and form.has_ranges:
        headers["Range"] = f"bytes={sink.offset}-"
        if sink.etag:
            headers["If-Range"] = sink.etag
    elif sink.offset:
        sink.restart()
    async with client.open(name, form, headers) as answer:
        total = _place(answer, sink)
        meter.moved(sink.offset, total)
        if total is not None and sink.offset == total:
            sink.finish(total)
            return
        async for block in answer.content.iter_chunked(BLOCK_BYTES):
            await _write(sink, block)
            patience.moved()
            meter.moved(sink.offset)
    if total is not None and sink.offset != total:
        raise Lost(f"{sink.offset} of {total} bytes came")
    sink.finish(sink.offset)


async def _write(sink: Sink, block: bytes) -> None:
    """Write into the sink. Raises: NotWritten, which no lost connection is."""
    try:
        await asyncio.to_thread(sink.write, block)
    except OSError as exc:
        raise NotWritten(exc.strerror or str(exc)) from exc


def _place(answer: aiohttp.ClientResponse, sink: Sink) -> int | None:
    """Make the sink ready for what comes; return the length of the whole, None: unknown.

    Raises: Refused: it cannot be put together with what is there.
    """
    etag = answer.headers.get("ETag", "")
    if answer.status == 200:
        if sink.offset:
            sink.restart()
        sink.set_etag(etag)
        length = answer.headers.get("Content-Length", "")
        return int(length) if length.isdecimal() else None
    start, total = _content_range(answer.headers.get("Content-Range", ""))
    if answer.status == 416 and total is not None and total == sink.offset:
        return total
    if answer.status != 206 or start != sink.offset or (sink.etag and etag not in ("", sink.etag)):
        sink.restart()  # it is another image's, or longer than this one: begin anew
        raise Lost("what was there does not fit; beginning anew")
    return total


def _content_range(text: str) -> tuple[int | None, int | None]:
    """Return start and total of `bytes 0-9/10` and `bytes */10`."""
    unit, _, rest = text.partition(" ")
    span, _, total = rest.partition("/")
    start = span.partition("-")[0]
    if unit != "bytes":
        return None, None
    return (
        int(start) if start.isdecimal() else None,
        int(total) if total.isdecimal() else None,
    )


async def _compare(cluster: Cluster, image: BackingImage, form: ArtifactForm, sink: Sink) -> str:
    """Return the checksum that the file has and should have; empty where there is none to compare.

    Raises: ChecksumMismatch: then the part is removed, for nothing in it can be trusted.
    """
    if form is not ArtifactForm.ARTIFACT:
        return ""
    wanted = image.status.checksum
    if not wanted:  # of an export it may have become known meanwhile
        with contextlib.suppress(errors.NotFound):
            found = BACKING_IMAGE.from_object(await cluster.image(image.meta.name))
            wanted = found.status.checksum if found.status.uuid == image.status.uuid else ""
    own = await asyncio.to_thread(sink.checksum)
    if wanted and own != wanted:
        sink.discard()
        raise errors.ChecksumMismatch(image.meta.name, wanted, own)
    return own if wanted else ""
