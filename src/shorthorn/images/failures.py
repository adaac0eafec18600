"""What goes wrong while an image is brought here, in the domain's words.

Owns the translation of the lower parts' errors, and what then becomes of the staging directory.
Must never hide the sentence that says what is wrong. Called by `images.fetcher` and
`images.peer_fetcher`, around everything they do.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING

from shorthorn.domain.errors import ImageFailed, ImageRejected, NoSpace, Unavailable
from shorthorn.host import files
from shorthorn.host.errors import HostError
from shorthorn.host.qemu_img import QemuFailed, QemuTimedOut
from shorthorn.host.sandbox import SandboxUnavailable
from shorthorn.images.base_image import BASE_NAME
from shorthorn.images.download import ARTIFACT_NAME
from shorthorn.images.download_journal import JOURNAL_NAME
from shorthorn.images.http_source import SourceRefused, SourceTroubled
from shorthorn.images.refusal import NotAcceptable
from shorthorn.kit.process import CommandMissing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextlib.contextmanager
def translated(image: str, pool_name: str, staging: Path) -> Iterator[None]:
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
            raise no_space(pool_name, staging) from exc
        if exc.errno == errno.EFBIG:
            raise ImageRejected(image, "its disk is larger than a file of the pool can be") from exc
        raise Unavailable(f"pool {pool_name}", str(exc)) from exc
    except HostError as exc:
        raise Unavailable(f"pool {pool_name}", str(exc)) from exc


def no_space(pool_name: str, staging: Path) -> NoSpace:
    """Describe a full pool; what is needed is what was promised or else what is there already."""
    usage = os.statvfs(staging)
    taken = allocated_bytes(staging / ARTIFACT_NAME)
    return NoSpace(pool_name, taken + 1, usage.f_bavail * usage.f_frsize)


def allocated_bytes(path: Path) -> int:
    """Return what a file takes on its disk; 0 where it is missing."""
    return path.stat().st_blocks * 512 if path.exists() else 0


async def discard(staging: Path) -> None:
    """Remove what is of no use any more, the journal last: without it the rest is swept."""
    for name in (BASE_NAME, ARTIFACT_NAME, JOURNAL_NAME):
        await files.remove_tree(staging / name)
