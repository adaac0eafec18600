"""`shorthorn image upload`: a file of this machine becomes an image.

Owns: the image's object, what is sent and when to go on, and the comparison at the end. Must never:
believe anything of what is there already but what the server says. Killed at any line, the same
command goes on. `app` puts the commands together.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import os
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import typer

from shorthorn.commands.image.byte_client import (
    BLOCK_BYTES,
    ByteClient,
    Lost,
    Offset,
    Patience,
    Refused,
)
from shorthorn.commands.image.cluster import Cluster, Object
from shorthorn.commands.image.making import image_object
from shorthorn.commands.image.progress import Meter, metered
from shorthorn.commands.image.waiting import raise_failure, wait_until
from shorthorn.domain import errors
from shorthorn.domain.image_bytes import RETRIED, RETRY_AT, UPLOAD_LENGTH
from shorthorn.domain.models import BackingImage, SourceType
from shorthorn.domain.upload_sample import sample_of
from shorthorn.kube.resources import BACKING_IMAGE

_QCOW2_MAGIC: Final = b"QFI\xfb"
_SECTOR_BYTES: Final = 512
PIECE_BYTES: Final = 64 << 20
"""Sent in one request: what a lost connection costs at most, if a server keeps whole pieces."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be uploaded as which image."""

    name: str
    path: Path
    checksum: str
    copies: int = 1
    node_selector: tuple[str, ...] = ()
    disk_selector: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Limits:
    """How patient an upload is, and whether it says what it does."""

    retry_for_s: float
    timeout_s: float
    quiet: bool = False


async def upload(cluster: Cluster, client: ByteClient, wanted: Wanted, limits: Limits) -> Object:
    """Send the file, or what is missing of it, and return the ready image's object.

    Raises: ChecksumMismatch: what is there is something else. ImageFailed. AlreadyExists: the name
        means something else. InvalidArgument: the file cannot be sent. Refused, Lost.
    """
    with wanted.path.open("rb") as file, _Hashing(wanted.path) as hashing:
        before = os.fstat(file.fileno())
        length = file.seek(0, os.SEEK_END)
        note = _note_of(file, length, wanted.path)
        if note and not limits.quiet:
            typer.echo(f"{wanted.name}: {note}", err=True)
        image = await _ensure_image(cluster, wanted, length)
        with metered(wanted.name, total=length, quiet=limits.quiet) as meter:
            if not image.is_ready:
                await _send(
                    cluster, client, image, _Source(file, length, wanted.path), limits, meter
                )
                meter.say("sent; waiting until the image is checked")
            obj = await wait_until(
                cluster, wanted.name, _is_hashed, timeout_s=limits.timeout_s, meter=_Saying(meter)
            )
            own = await hashing.result()
        after = os.fstat(file.fileno())
        if (before.st_mtime_ns, before.st_size) != (after.st_mtime_ns, after.st_size):
            raise errors.InvalidArgument("file", f"{wanted.path} changed while it was sent")
    _compare(BACKING_IMAGE.from_object(obj), wanted, own)
    return obj


class _Hashing:
    """The file's SHA-512, computed in a thread of its own while the file is being sent."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stop = threading.Event()
        self._task: asyncio.Task[str] | None = None

    def __enter__(self) -> _Hashing:
        self._task = asyncio.create_task(asyncio.to_thread(self._hash))
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()

    async def result(self) -> str:
        assert self._task is not None
        return await self._task

    def _hash(self) -> str:
        digest = hashlib.sha512()
        with self._path.open("rb") as file:
            while not self._stop.is_set() and (block := file.read(BLOCK_BYTES)):
                digest.update(block)
        return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class _Source:
    """The file that is sent."""

    file: IO[bytes]
    length: int
    path: Path

    async def sample(self, offset: int) -> str:
        """Return the sample of the bytes before `offset` (`domain.upload_sample`)."""
        read = functools.partial(os.pread, self.file.fileno())
        return await asyncio.to_thread(sample_of, read, offset)

    async def blocks(self, start: int, end: int, meter: Meter) -> AsyncIterator[bytes]:
        """Yield the bytes from `start` to `end`. Raises: InvalidArgument: the file is shorter."""
        while start < end:
            count = min(BLOCK_BYTES, end - start)
            block = await asyncio.to_thread(os.pread, self.file.fileno(), count, start)
            if not block:
                raise errors.InvalidArgument("file", "it became shorter while it was sent")
            yield block
            start += len(block)
            meter.moved(start)


class _Saying:
    """A meter that only says: the server counts again what this side has counted already."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def moved(self, done: int, total: int | None = None) -> None:
        pass

    def say(self, text: str) -> None:
        self._meter.say(text)


