"""What this process knows anyway: our five kinds, as its watches see them.

Owns: look-ups across kinds that pages need (an image's copies, its volumes), and marks that say
whether anything changed. Must never: ask the API server, or show anything to somebody without
`web.access`. Wired by `daemon`; read by pages and event streams.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shorthorn.domain.models import BackingImage, ImageCopy, Pool, Snapshot, Volume
from shorthorn.domain.ports import Registry


@dataclass(frozen=True)
class Watched:
    """The registries of a program that watches everything."""

    images: Registry[BackingImage]
    copies: Registry[ImageCopy]
    volumes: Registry[Volume]
    snapshots: Registry[Snapshot]
    pools: Registry[Pool]

    def copies_by_image(self) -> Mapping[str, list[ImageCopy]]:
        found: dict[str, list[ImageCopy]] = defaultdict(list)
        for copy in self.copies.cached():
            found[copy.spec.image].append(copy)
        return found

    def copies_of(self, image: str) -> list[ImageCopy]:
        return [copy for copy in self.copies.cached() if copy.spec.image == image]

    def volumes_of(self, image: str) -> list[Volume]:
        """Return the volumes that were cloned from an image of this name."""
        return [v for v in self.volumes.cached() if v.spec.source.image == image]


def mark_of(*kinds: Iterable[Any]) -> str:
    """Return a text that differs whenever an object of these kinds came, changed or went.

    Resource versions only grow, so how many there are and the newest of them say it all; where
    they are no numbers, every change of any of them shows.
    """
    return "-".join(_mark(list(objects)) for objects in kinds)


def _mark(objects: Sequence[Any]) -> str:
    versions = [obj.meta.resource_version for obj in objects]
    if all(version.isdecimal() for version in versions):
        return f"{len(versions)}.{max(map(int, versions), default=0)}"
    return f"{len(versions)}.{hash(tuple(versions)) & 0xFFFFFFFF:x}"
