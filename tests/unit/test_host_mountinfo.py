"""mountinfo as the kernel writes it, for any path."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shorthorn.host import mountinfo


def kernel_escape(text: str, *, special: bytes = b" \t\n\\#") -> bytes:
    r"""Write a name as seq_escape() does: each special byte as \ and three octal digits."""
    return b"".join(
        b"\\%03o" % byte if byte in special else bytes([byte]) for byte in os.fsencode(text)
    )


names = st.binary(min_size=1, max_size=20).map(
    lambda data: os.fsdecode(data.replace(b"\0", b"?").replace(b"/", b"_"))
)
paths = st.lists(names.filter(lambda n: n not in (".", "..")), max_size=4).map(
    lambda parts: "/" + "/".join(parts)
)


@given(target=paths, root=paths, source=paths, tags=st.lists(st.sampled_from(["shared:1", "x:2"])))
def test_every_path_is_read_back_as_it_is(
    target: str, root: str, source: str, tags: list[str]
) -> None:
    line = b" ".join(
        [
            *(b"36", b"35", b"98:0", kernel_escape(root), kernel_escape(target), b"ro,noatime"),
            *(tag.encode() for tag in tags),
            *(b"-", b"ext3", kernel_escape(source), b"rw,errors=continue"),
        ]
    )

    (mount,) = mountinfo.parse(line + b"\n")

    assert mount.target == Path(target)
    assert (mount.root, mount.source, mount.fs_type) == (root, source, "ext3")
    assert (mount.mount_id, mount.parent_id, mount.device_number) == (36, 35, (98, 0))
    assert mount.options == ("ro", "noatime")
    assert mount.super_options == ("rw", "errors=continue")
    assert mount.is_read_only


@given(st.binary(max_size=80))
def test_what_is_not_mountinfo_is_refused_and_nothing_else(data: bytes) -> None:
    try:
        mountinfo.parse(data)
    except ValueError:
        return
    assert all(b" - " in line for line in data.split(b"\n") if line)


def test_the_lines_of_the_manual_page_are_understood() -> None:
    text = (
        b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n"
        b"37 36 0:45 / /a\\040b rw shared:2 propagate_from:1 - tmpfs none rw\n"
    )
    first, second = mountinfo.parse(text)
    assert not first.is_read_only
    assert second.target == Path("/a b")
    assert second.device_number == (0, 45)


def test_our_own_mounts_are_read_and_the_root_is_found() -> None:
    found = mountinfo.find_mount(Path("/"))
    assert found is not None
    assert mountinfo.mount_of_path(Path("/")).mount_id == found.mount_id
    assert mountinfo.mount_of_path(Path("/proc/self")).fs_type == "proc"
    assert mountinfo.find_mount(Path("/proc/self")) is None
    with pytest.raises(FileNotFoundError):
        mountinfo.mount_of_path(Path("/no/such/path"))
