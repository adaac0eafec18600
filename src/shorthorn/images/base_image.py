"""From an artifact to what a guest sees.

Owns `base.raw` while it is made: a disk of whole sectors that shares its blocks with the artifact
wherever the file system can. Must never change the artifact, and never see a file that
`images.inspection` has not judged. Called by `images.fetcher` and `images.peer_fetcher`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from shorthorn.domain.models import ImageFormat, Progress
from shorthorn.host import qemu_img
from shorthorn.host.reflink import ReflinkUnsupported, clone_file
from shorthorn.host.sparse_copy import copy_sparse
from shorthorn.images.refusal import NotAcceptable

if TYPE_CHECKING:
    from pathlib import Path

    from shorthorn.domain.ports import ReportProgress
    from shorthorn.images.inspection import Inspection

BASE_NAME = "base.raw"


async def make_base(
    artifact: Path, base: Path, inspection: Inspection, report: ReportProgress
) -> None:
    """Make `base`, a raw disk of `inspection.virtual_size_bytes`; one that is there is replaced.

    Raw bytes of whole sectors are the same file under a second name; others are cloned and padded.
    qcow2 is checked and converted, sharing what is not compressed. Nothing is synced.

    Raises: NotAcceptable: QEMU finds the tables damaged. QemuFailed, QemuTimedOut,
        SandboxUnavailable. OSError: ENOSPC and others.
    """
    base.unlink(missing_ok=True)
    if inspection.format is ImageFormat.QCOW2:
        await _convert(artifact, base, inspection, report)
    elif inspection.file_size_bytes == inspection.virtual_size_bytes:
        base.hardlink_to(artifact)
    else:
        await _pad(artifact, base, inspection.virtual_size_bytes)


async def _pad(artifact: Path, base: Path, size_bytes: int) -> None:
    try:
        await clone_file(artifact, base, size_bytes=size_bytes)
    except ReflinkUnsupported:
        await copy_sparse(artifact, base, size_bytes=size_bytes)


async def _convert(
    artifact: Path, base: Path, inspection: Inspection, report: ReportProgress
) -> None:
    total = inspection.virtual_size_bytes
    report(Progress(0, total, "checking the image"))
    await _refuse_damage(artifact, inspection)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor = os.open(base, flags, 0o600)
    try:
        os.ftruncate(descriptor, total)
    finally:
        os.close(descriptor)
    await qemu_img.convert_to_raw(
        artifact,
        ImageFormat.QCOW2,
        base,
        virtual_size_bytes=total,
        on_percent=lambda percent: report(
            Progress(int(total * percent / 100), total, "converting to raw")
        ),
    )


async def _refuse_damage(artifact: Path, inspection: Inspection) -> None:
    """Let QEMU walk all tables. Leaked clusters are no damage: nobody reads them."""
    result = await qemu_img.check(artifact)
    if result.is_sound:
        return
    if result.end_offset_bytes > inspection.file_size_bytes:
        raise NotAcceptable(
            f"the qcow2 image is truncated: its data ends at byte {result.end_offset_bytes}, "
            f"the file has {inspection.file_size_bytes}"
        )
    found = result.corruptions + result.check_errors
    raise NotAcceptable(
        f"the qcow2 image is damaged or truncated: qemu-img check finds {found} errors in it"
    )
