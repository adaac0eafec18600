"""What the world says, in the domain's words.

Owns the translation of host errors and errnos at the engine's boundary. Must never swallow one.
Called by the engine's operations, around everything that touches the disk.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING

from shorthorn.domain.errors import InUse, InvalidArgument, NoSpace, Unavailable
from shorthorn.host.errors import HostError
from shorthorn.host.files import TreeHoldsMount
from shorthorn.host.sparse_copy import FileInUse
from shorthorn.kit.process import CommandFailed, CommandMissing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from shorthorn.engines.staging import Staging

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


@contextlib.asynccontextmanager
async def translated(
    root: Path, kind: str, name: str, *, needed_bytes: int = 0
) -> AsyncIterator[None]:
    """Raise domain errors for what the host raises in the body, which works on `kind` `name`.

    Args: root: the pool, named in messages. needed_bytes: what the body may allocate, as far as it
        can be known beforehand; clones need metadata only.
    """
    try:
        yield
    except OSError as exc:
        if exc.errno in _FULL:
            raise NoSpace(str(root), needed_bytes, free_bytes(root)) from exc
        if exc.errno == errno.EFBIG:
            problem = f"larger than a file can be in pool {root}"
            raise InvalidArgument("capacity_bytes", problem) from exc
        raise Unavailable(f"pool {root}", f"{kind} {name}: {exc}") from exc
    except FileInUse as exc:
        detail = "a process that has its file open for writing, and this pool cannot share blocks"
        raise InUse(kind, name, detail) from exc
    except TreeHoldsMount as exc:
        raise InUse(kind, name, f"a mount at {exc.path}") from exc
    except (HostError, CommandFailed, CommandMissing) as exc:
        raise Unavailable(f"pool {root}", f"{kind} {name}: {exc}") from exc


def free_bytes(root: Path) -> int:
    """Return what statvfs says is available on the pool."""
    status = os.statvfs(root)
    return status.f_bavail * status.f_frsize


@contextlib.asynccontextmanager
async def cleaned_up(staging: Staging, committed: Path) -> AsyncIterator[None]:
    """Remove what is half made of `committed` where the body fails or is cancelled.

    Optional by design: after kill -9 the next operation on it, or the next start, does the same.
    """
    try:
        yield
    except BaseException as exc:
        try:
            await staging.discard(committed)
        except Exception as problem:  # the first error is the one to hear of
            exc.add_note(f"and what was half made could not be removed: {problem}")
        raise
