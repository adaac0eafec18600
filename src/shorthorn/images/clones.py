"""An image made of another one's bytes, in the same pool.

Owns the copies of both files: reflinks where the file system has them, else copies that keep their
holes. Must never judge bytes again: they are those of an image. Called by the image copy
controller (domain.image_bytes.ImageCloner).
"""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from shorthorn.domain.errors import NotFound
from shorthorn.host import files
from shorthorn.host.reflink import ReflinkUnsupported, clone_file
from shorthorn.host.sparse_copy import copy_sparse

if TYPE_CHECKING:
    from shorthorn.domain.models import ImageKey, ImageRecord

_ARTIFACT_NAME = "artifact"
_BASE_NAME = "base.raw"


class PoolCloner:
    """Clones images of one pool; `pool_name` is for messages."""

    def __init__(self, pool_name: str) -> None:
        self._pool_name = pool_name

    async def clone(self, origin: ImageRecord, key: ImageKey, staging: Path) -> ImageRecord:
        """See domain.image_bytes.ImageCloner."""
        from shorthorn.images.failures import translated  # brings the libraries of downloads

        artifact, base = staging / _ARTIFACT_NAME, staging / _BASE_NAME
        with translated(key.name, self._pool_name, staging):
            try:
                is_one_file = Path(origin.artifact_path).samefile(origin.base_path)
                await _copy(Path(origin.artifact_path), artifact)
                if is_one_file:
                    base.unlink(missing_ok=True)
                    base.hardlink_to(artifact)
                else:
                    await _copy(Path(origin.base_path), base)
            except FileNotFoundError as exc:
                raise NotFound("image", origin.key.name, "it was deleted") from exc
            for path in (artifact, base):
                await files.fsync_file(path)
            await files.fsync_dir(staging)
        return dataclasses.replace(
            origin,
            key=key,
            created_at=datetime.now(UTC),
            artifact_path=str(artifact),
            base_path=str(base),
        )


async def _copy(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        await clone_file(source, target)
    except ReflinkUnsupported:
        await copy_sparse(source, target)