async def _ensure_image(cluster: Cluster, wanted: Wanted, length: int) -> BackingImage:
    """Create the image, or return the one that awaits exactly this upload, or has had it."""
    obj = image_object(
        wanted.name,
        source_type=SourceType.UPLOAD.value,
        parameters={},
        checksum=wanted.checksum,
        copies=wanted.copies,
        node_selector=list(wanted.node_selector),
        disk_selector=list(wanted.disk_selector),
        annotations={UPLOAD_LENGTH: str(length)},
    )
    try:
        return BACKING_IMAGE.from_object(await cluster.create_image(obj))
    except errors.AlreadyExists:
        image = BACKING_IMAGE.from_object(await cluster.image(wanted.name))
    _check_same(image, wanted, length)
    return image


def _check_same(image: BackingImage, wanted: Wanted, length: int) -> None:
    """Raise where an image that exists is not made of this file, as far as can be seen."""
    name = image.meta.name
    if image.meta.deleting:
        raise errors.OperationPending(f"backing image {name}, which is being deleted")
    if image.spec.source_type != SourceType.UPLOAD:
        told = f"it is made otherwise ({image.spec.source_type})"
        raise errors.AlreadyExists("backing image", name, told)
    awaited = image.meta.annotations.get(UPLOAD_LENGTH, "")
    if awaited != str(length):
        told = f"it is an upload of {awaited or 'unknown'} bytes, and {wanted.path} has {length}"
        raise errors.AlreadyExists("backing image", name, told)
    if wanted.checksum and image.spec.checksum and image.spec.checksum != wanted.checksum:
        raise errors.AlreadyExists("backing image", name, "it expects another checksum")
    try:
        _raise_lasting_failure(image)
    except errors.ImageFailed as exc:
        told = f"{exc}; `shorthorn image retry {name}` lets it be sent again"
        raise errors.ImageFailed(name, told) from None


async def _send(
    cluster: Cluster,
    client: ByteClient,
    image: BackingImage,
    source: _Source,
    limits: Limits,
    meter: Meter,
) -> None:
    """Send all that is missing. Returns also where the image became ready by another's hand."""
    name, patience = image.meta.name, Patience(limits.retry_for_s)
    offset = await _find_place(cluster, client, name, source, patience, meter)
    while offset is not None and offset.offset < source.length:
        end = min(source.length, offset.offset + PIECE_BYTES)
        meter.moved(offset.offset)
        try:
            blocks = source.blocks(offset.offset, end, meter)
            reached = await client.append(name, offset.offset, end - offset.offset, blocks)
        except Lost as exc:
            meter.say(f"connection lost ({exc}); going on soon")
            await patience.wait(exc)
            before = offset
            offset = await _find_place(cluster, client, name, source, patience, meter)
            if offset is not None and offset.offset > before.offset:
                patience.moved()
            continue
        if reached > source.length:
            raise Refused(409, f"the server has {reached} bytes already, the file fewer")
        if reached == offset.offset:
            await patience.wait(Lost("the server takes no bytes"))
        else:
            patience.moved()
        meter.moved(reached)
        if reached == end:
            offset = Offset(reached, offset.length)
        else:  # somebody else sends as well, perhaps another file
            offset = await _find_place(cluster, client, name, source, patience, meter)


