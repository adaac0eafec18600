"""What `test-vol` is filled with: a real directory tree of this machine, and the odd things.

Owns: choosing and copying a bounded part of the machine's files with mode, owner, times and
extended attributes; one directory of rarities (sparse file, hard links, names, modes); and the
changes made after the point in time. Must never: write outside the directory it is given.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

#: Looked for in this order until the bounds are reached; every Debian has the first ones.
CANDIDATES = tuple(
    Path(p)
    for p in ("/usr/share/doc", "/usr/lib/python3", "/usr/lib/python3.11", "/usr/share", "/etc")
)
RARITIES = "rarities"
MACHINE = "machine"

_ADDED = "added-after-the-snapshot"
_CHANGED_FILES = 50
_MARKED_EVERY = 100


class NothingToCopy(Exception):
    """None of the candidates is a directory with files in it."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much is copied at most."""

    content_bytes: int
    file_count: int


@dataclass(slots=True)
class Copied:
    """What was copied from where."""

    sources: list[Path]
    file_count: int = 0
    content_bytes: int = 0

    def is_full(self, bounds: Bounds) -> bool:
        """Whether a bound is reached."""
        return self.content_bytes >= bounds.content_bytes or self.file_count >= bounds.file_count


def fill(root: Path, candidates: Sequence[Path], bounds: Bounds) -> Copied:
    """Copy machine trees below `root` until a bound is reached, and add the rarities. Blocking.

    Raises: NothingToCopy. OSError: the volume is full, say.
    """
    copied = Copied([])
    for source in candidates:
        if copied.is_full(bounds):
            break
        if source.is_dir() and not any(source.is_relative_to(seen) for seen in copied.sources):
            before = copied.file_count
            _copy_tree(source, root / MACHINE / source.relative_to("/"), copied, bounds)
            if copied.file_count > before:
                copied.sources.append(source)
    if not copied.file_count:
        raise NothingToCopy(f"no files below {', '.join(map(str, candidates))}")
    _make_rarities(root / RARITIES)
    return copied


def mark(root: Path) -> int:
    """Give some of the copied files an extended attribute each. Returns how many."""
    files = sorted(p for p in (root / MACHINE).rglob("*") if p.is_file() and not p.is_symlink())
    marked = files[::_MARKED_EVERY]
    for number, path in enumerate(marked):
        os.setxattr(path, "user.shorthorn.number", str(number).encode())
    return len(marked)


def change(root: Path) -> str:
    """Change, remove, add and rename files after the point in time. Returns what was done."""
    files = sorted(p for p in (root / MACHINE).rglob("*") if p.is_file() and not p.is_symlink())
    changed = files[:: max(1, len(files) // _CHANGED_FILES)][:_CHANGED_FILES]
    for number, path in enumerate(changed):
        if number % 5 == 0:
            path.unlink()
        elif number % 5 == 1:
            path.rename(path.with_name(f"{path.name}.renamed"))
        elif number % 5 == 2:
            path.chmod(0o600)
        else:
            with path.open("r+b") as file:
                file.write(b"written after the snapshot")
    (root / _ADDED).write_bytes(os.urandom(1 << 20))
    return f"{len(changed)} of {len(files)} files changed, renamed or removed, one added"


def _copy_tree(source: Path, target: Path, copied: Copied, bounds: Bounds) -> None:
    """Copy files, directories and symbolic links of one file system, parents' times last."""
    _make_directories(source, target)
    directories = [(source, target)]
    for path in _walk(source, copied.sources):
        if copied.is_full(bounds):
            break
        place = target / path.relative_to(source)
        status = path.lstat()
        if stat.S_ISDIR(status.st_mode):
            place.mkdir(exist_ok=True)
            directories.append((path, place))
        elif stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode):
            if status.st_size > bounds.content_bytes - copied.content_bytes:
                continue
            shutil.copy2(path, place, follow_symlinks=False)
            os.chown(place, status.st_uid, status.st_gid, follow_symlinks=False)
            _restore_mode(place, status)
            copied.file_count += 1
            copied.content_bytes += status.st_size if stat.S_ISREG(status.st_mode) else 0
    for path, place in reversed(directories):
        status = path.stat()
        os.chown(place, status.st_uid, status.st_gid)
        shutil.copystat(path, place)


def _make_directories(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    shutil.copystat(source, target)


def _restore_mode(place: Path, status: os.stat_result) -> None:
    if not stat.S_ISLNK(status.st_mode):
        os.chmod(place, stat.S_IMODE(status.st_mode))  # chown has cleared setuid and setgid


def _walk(root: Path, done: Sequence[Path]) -> Iterator[Path]:
    """Yield everything below `root` on its own file system, parents first, in order of name.

    Nothing at or below a directory in `done`: a small machine's bounds are not reached by
    /usr/share/doc, so /usr/share comes later and must not meet the same files again.
    """
    device = root.stat().st_dev
    for directory, names, files in os.walk(root):
        names.sort()
        links = [name for name in names if Path(directory, name).is_symlink()]
        names[:] = [
            name
            for name in names
            if name not in links
            and Path(directory, name) not in done
            and Path(directory, name).stat().st_dev == device
        ]
        for name in [*names, *sorted([*files, *links])]:
            yield Path(directory, name)


def _make_rarities(place: Path) -> None:
    """Make one of everything that a careless copy loses."""
    place.mkdir()
    (place / "empty directory").mkdir()
    (place / "empty").touch()
    (place / "ünïcode, spaces\nand a line break").write_text("a name is bytes\n")
    (place / "dangling").symlink_to("nowhere/at all")
    (place / "linked once").write_bytes(os.urandom(4096))
    os.link(place / "linked once", place / "linked twice")
    os.mkfifo(place / "fifo", 0o622)
    with (place / "sparse").open("wb") as sparse:
        sparse.write(b"begin")
        sparse.seek(16 << 20)
        sparse.write(b"end")
    (place / "setuid").write_text("#!/bin/false\n")
    os.chown(place / "setuid", 12345, 54321)
    (place / "setuid").chmod(0o4711)
    (place / "unreadable").write_text("mode 0000\n")
    (place / "unreadable").chmod(0)
    (place / "old").write_text("from another century\n")
    os.utime(place / "old", ns=(1, 946_684_799_123_456_789))
    os.setxattr(place / "old", "user.shorthorn.rarity", b"an attribute\x00with a zero byte")
    (place / "random").write_bytes(os.urandom(8 << 20))
