"""What is mounted where.

Owns reading /proc/self/mountinfo. Must never mount. Called by `host.mounts`, `host.freeze` and the
adapters that ask what a volume's device is used for.

Source: proc_pid_mountinfo(5): `36 35 98:0 /root /mnt opts [tags] - ext3 /dev/root rw`.
"""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass
from pathlib import Path

_MOUNTINFO = Path("/proc/self/mountinfo")
_ESCAPE = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo."""

    mount_id: int
    parent_id: int
    #: (major, minor) of the file system: of its block device, or an anonymous number (btrfs)
    device_number: tuple[int, int]
    #: the directory of the file system that is visible here; not / for bind mounts of a part
    root: str
    target: Path
    options: tuple[str, ...]
    fs_type: str
    source: str
    super_options: tuple[str, ...]

    @property
    def is_read_only(self) -> bool:
        """Whether this mount, or the file system as a whole, refuses writes."""
        return "ro" in self.options or "ro" in self.super_options


def parse(text: bytes) -> list[Mount]:
    """Parse mountinfo, in the kernel's order: of two mounts on one target the later is on top.

    Raises: ValueError: a line that proc_pid_mountinfo(5) does not allow.
    """
    return [_parse_line(line) for line in text.split(b"\n") if line]


def _parse_line(line: bytes) -> Mount:
    head, separator, tail = line.partition(b" - ")
    first, last = head.split(b" "), tail.split(b" ")
    if not separator or len(first) < 6 or len(last) < 3:
        raise ValueError(f"not a line of mountinfo: {line!r}")
    major, _, minor = first[2].partition(b":")
    return Mount(
        mount_id=int(first[0]),
        parent_id=int(first[1]),
        device_number=(int(major), int(minor)),
        root=_unescape(first[3]),
        target=Path(_unescape(first[4])),
        options=_options(first[5]),
        fs_type=_unescape(last[0]),
        source=_unescape(last[1]),
        super_options=_options(last[2]),
    )


def _options(field: bytes) -> tuple[str, ...]:
    return tuple(_unescape(option) for option in field.split(b","))


def _unescape(field: bytes) -> str:
    r"""Undo the kernel's escapes: space, tab, newline, backslash and # are written as \ooo."""
    return os.fsdecode(_ESCAPE.sub(lambda found: bytes([int(found[1], 8) & 0xFF]), field))


def read_mounts() -> list[Mount]:
    """Return every mount of our mount namespace."""
    return parse(_MOUNTINFO.read_bytes())


def find_mount(target: Path) -> Mount | None:
    """Return the topmost mount at exactly `target`, or None. Symbolic links are resolved."""
    real = Path(os.path.realpath(target))
    return next((mount for mount in reversed(read_mounts()) if mount.target == real), None)


def mount_of_path(path: Path) -> Mount:
    """Return the mount that `path` lies on.

    Raises: FileNotFoundError: no such path, or its mount has gone while we looked (umount -l does
        not wait for our descriptor).
    """
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        # The kernel's own answer; comparing paths would be fooled by mounts that hide others.
        facts = Path(f"/proc/self/fdinfo/{descriptor}").read_text()
        mount_id = int(facts.partition("mnt_id:")[2].split(None, 1)[0])
        found = next((mount for mount in read_mounts() if mount.mount_id == mount_id), None)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, "its mount has gone", str(path))
        return found
    finally:
        os.close(descriptor)


def mounts_of_device(device: Path) -> list[Mount]:
    """Return every mount of the file system on a block device, bind mounts included.

    A btrfs shows an anonymous number instead of its device's, and names as source whatever device
    path it was mounted by; it is found by the number behind that path.
    """
    number = os.stat(device).st_rdev
    wanted = (os.major(number), os.minor(number))
    return [m for m in read_mounts() if m.device_number == wanted or _source_is(m, number)]


def _source_is(mount: Mount, number: int) -> bool:
    if mount.device_number[0] != 0 or not mount.source.startswith("/"):
        return False
    try:
        return os.stat(mount.source).st_rdev == number
    except OSError:
        return False
