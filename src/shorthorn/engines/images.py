"""Images: immutable disks, with their artifact beside them.

Owns `images/<name>/<uuid>/`. `base.raw` is what a guest sees, `artifact` the exact bytes that were
downloaded or exported; for a raw export they are two names of one file. Must never judge bytes
(`images` does, before they come here) nor change them after the commit. Called by `engines.local`
and `engines.exports`.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from shorthorn.domain.errors import Corrupt, DomainError, NotFound
from shorthorn.engines import records
from shorthorn.engines.catalogue import Catalogue, subdirectories
from shorthorn.engines.extent_budget import keep_within_budget
from shorthorn.engines.failures import translated
from shorthorn.engines.layout import IMAGE_ARTIFACT, IMAGE_BASE, IMAGE_RECORD, is_key
from shorthorn.host import extents, files
from shorthorn.kit.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from shorthorn.domain.models import FileUsage, ImageKey, ImageRecord
    from shorthorn.engines.pool import OpenPool

_logger = logging.getLogger(__name__)

_KEPT = frozenset({IMAGE_ARTIFACT, IMAGE_BASE, IMAGE_RECORD})


class Images:
    """The images of one open pool."""

    def __init__(self, pool: OpenPool) -> None:
        self._pool = pool
        self._catalogue = Catalogue(
            "image",
            IMAGE_RECORD,
            records.ImageJson,
            records.ImageJson.record,
            self._directories,
        )

    def _directories(self) -> Iterator[str]:
        for name in subdirectories(self._pool.layout.images):
            yield from subdirectories(Path(name))

    async def staging_dir(self, key: ImageKey) -> Path:
        """See ports.Engine."""
        directory = self._pool.layout.image(key)
        async with translated(self._pool.root, "image", key.name):
            return await self._pool.staging.ensure(directory)

    async def commit_downloaded(self, record: ImageRecord) -> ImageRecord:
        """See ports.Engine.commit_image."""
        directory = self._pool.layout.image(record.key)
        existing = await self.find(record.key)
        if existing is not None:
            return existing
        staged = self._pool.layout.staged(directory)
        async with translated(
            self._pool.root, "image", record.key.name, needed_bytes=record.virtual_size_bytes
        ):
            _check_staged(staged, record)
            await self._shorten(staged)
            return await self.commit(record)

    async def _shorten(self, staged: Path) -> None:
        """Put a base in too many pieces into one; it stays one file with its artifact if it was."""
        artifact, base = staged / IMAGE_ARTIFACT, staged / IMAGE_BASE
        is_one_file = artifact.samefile(base)
        is_rewritten = await keep_within_budget(
            self._pool.staging, base, extents_max=self._pool.extents_max
        )
        if is_rewritten and is_one_file:
            artifact.unlink()
            artifact.hardlink_to(base)

    async def commit(self, record: ImageRecord) -> ImageRecord:
        """Make the staged image exist. `artifact` and `base.raw` are complete."""
        directory = self._pool.layout.image(record.key)
        staging = self._pool.staging
        staged = self._pool.layout.staged(directory)
        for name in (IMAGE_ARTIFACT, IMAGE_BASE):
            await files.fsync_file(staged / name)
        content = records.ImageJson.of(record)
        await staging.write_record(staged / IMAGE_RECORD, content)
        for entry in sorted(staged.iterdir()):
            if entry.name not in _KEPT:
                await files.remove_tree(entry)
                staging.reached(f"{entry.name} removed")
        await staging.commit(directory)
        return content.record(directory)

    async def finish_commits(self) -> None:
        """Commit, at a start, what only lacks the rename: the journal may be gone already.

        What cannot be committed now (a full pool, a newer version's record) stays as it is.
        """
        for key in self._pool.staging.list_images():
            try:
                record = self.find_staged(key)
                if record is not None:
                    async with translated(self._pool.root, "image", key.name):
                        await self.commit(record)
            except DomainError as exc:
                _logger.warning("image %s (%s) is not committed: %s", key.name, key.uuid, exc)

    def find_staged(self, key: ImageKey) -> ImageRecord | None:
        """Return the record of an image that only lacks its commit, or None."""
        staged = self._pool.layout.staged(self._pool.layout.image(key))
        content = records.read(staged / IMAGE_RECORD, records.ImageJson)
        return None if content is None else content.record(staged)

    async def discard_staging(self, key: ImageKey) -> None:
        """See ports.Engine."""
        if not is_key(key):
            return
        async with translated(self._pool.root, "image", key.name):
            await self._pool.staging.discard(self._pool.layout.image(key))

    async def find(self, key: ImageKey) -> ImageRecord | None:
        """See ports.Engine."""
        if not is_key(key):
            return None
        return await in_thread(self._catalogue.find, self._pool.layout.image(key))

    async def get(self, key: ImageKey) -> ImageRecord:
        """Return the image. Raises NotFound."""
        record = await self.find(key)
        if record is None:
            raise NotFound("image", f"{key.name} ({key.uuid})")
        return record

    async def list(self) -> Sequence[ImageRecord]:
        """See ports.Engine."""
        return await self._catalogue.list()

    async def record_checksum(self, key: ImageKey, checksum: str) -> ImageRecord:
        """See ports.Engine. Raises: NotFound. Corrupt: another checksum is recorded."""
        record = await self.get(key)
        if record.checksum == checksum:
            return record
        if record.checksum:
            problem = f"its artifact has SHA-512 {checksum}, {record.checksum} is recorded"
            raise Corrupt("image", key.name, problem)
        directory = self._pool.layout.image(key)
        content = records.ImageJson.of(replace(record, checksum=checksum))
        async with translated(self._pool.root, "image", key.name):
            await self._pool.staging.replace_record(directory / IMAGE_RECORD, content)
        return content.record(directory)

    async def delete(self, key: ImageKey) -> None:
        """See ports.Engine. One whose record is damaged goes too, a newer version's stays."""
        if not is_key(key):
            return
        directory = self._pool.layout.image(key)
        async with translated(self._pool.root, "image", key.name):
            await in_thread(self._catalogue.refuse_newer, directory)
            await self._pool.staging.discard(directory)
            await self._pool.staging.remove(directory)

    async def measure(self, key: ImageKey) -> FileUsage:
        """See ports.Engine: of `base.raw`, which volumes are cloned from. Raises NotFound."""
        await self.get(key)
        async with translated(self._pool.root, "image", key.name):
            return await extents.usage(self._pool.layout.image(key) / IMAGE_BASE)


def _check_staged(staged: Path, record: ImageRecord) -> None:
    """Raise Corrupt unless the staged files have the sizes that the record promises."""
    for name, wanted_bytes in (
        (IMAGE_ARTIFACT, record.size_bytes),
        (IMAGE_BASE, record.virtual_size_bytes),
    ):
        path = staged / name
        found_bytes = path.stat().st_size if path.exists() else -1
        if found_bytes != wanted_bytes:
            found = f"has {found_bytes} bytes" if found_bytes >= 0 else "is missing"
            problem = f"{name} in staging {found}, {wanted_bytes} were promised"
            raise Corrupt("image", record.key.name, problem)
