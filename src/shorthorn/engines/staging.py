"""How things come to be and go: build in `staging/`, rename, sync.

Owns the staging directory: fresh places to build in, the commit (one rename), removal by way of a
trash, records replaced whole, and the sweep at start. Must never know what a thing is made of.
Called by the other modules of `engines`.

`reached` is told of every durable step, in order. The daemon passes nothing; tests end the process
at a step of their choice.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from shorthorn.domain.models import ImageKey
from shorthorn.engines.layout import is_key
from shorthorn.engines.records import plain
from shorthorn.host import files, mountinfo
from shorthorn.kit.keyed import KeyedLocks
from shorthorn.kit.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from shorthorn.engines.layout import Layout
    from shorthorn.engines.records import Stored

    StepObserver = Callable[[str], None]

DIRECTORY_MODE = 0o700


class Staging:
    """The staging directory of one pool."""

    def __init__(self, layout: Layout, reached: StepObserver = lambda step: None) -> None:
        self._layout = layout
        self.reached = reached
        self._locks: KeyedLocks[str] = KeyedLocks()

    def make_directories(self) -> None:
        """Make what every operation finds in place: on a full disk, deleting must need nothing."""
        for path in (self._layout.staging, *self._standing()):
            path.mkdir(mode=DIRECTORY_MODE, exist_ok=True)

    def _standing(self) -> tuple[Path, ...]:
        layout = self._layout
        staged = (layout.staged(place) for place in (layout.volumes, layout.snapshots))
        return (layout.trash, layout.staged_records, *staged)

    async def begin(self, committed: Path) -> Path:
        """Return a new, empty directory in which `committed` may be built; older remains go."""
        await self.discard(committed)
        staged = self._layout.staged(committed)
        async with self._parents_stay(committed):
            staged.mkdir(mode=DIRECTORY_MODE, parents=True)
        self.reached("staging directory made")
        return staged

    async def ensure(self, committed: Path) -> Path:
        """Return the directory in which `committed` is built, as it is; it survives a power cut."""
        staged = self._layout.staged(committed)
        async with self._parents_stay(committed):
            staged.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
        await self.sync_parents(committed)
        return staged

    async def sync_parents(self, committed: Path) -> None:
        """Make durable that the directory in which `committed` is built is there."""
        directory = self._layout.staged(committed).parent
        while directory != self._layout.root:
            await files.fsync_dir(directory)
            directory = directory.parent

    async def write_record(self, path: Path, content: Stored) -> None:
        """Write a JSON file into a staging directory, durably."""
        await files.write_json_atomic(path, plain(content))
        self.reached(f"{path.name} staged")

    async def replace_record(self, path: Path, content: Stored) -> None:
        """Replace the JSON file of a committed object, durably; nothing else appears beside it.

        State: after an error, or cancelled, the record is the old or the new one.
        """
        fresh = self._layout.staged_records / f"{secrets.token_hex(8)}.json"
        try:
            await files.write_json_atomic(fresh, plain(content))
            self.reached(f"new {path.name} staged")
            await in_thread(fresh.replace, path)
        except BaseException:
            # An image may be deleted while its checksum is written down; only a start sweeps.
            fresh.unlink(missing_ok=True)
            raise
        await files.fsync_dir(path.parent)
        self.reached(f"{path.name} replaced")

    async def commit(self, committed: Path) -> None:
        """Move what was built for `committed` to its place: from here on it exists."""
        staged = self._layout.staged(committed)
        await files.fsync_dir(staged)
        self.reached("staging directory synced")
        async with self._parents_stay(committed):
            if not committed.parent.is_dir():
                committed.parent.mkdir(mode=DIRECTORY_MODE)
                await files.fsync_dir(committed.parent.parent)
                self.reached("parent directory made")
            await files.commit_rename(staged, committed)
            self.reached("committed")
            self._remove_empty_parents(committed)

    async def discard(self, committed: Path) -> None:
        """Make what is half made of `committed` absent; missing is fine. State: as for `remove`."""
        await self._throw_away(self._layout.staged(committed), committed)

    async def remove(self, committed: Path) -> None:
        """Make `committed` absent at once, then give its blocks back; missing is fine.

        State: after an error or a crash it is either still there or gone; what is left of it lies
        in the trash, which a retry or the next start empties.
        """
        await self._throw_away(committed, committed)

    async def _throw_away(self, path: Path, committed: Path) -> None:
        # One rename first: a directory with half of its files would look like another thing.
        discarded = self._layout.discarded(path)
        await _remove(discarded)
        async with self._parents_stay(committed):
            is_there = path.exists()
            if is_there:
                await in_thread(_refuse_mounts, path)
                await files.commit_rename(path, discarded)
                self.reached("moved to the trash")
            self._remove_empty_parents(committed)
        if is_there:
            await files.remove_tree(discarded)
            self.reached("trash emptied")

    async def sweep(self) -> None:
        """Remove what nobody can go on with: everything but image directories with a journal.

        A journal is any JSON file: a begun export's, or the one that a download resumes from.
        """
        standing = self._standing()
        for entry in sorted(self._layout.staging.iterdir()):
            if entry in standing and entry.is_dir() and not entry.is_symlink():
                # Only emptied: on a full disk it could not be made again.
                for remains in sorted(entry.iterdir()):
                    await files.remove_tree(remains)
            elif entry != self._layout.staged_images:
                await files.remove_tree(entry)
        for directory in _image_directories(self._layout.staged_images):
            if not any(directory.glob("[!.]*.json")):
                await files.remove_tree(directory)
        for parent in (self._layout.staged_images, self._layout.images):
            await in_thread(_remove_empty, parent)
        self.make_directories()

    @contextlib.asynccontextmanager
    async def _parents_stay(self, committed: Path) -> AsyncIterator[None]:
        """Keep others from removing the directory of an image's name, which its images share."""
        shared = [str(committed.parent)] if committed.parent.parent != self._layout.root else []
        async with self._locks.hold(shared):
            yield

    def _remove_empty_parents(self, committed: Path) -> None:
        if committed.parent.parent != self._layout.root:
            for parent in (self._layout.staged(committed).parent, committed.parent):
                with contextlib.suppress(OSError):  # another image is there, or nothing at all
                    parent.rmdir()

    def list_images(self) -> list[ImageKey]:
        """Return the images of which something half made is kept, to look for orphans."""
        found = _image_directories(self._layout.staged_images)
        keys = (ImageKey(directory.parent.name, directory.name) for directory in found)
        return [key for key in keys if is_key(key)]


def _refuse_mounts(path: Path) -> None:
    """Raise TreeHoldsMount while the tree is still in its place."""
    real = Path(os.path.realpath(path))
    for mount in mountinfo.read_mounts():
        if mount.target.is_relative_to(real):
            raise files.TreeHoldsMount(mount.target)


async def _remove(path: Path) -> None:
    """Remove a tree whose parent may be missing, too."""
    with contextlib.suppress(FileNotFoundError):
        await files.remove_tree(path)


def _image_directories(parent: Path) -> Iterator[Path]:
    """Yield the directories <name>/<uuid> below `parent`, in order."""
    if parent.is_dir():
        yield from (path for path in sorted(parent.glob("*/*")) if path.is_dir())


def _remove_empty(parent: Path) -> None:
    """Remove directories of names whose last image went."""
    if parent.is_dir():
        for name in parent.iterdir():
            with contextlib.suppress(OSError):  # it holds something
                name.rmdir()
