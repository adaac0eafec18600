"""Whether `base.raw` still is the disk in the artifact.

Owns: the comparison of the two, on the disk. Volumes are made of `base.raw`, and only the
artifact has a checksum: so the artifact is hashed first, and says by itself what the other must be,
also of images made by earlier versions. Must never change either. Called by `images.checksum`.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import TYPE_CHECKING

from shorthorn.domain.errors import Unavailable
from shorthorn.domain.models import ImageFormat, Progress
from shorthorn.host import qemu_img
from shorthorn.host.errors import HostError
from shorthorn.kit.process import CommandMissing
from shorthorn.kit.threads import in_thread

if TYPE_CHECKING:
    from shorthorn.domain.models import ImageRecord
    from shorthorn.domain.ports import ReportProgress

#: strerror's word for EIO in LC_ALL=C. QEMU says it of a damaged qcow2 too, which the artifact is
#: not: it was found whole, and has been converted once.
_UNREADABLE = "Input/output error"


async def base_problem(record: ImageRecord, report: ReportProgress) -> str:
    """Return in words what is wrong with `base.raw`; empty: it is the disk in the artifact.

    The artifact must have been found whole. Where both are one file nothing is read. Else both are,
    from the disk, at low priority.
    Raises: OSError: one of them cannot be read. Unavailable: it cannot be told at this moment.
    """
    total = record.virtual_size_bytes
    artifact, base = Path(record.artifact_path), Path(record.base_path)
    size_bytes, is_one_file = await in_thread(
        lambda: (base.stat().st_size, base.samefile(artifact))
    )
    if size_bytes != total:
        return f"it has {size_bytes} bytes, the disk in the artifact has {total}"
    if is_one_file:
        return ""
    try:
        is_equal = await qemu_img.compare(
            artifact,
            record.format,
            base,
            ImageFormat.RAW,
            size_bytes=total,
            on_percent=lambda percent: report(
                Progress(int(total * percent / 100), total, "comparing what volumes are made of")
            ),
        )
    except (HostError, CommandMissing) as exc:
        if isinstance(exc, qemu_img.QemuFailed) and _UNREADABLE in exc.problem:
            raise OSError(errno.EIO, f"base.raw: {exc.problem}") from exc
        # The artifact is what it was when it was accepted, so that this says nothing of the image.
        raise Unavailable("the comparison of base.raw with the artifact", str(exc)) from exc
    return "" if is_equal else "it differs from the disk in the artifact, whose checksum is right"