async def _find_place(
    cluster: Cluster,
    client: ByteClient,
    name: str,
    source: _Source,
    patience: Patience,
    meter: Meter,
) -> Offset | None:
    """Return `_find_offset`'s answer, once what is there already is the file's as well.

    Raises: AlreadyExists: it is of another file. What `_find_offset` raises.
    """
    found = await _find_offset(cluster, client, name, patience, meter)
    if found is None:
        return None
    _check_length(name, found, source.length)
    if found.sample and found.sample != await source.sample(found.offset):
        told = f"the {found.offset} bytes that it has are of another file than {source.path}"
        hint = f"send that one, or `shorthorn image rm {name}` and upload again"
        raise errors.AlreadyExists("backing image", name, f"{told}; {hint}")
    return found


async def _find_offset(
    cluster: Cluster, client: ByteClient, name: str, patience: Patience, meter: Meter
) -> Offset | None:
    """Return where to go on, once the image awaits bytes; None: it has them all.

    Raises: ImageFailed, NotFound. Lost: nobody answers, for longer than is reasonable.
    """
    said = ""
    while True:
        trouble = None
        try:
            found = await client.find_offset(name)
            if found is not None:
                return found
        except Lost as exc:
            trouble = exc
        try:
            image = BACKING_IMAGE.from_object(await cluster.image(name))
        except errors.Unavailable as exc:  # on one host both restart together
            trouble = trouble or Lost(str(exc))
        else:
            _raise_lasting_failure(image)
            if trouble is None and (image.is_ready or _has_all(image)):
                return None
            trouble = trouble or Lost(_waits_for(image))
        if str(trouble) != said:
            said = str(trouble)
            meter.say(said)
        await patience.wait(trouble)


def _raise_lasting_failure(image: BackingImage) -> None:
    """Raise ImageFailed where the image has failed, unless it is about to be tried again."""
    retry = image.meta.annotations.get(RETRY_AT, "")
    if not retry or retry == image.meta.annotations.get(RETRIED):
        raise_failure(image)


def _has_all(image: BackingImage) -> bool:
    """Whether a copy has all bytes and is being completed."""
    return any(f.state == "ready-for-transfer" for f in image.status.disk_file_status.values())


def _waits_for(image: BackingImage) -> str:
    ready = next((c for c in image.status.conditions if c.type == "Ready"), None)
    return (ready.message or ready.reason) if ready else "waiting for the controller"


def _note_of(file: IO[bytes], length: int, path: Path) -> str:
    """Return what becomes of a file that is no whole disk; empty where it is one.

    Raises: InvalidArgument: the file is empty.
    """
    if not length:
        raise errors.InvalidArgument("file", f"{path} is empty")
    is_qcow2 = os.pread(file.fileno(), len(_QCOW2_MAGIC), 0) == _QCOW2_MAGIC
    if is_qcow2 or not length % _SECTOR_BYTES:
        return ""
    told = f"{length} bytes are no whole sectors of {_SECTOR_BYTES}"
    return f"{told}: as a raw image it is padded with zeros"


def _check_length(name: str, offset: Offset, length: int) -> None:
    if offset.length is not None and offset.length != length:
        told = f"the server awaits {offset.length} bytes, the file has {length}"
        raise errors.AlreadyExists("backing image", name, told)


def _is_hashed(image: BackingImage) -> bool:
    return image.is_ready and bool(image.status.checksum)


def _compare(image: BackingImage, wanted: Wanted, own: str) -> None:
    """Raise where what is there is not the file, or the file not what was expected of it."""
    name = image.meta.name
    if image.status.checksum != own:
        raise errors.AlreadyExists(
            "backing image",
            name,
            f"it has other bytes than {wanted.path} (SHA-512 {image.status.checksum[:16]}… and"
            f" {own[:16]}…); was a part of it sent from another file? `shorthorn image rm {name}`,"
            " then upload again",
        )
    if wanted.checksum and wanted.checksum != own:
        raise errors.InvalidArgument("--checksum", f"{wanted.path} has SHA-512 {own}")
