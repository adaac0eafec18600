"""Image bytes from the web into a staging directory, ready for the engine's commit.

Owns the order of things: download, checksum, inspection, base. It implements
domain.ports.ImageFetcher; everything that can go wrong below leaves it as a domain error. Must
never leave `artifact` and `base.raw` as complete before all of it held. Called by the image copy
controller.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from shorthorn.domain.errors import ChecksumMismatch, DomainError, Unavailable
from shorthorn.domain.models import ImageRecord, SourceType
from shorthorn.host import files
from shorthorn.images.base_image import BASE_NAME, make_base
from shorthorn.images.download import DownloadRequest, RetryPolicy, download
from shorthorn.images.failures import discard, translated
from shorthorn.images.http_source import parse_url
from shorthorn.images.inspection import inspect_file, promised_format
from shorthorn.kit.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from shorthorn.domain.models import ImageKey
    from shorthorn.domain.ports import ReportProgress


class WebImageFetcher:
    """Fetches images by http and https (domain.ports.ImageFetcher)."""

    def __init__(self, pool_name: str, retry: RetryPolicy | None = None) -> None:
        """`pool_name` is for messages: where there was no space."""
        self._pool_name = pool_name
        self._retry = retry or RetryPolicy()

    async def fetch(
        self,
        key: ImageKey,
        parameters: Mapping[str, str],
        expected_checksum: str,
        staging: Path,
        report: ReportProgress,
    ) -> ImageRecord:
        """See ports.ImageFetcher; `parameters["url"]` says where."""
        try:
            with translated(key.name, self._pool_name, staging):
                return await self._fetch(key, parameters, expected_checksum, staging, report)
        except Unavailable:
            raise
        except DomainError:
            await discard(staging)
            raise

    async def _fetch(
        self,
        key: ImageKey,
        parameters: Mapping[str, str],
        expected_checksum: str,
        staging: Path,
        report: ReportProgress,
    ) -> ImageRecord:
        url = parameters.get("url", "")
        path = parse_url(url).path
        done = await download(DownloadRequest(url, staging, self._retry), report)
        expected = expected_checksum.strip().lower()
        if expected and done.checksum != expected:
            raise ChecksumMismatch(key.name, expected, done.checksum)
        inspection = await in_thread(inspect_file, done.path, promised=promised_format(path))
        base = staging / BASE_NAME
        await make_base(done.path, base, inspection, report)
        await files.fsync_file(base)
        await files.fsync_dir(staging)
        return ImageRecord(
            key=key,
            format=inspection.format,
            size_bytes=done.size_bytes,
            virtual_size_bytes=inspection.virtual_size_bytes,
            checksum=done.checksum,
            source={"type": str(SourceType.DOWNLOAD), "url": url},
            created_at=datetime.now(UTC),
            point_in_time=None,
            artifact_path=str(done.path),
            base_path=str(base),
        )
