"""Images in other forms than they are kept in: a zstandard stream, and compressed qcow2 files.

Owns what is made for a reader and is gone when nobody reads it any more. Must never change an
image, nor read one with a tool outside the sandbox. Called by `images.local_bytes`.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shorthorn.domain import errors
from shorthorn.domain.models import ImageKey
from shorthorn.kit.threads import in_thread, wait_to_the_end

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from shorthorn.domain.models import ImageRecord
    from shorthorn.domain.ports import Engine
    from shorthorn.images.file_chunks import FileChunks

#: Fastest of the common levels: level 3 is a third slower for a tenth less.
_ZSTD_LEVEL = 1
#: A piece that is worth sending, and how much is read for it at most: zeros compress to nothing,
#: and a reader that goes away must not wait for a terabyte of them.
_SEND_BYTES = 256 << 10
_READS_MAX = 32

_QCOW2_NAME = "artifact.qcow2"
_STAGED_AS = "qcow2-conversion"
_CONVERSIONS_MAX = 2


class ZstdChunks:
    """A file's bytes as one zstandard frame; iterate once."""

    def __init__(self, file: FileChunks) -> None:
        import zstandard  # a library of 2 MiB that few need

        self._file = file
        self._frame = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=True).compressobj()
        self._ended = False

    def __aiter__(self) -> ZstdChunks:
        return self

    async def __anext__(self) -> bytes:
        while not self._ended:
            piece = await in_thread(self._compress_now)
            if piece:
                return piece
        raise StopAsyncIteration

    def _compress_now(self) -> bytes:
        pieces: list[bytes] = []
        for _ in range(_READS_MAX):
            chunk = self._file.read_now()
            if not chunk:
                self._ended = True
                pieces.append(self._frame.flush())
                break
            pieces.append(self._frame.compress(chunk))
            if sum(map(len, pieces)) >= _SEND_BYTES:
                break
        return b"".join(pieces)

    async def close(self) -> None:
        """Forget the compressor's memory."""
        self._ended = True


class Qcow2Files:
    """Compressed qcow2 files of a pool's images, one for all who read it at the same time.

    They lie in staging as images that are never committed, so that a start sweeps what a dead
    process left.
    """

    def __init__(self, engine: Engine, pool_name: str) -> None:
        """`pool_name` is for messages: where there was no space."""
        self._engine = engine
        self._pool_name = pool_name
        self._turns = asyncio.Semaphore(_CONVERSIONS_MAX)
        self._made: dict[ImageKey, _Conversion] = {}

    @contextlib.asynccontextmanager
    async def hold(self, record: ImageRecord) -> AsyncIterator[Path]:
        """Yield the image as a compressed qcow2 file, which stays until the last one leaves.

        Raises: NoSpace. Unavailable: no sandbox, or the tool was killed. NotFound: the image was
            deleted. ImageFailed: QEMU fails over it.
        """
        key = record.key
        conversion = self._made.get(key)
        if conversion is None:
            conversion = self._made[key] = _Conversion(self._make, record)
        conversion.readers += 1
        try:
            yield await asyncio.shield(conversion.task)
        finally:
            conversion.readers -= 1
            if conversion.readers == 0:
                del self._made[key]
                await wait_to_the_end(asyncio.ensure_future(self._discard(conversion)))

    async def _discard(self, conversion: _Conversion) -> None:
        conversion.task.cancel()
        await asyncio.wait([conversion.task])
        if not conversion.task.cancelled():
            conversion.task.exception()  # retrieved: all readers may have gone
        await self._engine.discard_staging(conversion.staged)

    async def _make(self, record: ImageRecord, staged: ImageKey) -> Path:
        from shorthorn.host import qemu_img
        from shorthorn.images.failures import translated

        async with self._turns:
            directory = await self._engine.staging_dir(staged)
            target = directory / _QCOW2_NAME
            with translated(record.key.name, self._pool_name, directory):
                if not Path(record.base_path).exists():
                    raise errors.NotFound("image", record.key.name)
                await in_thread(target.touch, 0o600)
                await qemu_img.compress_to_qcow2(
                    Path(record.base_path), target, virtual_size_bytes=record.virtual_size_bytes
                )
            return target


class _Conversion:
    """One qcow2 file: the work that makes it, where, and how many read it."""

    def __init__(
        self,
        make: Callable[[ImageRecord, ImageKey], Coroutine[Any, Any, Path]],
        record: ImageRecord,
    ) -> None:
        # A place of its own each time: the one before may still be on its way out.
        self.staged = ImageKey(_STAGED_AS, secrets.token_hex(8))
        self.task = asyncio.create_task(make(record, self.staged), name=f"qcow2:{record.key.name}")
        self.readers = 0
