"""What is committed in a pool, found and listed.

Owns reading one kind's records, and the memory that keeps lists cheap: a record is read again only
when its file is another one. Must never hide that a record cannot be read from whoever asks for it
by name. Called by the engine's volumes, snapshots and images.
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from shorthorn.domain.errors import Corrupt, DomainError
from shorthorn.engines import records
from shorthorn.kit.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

Json = TypeVar("Json", bound=records.Stored)
Record = TypeVar("Record")

_logger = logging.getLogger(__name__)


class Catalogue(Generic[Json, Record]):
    """The objects of one kind; `translate` makes the domain's value of a file and its directory."""

    def __init__(
        self,
        kind: str,
        record_name: str,
        shape: type[Json],
        translate: Callable[[Json, Path], Record],
        directories: Callable[[], Iterable[str]],
    ) -> None:
        self._kind = kind
        self._record_name = record_name
        self._shape = shape
        self._translate = translate
        self._directories = directories
        self._known: dict[str, tuple[tuple[int, int], Record | None]] = {}

    def find(self, directory: Path) -> Record | None:
        """Return the object in `directory`, or None where there is no such directory.

        Raises: WrongState: its record is of a newer version. Corrupt: it cannot be read.
        """
        found = records.read(directory / self._record_name, self._shape)
        if found is None and directory.exists():
            # It may have been committed between our two looks; directories come and go whole.
            found = records.read(directory / self._record_name, self._shape)
            if found is None and directory.exists():
                raise Corrupt(self._kind, directory.name, f"{self._record_name} is missing")
        if found is None:
            return None
        return self._translate(found, directory)

    def refuse_newer(self, directory: Path) -> None:
        """Raise WrongState where the record is of a newer version; nothing else matters here."""
        try:
            self.find(directory)
        except Corrupt:
            return

    async def list(self) -> Sequence[Record]:
        """Return all objects, ordered by directory, at one stat(2) each once they are known.

        One that cannot be read is left out and logged once; `find` says what is wrong with it.
        """
        return await in_thread(self._list)

    def _list(self) -> Sequence[Record]:
        known = {path: self._look(path) for path in sorted(self._directories())}
        self._known = {path: entry for path, entry in known.items() if entry is not None}
        return [record for _, record in self._known.values() if record is not None]

    def _look(self, directory: str) -> tuple[tuple[int, int], Record | None] | None:
        # Plain strings: with ten thousand objects, building paths costs five times the stat.
        try:
            status = os.stat(f"{directory}/{self._record_name}")
        except (FileNotFoundError, NotADirectoryError):
            return None
        identity = (status.st_ino, status.st_mtime_ns)
        known = self._known.get(directory)
        if known is not None and known[0] == identity:
            return known
        try:
            return identity, self.find(Path(directory))
        except DomainError as exc:
            _logger.error("%s %s is left out of lists: %s", self._kind, directory, exc)  # noqa: TRY400 - the message says it all
            return identity, None


def subdirectories(parent: Path) -> Sequence[str]:
    """Return the path of every directory in `parent`; none where it has just been removed.

    Read at once: an iterator that somebody leaves half-way would keep the directory open.
    """
    with contextlib.suppress(FileNotFoundError), os.scandir(parent) as entries:
        return [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    return []
