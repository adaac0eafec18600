"""Bytes of the images in this node's pool, for people and machines.

Owns finding out which of the pool's images, uploads and files are meant, by key for peers and by
name for the edge; it implements domain.image_bytes.ImageBytes. Must never give anything that is not
committed, nor decide who may have it. Called by `web` on one host and by `images.peer_server`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING

from shorthorn.domain import errors, names
from shorthorn.domain.image_bytes import Artifact, ArtifactForm, OpenArtifact, UploadState
from shorthorn.domain.models import ImageFormat, ImageKey, SourceType
from shorthorn.domain.upload_sample import sample_of
from shorthorn.images.conversions import Qcow2Files, ZstdChunks
from shorthorn.images.file_chunks import FileChunks
from shorthorn.kit.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from shorthorn.domain.models import ImageCopy, ImageRecord
    from shorthorn.domain.ports import Engine, Registry
    from shorthorn.images.uploads import Uploads


class PoolBytes:
    """The bytes of one pool's images, by key. Promises what domain.image_bytes.ImageBytes does."""

    def __init__(self, engine: Engine, uploads: Uploads, pool_name: str) -> None:
        """`pool_name` is for messages: where there was no space."""
        self._engine = engine
        self._uploads = uploads
        self._qcow2 = Qcow2Files(engine, pool_name)

    async def upload_state(self, key: ImageKey) -> UploadState:
        """See domain.image_bytes.ImageBytes."""
        state, file = self._uploads.state(key), self._uploads.staged_file(key)
        if state is not None and file is not None:
            sample = await in_thread(_sample, file, state.offset_bytes)
            return dataclasses.replace(state, sample=sample)
        record = await self._engine.find_image(key)
        if record is None or record.source.get("type") != SourceType.UPLOAD:
            raise errors.NotFound("upload", key.name, "nothing awaits bytes")
        return UploadState(record.size_bytes, record.size_bytes)

    async def append(
        self, key: ImageKey, offset_bytes: int, chunks: AsyncIterator[bytes]
    ) -> UploadState:
        """See domain.image_bytes.ImageBytes."""
        return await self._uploads.append(key, offset_bytes, chunks)

    async def abandon(self, key: ImageKey) -> None:
        """See domain.image_bytes.ImageBytes."""
        self._uploads.abandon(key)

    async def describe(self, key: ImageKey, form: ArtifactForm) -> Artifact:
        """See domain.image_bytes.ImageBytes."""
        return _artifact(await self._find(key), form)

    @contextlib.asynccontextmanager
    async def read(
        self, key: ImageKey, form: ArtifactForm, *, start: int = 0, stop: int | None = None
    ) -> AsyncIterator[OpenArtifact]:
        """See domain.image_bytes.ImageBytes."""
        record = await self._find(key)
        if not form.has_ranges and (start, stop) != (0, None):
            raise errors.InvalidArgument("range", f"{form} is not had in parts")
        async with contextlib.AsyncExitStack() as stack:
            path = Path(record.artifact_path if form is ArtifactForm.ARTIFACT else record.base_path)
            if form is ArtifactForm.QCOW2:
                path = await stack.enter_async_context(self._qcow2.hold(record))
            try:
                file = await FileChunks.open(path, start, stop)
            except FileNotFoundError:  # deleted between two looks
                raise errors.NotFound("image", key.name) from None
            stack.push_async_callback(file.close)
            chunks: AsyncIterator[bytes] = file
            artifact = _artifact(record, form, made_bytes=file.size_bytes)
            if form is ArtifactForm.RAW_ZST:
                zstd = ZstdChunks(file)
                stack.push_async_callback(zstd.close)
                chunks = zstd
            yield OpenArtifact(artifact, chunks)

    async def _find(self, key: ImageKey) -> ImageRecord:
        record = await self._engine.find_image(key)
        if record is None:
            raise errors.NotFound("image", key.name, "it is not ready")
        return record


class LocalBytes:
    """`domain.image_bytes.ImageBytes` of the only pool there is."""

    def __init__(self, pool: PoolBytes, copies: Registry[ImageCopy], pool_uuid: str) -> None:
        self._pool = pool
        self._copies = copies
        self._pool_uuid = pool_uuid

    async def upload_state(self, image: str) -> UploadState:
        return await self._pool.upload_state(await self._key(image))

    async def append(
        self, image: str, offset_bytes: int, chunks: AsyncIterator[bytes]
    ) -> UploadState:
        return await self._pool.append(await self._key(image), offset_bytes, chunks)

    async def abandon(self, image: str) -> None:
        await self._pool.abandon(await self._key(image))

    async def describe(self, image: str, form: ArtifactForm) -> Artifact:
        return await self._pool.describe(await self._key(image, is_read=True), form)

    @contextlib.asynccontextmanager
    async def read(
        self, image: str, form: ArtifactForm, *, start: int = 0, stop: int | None = None
    ) -> AsyncIterator[OpenArtifact]:
        key = await self._key(image, is_read=True)
        async with self._pool.read(key, form, start=start, stop=stop) as opened:
            yield opened

    async def _key(self, image: str, *, is_read: bool = False) -> ImageKey:
        """Return the key of the image's copy here. Raises NotFound: there is none, or (`is_read`)
        it is damaged.
        """
        name = names.copy_name(image, self._pool_uuid)
        copy = self._copies.find_cached(name) or await self._copies.find(name)
        if copy is None or copy.meta.deleting:
            raise errors.NotFound("image", image, "this pool has no copy of it")
        if is_read and copy.is_condemned:
            raise errors.NotFound("image", image, copy.status.message)
        return ImageKey(image, copy.spec.image_uuid)


def _sample(path: Path, offset_bytes: int) -> str:
    """Return the sample of a staged file; empty where it has just gone elsewhere."""
    try:
        with path.open("rb") as file:
            return sample_of(functools.partial(os.pread, file.fileno()), offset_bytes)
    except FileNotFoundError:
        return ""


def _artifact(
    record: ImageRecord, form: ArtifactForm, *, made_bytes: int | None = None
) -> Artifact:
    """Describe one form; `made_bytes`: the length of its file, where that has been opened."""
    name = record.key.name
    match form:
        case ArtifactForm.ARTIFACT:
            extension = "qcow2" if record.format is ImageFormat.QCOW2 else "raw"
            return Artifact(record.size_bytes, record.checksum, f"{name}.{extension}")
        case ArtifactForm.RAW:
            etag = f"{record.checksum}-raw" if record.checksum else ""
            return Artifact(record.virtual_size_bytes, etag, f"{name}.raw")
        case ArtifactForm.QCOW2:
            return Artifact(made_bytes, "", f"{name}.qcow2")
        case ArtifactForm.RAW_ZST:
            return Artifact(None, "", f"{name}.raw.zst")
