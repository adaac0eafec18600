"""`ImageBytes` in memory, for the edge and its clients.

Keeps what is sent and gives what it was told to; `completed` is called with the whole of an upload,
in place of the controllers that would look at it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from shorthorn.domain.errors import NotFound, OffsetMismatch, SizeOutOfRange
from shorthorn.domain.image_bytes import Artifact, ArtifactForm, OpenArtifact, UploadState
from shorthorn.domain.upload_sample import sample_of

_CHUNK_BYTES = 1 << 20


@dataclass
class MemoryBytes:
    """See `domain.image_bytes.ImageBytes`. `cuts`: bytes after which each transfer breaks.

    `is_free`: nobody reads any more.
    """

    images: dict[tuple[str, ArtifactForm], bytes] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    uploads: dict[str, bytearray] = field(default_factory=dict)
    cuts: list[int] = field(default_factory=list)
    readers: int = 0
    is_free: asyncio.Event = field(default_factory=asyncio.Event)
    find_length: Callable[[str], Awaitable[int | None]] | None = None
    completed: Callable[[str, bytes], Awaitable[None]] | None = None

    def hold(self, image: str, content: bytes) -> None:
        """Give an image the same bytes in every form."""
        self.images |= {(image, form): content for form in ArtifactForm}

    def await_bytes(self, image: str, length: int, *, there: bytes = b"") -> None:
        """Let an upload begin, or be as far as `there`."""
        self.uploads[image], self.lengths[image] = bytearray(there), length

    async def upload_state(self, image: str) -> UploadState:
        if image not in self.lengths and self.find_length is not None:
            length = await self.find_length(image)
            if length is not None:
                self.lengths[image], self.uploads[image] = length, bytearray()
        if image not in self.lengths:
            raise NotFound("upload", image)
        there = bytes(self.uploads[image])
        sample = sample_of(lambda count, start: there[start : start + count], len(there))
        return UploadState(len(there), self.lengths[image], sample)

    async def append(
        self, image: str, offset_bytes: int, chunks: AsyncIterator[bytes]
    ) -> UploadState:
        state = await self.upload_state(image)
        if offset_bytes != state.offset_bytes:
            raise OffsetMismatch(image, state.offset_bytes, offset_bytes)
        there, cut = self.uploads[image], self.cuts.pop(0) if self.cuts else None
        async for chunk in chunks:
            if len(there) + len(chunk) > state.length_bytes:
                wanted = len(there) + len(chunk)
                raise SizeOutOfRange("upload", wanted, maximum_bytes=state.length_bytes)
            there += chunk
            if cut is not None and len(there) - offset_bytes >= cut:
                raise ConnectionResetError
        if len(there) == state.length_bytes and self.completed is not None:
            await self.completed(image, bytes(there))
        return UploadState(len(there), state.length_bytes)

    async def abandon(self, image: str) -> None:
        if self.lengths.pop(image, None) is None:
            raise NotFound("upload", image)

    async def describe(self, image: str, form: ArtifactForm) -> Artifact:
        content = self.images.get((image, form))
        if content is None:
            raise NotFound("ready backing image", image)
        has_length = form.has_ranges
        checksum = hashlib.sha512(content).hexdigest()
        etags = {ArtifactForm.ARTIFACT: checksum, ArtifactForm.RAW: f"{checksum}-raw"}
        etag = etags.get(form, "")
        return Artifact(len(content) if has_length else None, etag, f"{image}.{form}")

    @contextlib.asynccontextmanager
    async def read(
        self, image: str, form: ArtifactForm, *, start: int = 0, stop: int | None = None
    ) -> AsyncIterator[OpenArtifact]:
        artifact = await self.describe(image, form)
        content = self.images[image, form]
        if form is ArtifactForm.QCOW2:
            artifact = Artifact(len(content), "", artifact.file_name)
        self.readers += 1
        self.is_free.clear()
        try:
            yield OpenArtifact(artifact, self._chunks(content[start:stop]))
        finally:
            self.readers -= 1
            if not self.readers:
                self.is_free.set()

    async def _chunks(self, content: bytes) -> AsyncIterator[bytes]:
        cut = self.cuts.pop(0) if self.cuts else None
        for at in range(0, len(content), _CHUNK_BYTES):
            if cut is not None and at >= cut:
                raise ConnectionResetError
            yield content[at : at + _CHUNK_BYTES]
