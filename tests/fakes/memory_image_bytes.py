"""Bytes of images in memory (`domain.image_bytes.ImageBytes`), for tests of the web's edge."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from shorthorn.domain.errors import NotFound, OffsetMismatch, SizeOutOfRange
from shorthorn.domain.image_bytes import Artifact, ArtifactForm, OpenArtifact, UploadState

CHUNK_BYTES = 1000


@dataclass
class MemoryImageBytes:
    """`artifacts` by image; `uploads`: what has arrived, of `lengths` bytes. `is_free`: nobody
    reads.
    """

    artifacts: dict[str, bytes] = field(default_factory=dict)
    etags: dict[str, str] = field(default_factory=dict)
    uploads: dict[str, bytearray] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    readers: int = 0
    is_free: asyncio.Event = field(default_factory=asyncio.Event)

    async def upload_state(self, image: str) -> UploadState:
        if image not in self.uploads:
            raise NotFound("upload", image)
        return UploadState(len(self.uploads[image]), self.lengths[image])

    async def append(
        self, image: str, offset_bytes: int, chunks: AsyncIterator[bytes]
    ) -> UploadState:
        state = await self.upload_state(image)
        if state.offset_bytes != offset_bytes:
            raise OffsetMismatch(image, state.offset_bytes, offset_bytes)
        async for chunk in chunks:
            if len(self.uploads[image]) + len(chunk) > state.length_bytes:
                raise SizeOutOfRange(image, len(chunk), maximum_bytes=state.length_bytes)
            self.uploads[image] += chunk
        return await self.upload_state(image)

    async def abandon(self, image: str) -> None:
        await self.upload_state(image)
        del self.uploads[image]

    async def describe(self, image: str, form: ArtifactForm) -> Artifact:
        if image not in self.artifacts:
            raise NotFound("ready image", image)
        size_bytes = len(self.artifacts[image]) if form.has_ranges else None
        etag = self.etags.get(image, "") if form is ArtifactForm.ARTIFACT else ""
        return Artifact(size_bytes, etag, f"{image}.{form.value}")

    @contextlib.asynccontextmanager
    async def read(
        self, image: str, form: ArtifactForm, *, start: int = 0, stop: int | None = None
    ) -> AsyncIterator[OpenArtifact]:
        artifact = await self.describe(image, form)
        data = self.artifacts[image]
        if form is ArtifactForm.QCOW2:
            artifact = Artifact(len(data), "", artifact.file_name)
        part = data[start : len(data) if stop is None else stop]

        async def chunks() -> AsyncIterator[bytes]:
            for at in range(0, len(part), CHUNK_BYTES):
                yield part[at : at + CHUNK_BYTES]

        self.readers += 1
        self.is_free.clear()
        try:
            yield OpenArtifact(artifact, chunks())
        finally:
            self.readers -= 1
            if not self.readers:
                self.is_free.set()
