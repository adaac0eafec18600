"""Directory trees as values, and what differs between two of them.

Owns: reading a tree (type, mode, owner, modification time, size, content hash, link target, hard
links, extended attributes) and comparing two. Must never: write. Its own test breaks each property
of a real tree and has to see it named.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

#: mkfs.ext4 makes it in every new file system.
LOST_AND_FOUND = "lost+found"

_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a tree. `content`: SHA-256 of a file, the target of a symbolic link."""

    kind: str
    mode: str
    owner: tuple[int, int]
    mtime_ns: int
    size_bytes: int
    content: str
    #: the path of the same file that is read first; its own where there are no hard links
    same_as: str
    xattrs: tuple[tuple[str, bytes], ...]


@dataclass(frozen=True, slots=True)
class Tree:
    """A tree by relative path. The root's own entry has the path "."."""

    entries: Mapping[str, Entry]

    @property
    def file_count(self) -> int:
        """Number of entries of every kind."""
        return len(self.entries)

    @property
    def content_bytes(self) -> int:
        """Bytes of content that were read."""
        return sum(e.size_bytes for e in self.entries.values() if e.kind == "file")


@dataclass(frozen=True, slots=True)
class Difference:
    """One property of one path that is not as it was."""

    path: str
    what: str
    expected: object
    found: object

    def __str__(self) -> str:
        if self.what == "missing" or self.what == "unexpected":
            return f"{self.path}: {self.what}"
        return f"{self.path}: {self.what} was {self.expected!r}, is {self.found!r}"


def read_tree(root: Path, *, skip: Collection[str] = ()) -> Tree:
    """Read a whole tree; `skip` names entries directly below the root that are left out.

    Blocking: hashes every byte. Raises: OSError: something cannot be read.
    """
    entries: dict[str, Entry] = {}
    first_path: dict[int, str] = {}
    for path in _walk(root, {LOST_AND_FOUND, *skip}):
        name = str(path.relative_to(root))
        entries[name] = _read_entry(path, name, first_path)
    return Tree(entries)


def compare(expected: Tree, found: Tree) -> list[Difference]:
    """Return every difference, by path; an empty list means that the trees are equal."""
    differences: list[Difference] = []
    for path in sorted({*expected.entries, *found.entries}):
        old, new = expected.entries.get(path), found.entries.get(path)
        if old is None:
            differences.append(Difference(path, "unexpected", None, new))
        elif new is None:
            differences.append(Difference(path, "missing", old, None))
        elif old != new:
            differences += _compare_entries(path, old, new)
    return differences


def _compare_entries(path: str, old: Entry, new: Entry) -> Iterator[Difference]:
    for field in fields(Entry):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if before != after:
            yield Difference(path, field.name, before, after)


def _walk(root: Path, skipped: Collection[str]) -> Iterator[Path]:
    """Yield the root and everything below, parents first, in order of name."""
    yield root
    waiting = [root]
    while waiting:
        directory = waiting.pop()
        with os.scandir(directory) as found:
            children = sorted(found, key=lambda child: child.name)
        for child in children:
            if directory == root and child.name in skipped:
                continue
            yield Path(child.path)
            if child.is_dir(follow_symlinks=False):
                waiting.append(Path(child.path))


def _read_entry(path: Path, name: str, first_path: dict[int, str]) -> Entry:
    status = path.lstat()
    kind = _KINDS[stat.S_IFMT(status.st_mode)]
    same_as = name
    if kind != "directory" and status.st_nlink > 1:
        same_as = first_path.setdefault(status.st_ino, name)
    return Entry(
        kind=kind,
        mode=f"{stat.S_IMODE(status.st_mode):04o}",
        owner=(status.st_uid, status.st_gid),
        mtime_ns=status.st_mtime_ns,
        # A directory's size is the file system's matter: it grows and never shrinks.
        size_bytes=0 if kind == "directory" else status.st_size,
        content=_content(path, kind),
        same_as=same_as,
        xattrs=_xattrs(path),
    )


def _content(path: Path, kind: str) -> str:
    if kind == "symlink":
        return os.readlink(path)
    if kind != "file":
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _xattrs(path: Path) -> tuple[tuple[str, bytes], ...]:
    names = sorted(os.listxattr(path, follow_symlinks=False))
    return tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in names)
