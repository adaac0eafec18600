"""Where things lie in a pool.

Owns every path below the pool directory, and the check that no name leads out of it. Must never
touch the disk. Called by the other modules of `engines` alone: everybody else gets paths from
records.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shorthorn.domain.errors import InvalidArgument
from shorthorn.domain.names import is_object_name, problem_of_name

if TYPE_CHECKING:
    from pathlib import Path

    from shorthorn.domain.models import ImageKey

VOLUME_DATA = "volume.raw"
VOLUME_RECORD = "volume.json"
SNAPSHOT_DATA = "snapshot.raw"
SNAPSHOT_RECORD = "snapshot.json"
IMAGE_ARTIFACT = "artifact"
IMAGE_BASE = "base.raw"
IMAGE_RECORD = "image.json"
#: Journal of a begun export, in its staging directory.
EXPORT_RECORD = "export.json"


def is_name(name: str) -> bool:
    """Return whether `name` can be an object of a pool. What cannot be one is simply not there.

    An object's name is a sound directory's, too: no separator, no leading dot, under 255 bytes.
    """
    return is_object_name(name)


def check_name(field: str, name: str) -> str:
    """Return `name`. Raises InvalidArgument naming `field` where it cannot name an object."""
    if not is_name(name):
        raise InvalidArgument(field, f"{name!r} cannot name a directory: {problem_of_name(name)}")
    return name


def check_key(key: ImageKey) -> ImageKey:
    """Return `key`. Raises InvalidArgument where name or uuid cannot name a directory."""
    check_name("image", key.name)
    check_name("image uuid", key.uuid)
    return key


def is_key(key: ImageKey) -> bool:
    """Return whether `key` can be an image of a pool."""
    return is_name(key.name) and is_name(key.uuid)


@dataclass(frozen=True, slots=True)
class Layout:
    """The directories of the pool at `root`; names given to its methods were checked."""

    root: Path

    @property
    def record(self) -> Path:
        return self.root / "pool.json"

    @property
    def volumes(self) -> Path:
        return self.root / "volumes"

    @property
    def snapshots(self) -> Path:
        return self.root / "snapshots"

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def staging(self) -> Path:
        return self.root / "staging"

    @property
    def staged_images(self) -> Path:
        return self.staging / "images"

    @property
    def trash(self) -> Path:
        return self.staging / "trash"

    @property
    def staged_records(self) -> Path:
        return self.staging / "records"

    def volume(self, volume_id: str) -> Path:
        return self.volumes / check_name("volume_id", volume_id)

    def snapshot(self, snapshot_id: str) -> Path:
        return self.snapshots / check_name("snapshot_id", snapshot_id)

    def image(self, key: ImageKey) -> Path:
        check_key(key)
        return self.images / key.name / key.uuid

    def staged(self, committed: Path) -> Path:
        """Return where `committed` is built: the same path, below `staging/`."""
        return self.staging / committed.relative_to(self.root)

    def discarded(self, committed: Path) -> Path:
        """Return where `committed` goes to be removed; the same every time, so a retry finds it."""
        relative = str(committed.relative_to(self.root))
        return self.trash / hashlib.sha256(relative.encode()).hexdigest()
