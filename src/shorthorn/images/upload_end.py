"""What becomes of an upload when all of its bytes are here.

Owns the order of things: checksum, inspection, base. Must never leave `artifact` and `base.raw` as
complete before all of it held. Loaded and called by `images.uploads`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from shorthorn.domain.errors import ChecksumMismatch
from shorthorn.domain.models import ImageRecord, SourceType
from shorthorn.host import files
from shorthorn.images.base_image import BASE_NAME, make_base
from shorthorn.images.download import ARTIFACT_NAME
from shorthorn.images.failures import translated
from shorthorn.images.inspection import EarlyHead, inspect_file
from shorthorn.kit.threads import in_thread

if TYPE_CHECKING:
    from pathlib import Path

    from shorthorn.domain.models import ImageKey
    from shorthorn.domain.ports import ReportProgress

__all__ = ["EarlyHead", "judge", "translated"]


async def judge(
    key: ImageKey, staging: Path, checksum: str, expected_checksum: str, report: ReportProgress
) -> ImageRecord:
    """Judge the complete, durable artifact in `staging` and make its base.

    Raises: ChecksumMismatch, and what `images.failures.translated` translates.
    """
    expected = expected_checksum.strip().lower()
    if expected not in ("", checksum):
        raise ChecksumMismatch(key.name, expected, checksum)
    artifact, base = staging / ARTIFACT_NAME, staging / BASE_NAME
    inspection = await in_thread(inspect_file, artifact)
    await make_base(artifact, base, inspection, report)
    await files.fsync_file(base)
    await files.fsync_dir(staging)
    return ImageRecord(
        key=key,
        format=inspection.format,
        size_bytes=inspection.file_size_bytes,
        virtual_size_bytes=inspection.virtual_size_bytes,
        checksum=checksum,
        source={"type": str(SourceType.UPLOAD)},
        created_at=datetime.now(UTC),
        point_in_time=None,
        artifact_path=str(artifact),
        base_path=str(base),
    )
