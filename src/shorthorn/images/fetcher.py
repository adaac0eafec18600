"""Image bytes from the web into a staging directory, ready for the engine's commit.

Owns the order of things: download, checksum, inspection, base. It implements
domain.ports.ImageFetcher and is the boundary at which everything that can go wrong below becomes a
domain error. Must never leave `artifact` and `base.raw` as complete before all of it held. Called
by the image copy controller.
"""

from __future__ import annotations

import contextlib
import errno
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from shorthorn.domain.errors import (
    ChecksumMismatch,
    DomainError,
    ImageFailed,
    ImageRejected,
    NoSpace,
    Unavailable,
)
from shorthorn.domain.models import ImageRecord, SourceType
from shorthorn.host import files
from shorthorn.host.errors import HostError
from shorthorn.host.qemu_img import QemuFailed, QemuTimedOut
from shorthorn.host.sandbox import SandboxUnavailable
from shorthorn.images.base_image import make_base
from shorthorn.images.download import ARTIFACT_NAME, DownloadRequest, RetryPolicy, download
from shorthorn.images.download_journal import JOURNAL_NAME
from shorthorn.images.http_source import SourceRefused, SourceTroubled, parse_url
from shorthorn.images.inspection import inspect_file, promised_format
from shorthorn.images.refusal import NotAcceptable
from shorthorn.kit.process import CommandMissing
from shorthorn.kit.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from shorthorn.domain.models import ImageKey
    from shorthorn.domain.ports import ReportProgress

BASE_NAME = "base.raw"


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
            with _translated(key.name, self._pool_name, staging):
                return await self._fetch(key, parameters, expected_checksum, staging, report)
        except Unavailable:
            raise
        except DomainError:
            await _discard(staging)
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


@contextlib.contextmanager
def _translated(image: str, pool_name: str, staging: Path) -> Iterator[None]:
    """Turn what the lower parts say into domain errors."""
    try:
        yield
    except NotAcceptable as exc:
        raise ImageRejected(image, exc.problem) from exc
    except SourceRefused as exc:
        raise ImageFailed(image, exc.problem) from exc
    except SourceTroubled as exc:
        raise Unavailable("the image's source", f"{exc.problem}; trying again") from exc
    except QemuTimedOut as exc:
        raise ImageFailed(image, exc.problem) from exc
    except QemuFailed as exc:
        raise ImageRejected(image, f"QEMU cannot read it: {exc.problem}") from exc
    except (SandboxUnavailable, CommandMissing) as exc:
        raise Unavailable("the sandbox for disk images", str(exc)) from exc
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _no_space(pool_name, staging) from exc
        if exc.errno == errno.EFBIG:
            raise ImageRejected(image, "its disk is larger than a file of the pool can be") from exc
        raise Unavailable(f"pool {pool_name}", str(exc)) from exc
    except HostError as exc:
        raise Unavailable(f"pool {pool_name}", str(exc)) from exc


def _no_space(pool_name: str, staging: Path) -> NoSpace:
    """Describe a full pool; what is needed is what was promised or else what is there already."""
    usage = os.statvfs(staging)
    artifact = staging / ARTIFACT_NAME
    taken = artifact.stat().st_blocks * 512 if artifact.exists() else 0
    return NoSpace(pool_name, taken + 1, usage.f_bavail * usage.f_frsize)


async def _discard(staging: Path) -> None:
    """Remove what is of no use any more, the journal last: without it the rest is swept."""
    for name in (BASE_NAME, ARTIFACT_NAME, JOURNAL_NAME):
        await files.remove_tree(staging / name)
