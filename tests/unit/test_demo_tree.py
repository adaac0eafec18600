"""The comparison of trees can fail: each property of a real file, broken, is named."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from shorthorn.demo import tree, tree_source
from shorthorn.demo.tree import compare, read_tree
from shorthorn.demo.tree_source import Bounds


@pytest.fixture
def original(tmp_path: Path) -> Path:
    root = tmp_path / "original"
    (root / "directory").mkdir(parents=True)
    (root / "file").write_bytes(b"content of some length")
    (root / "other").write_bytes(b"content of some length")
    (root / "directory" / "linked").write_text("one file")
    os.link(root / "directory" / "linked", root / "twice")
    (root / "symlink").symlink_to("file")
    os.setxattr(root / "file", "user.colour", b"red")
    for path in (root / "directory", root):
        os.utime(path, ns=(1_000_000_000, 2_000_000_123))
    return root


@pytest.fixture
def copy(original: Path, tmp_path: Path) -> Path:
    """A copy that differs in nothing; hard links included."""
    root = tmp_path / "copy"
    shutil.copytree(original, root, symlinks=True)
    (root / "twice").unlink()
    os.link(root / "directory" / "linked", root / "twice")
    for path in (root / "directory", root):
        os.utime(path, ns=(1_000_000_000, 2_000_000_123))
    return root


def flip_a_bit(root: Path) -> None:
    path = root / "file"
    times = path.stat()
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def retarget(root: Path) -> None:
    times = (root / "symlink").lstat()
    (root / "symlink").unlink()
    (root / "symlink").symlink_to("othe")
    ns = (times.st_atime_ns, times.st_mtime_ns)
    os.utime(root / "symlink", ns=ns, follow_symlinks=False)


def part_links(root: Path) -> None:
    times = (root / "twice").stat()
    (root / "twice").unlink()
    shutil.copy2(root / "directory" / "linked", root / "twice")
    os.utime(root / "twice", ns=(times.st_atime_ns, times.st_mtime_ns))


def later(path: Path) -> None:
    times = path.stat()
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns + 1))


BROKEN: dict[str, tuple[Callable[[Path], object], set[tuple[str, str]]]] = {
    "one bit of content": (flip_a_bit, {("file", "content")}),
    "mode": (lambda root: (root / "file").chmod(0o4755), {("file", "mode")}),
    "owner": (lambda root: os.chown(root / "file", 1234, -1), {("file", "owner")}),
    "group": (lambda root: os.chown(root / "file", -1, 1234), {("file", "owner")}),
    "a nanosecond of time": (lambda root: later(root / "file"), {("file", "mtime_ns")}),
    "a directory's time": (lambda root: later(root / "directory"), {("directory", "mtime_ns")}),
    "the root's mode": (lambda root: root.chmod(0o700), {(".", "mode")}),
    "a link's target": (retarget, {("symlink", "content")}),
    "hard links parted": (part_links, {("directory/linked", "same_as")}),
    "an attribute's value": (
        lambda root: os.setxattr(root / "file", "user.colour", b"reD"),
        {("file", "xattrs")},
    ),
    "an attribute lost": (
        lambda root: os.removexattr(root / "file", "user.colour"),
        {("file", "xattrs")},
    ),
    "a file lost": (lambda root: (root / "other").unlink(), {("other", "missing")}),
    "a file too many": (lambda root: (root / "new").touch(), {("new", "unexpected")}),
}


def test_a_true_copy_has_no_differences(original, copy):
    assert compare(read_tree(original), read_tree(copy)) == []


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_copy_is_told_apart_by_exactly_what_is_broken(original, copy, name):
    damage, expected = BROKEN[name]
    damage(copy)
    # Adding and removing names changes their directory's time as well.
    os.utime(copy, ns=(1_000_000_000, 2_000_000_123))
    found = compare(read_tree(original), read_tree(copy))
    assert {(difference.path, difference.what) for difference in found} == expected
    assert all(difference.path in str(difference) for difference in found)


def test_a_file_that_became_a_directory_is_told(original, copy):
    (copy / "other").unlink()
    (copy / "other").mkdir()
    assert ("other", "kind") in {
        (d.path, d.what) for d in compare(read_tree(original), read_tree(copy))
    }


def test_only_names_directly_below_the_root_are_skipped(original):
    (original / "directory" / "journal").mkdir()
    (original / "journal").mkdir()
    paths = read_tree(original, skip={"journal"}).entries
    assert "journal" not in paths
    assert "directory/journal" in paths


def test_what_is_filled_in_is_counted_and_read_back_equal(tmp_path):
    source = tmp_path / "source"
    (source / "below").mkdir(parents=True)
    for number in range(10):
        (source / "below" / f"{number}").write_bytes(bytes(1000))
    root = tmp_path / "root"
    root.mkdir()
    copied = tree_source.fill(root, [source], Bounds(content_bytes=1 << 20, file_count=100))
    assert (copied.file_count, copied.content_bytes, copied.sources) == (10, 10_000, [source])
    place = root / tree_source.MACHINE / source.relative_to("/")
    assert compare(read_tree(source), read_tree(place)) == []


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [(Bounds(1 << 20, 4), 4), (Bounds(3500, 100), 3)],
)
def test_no_more_is_copied_than_the_bounds_allow(tmp_path, bounds, expected):
    source, root = tmp_path / "source", tmp_path / "root"
    source.mkdir()
    root.mkdir()
    for number in range(10):
        (source / f"{number}").write_bytes(bytes(1000))
    assert tree_source.fill(root, [source], bounds).file_count == expected


def test_a_directory_copied_already_is_left_out_of_the_one_that_holds_it(tmp_path):
    source, root = tmp_path / "source", tmp_path / "root"
    (source / "below").mkdir(parents=True)
    (source / "below" / "file").write_bytes(bytes(1000))
    (source / "below" / "link").symlink_to("file")
    (source / "beside").write_bytes(bytes(1000))
    root.mkdir()
    copied = tree_source.fill(root, [source / "below", source], Bounds(1 << 20, 100))
    assert (copied.file_count, copied.content_bytes) == (3, 2000)
    place = root / tree_source.MACHINE / source.relative_to("/")
    assert compare(read_tree(source), read_tree(place)) == []


def test_nothing_to_copy_is_said(tmp_path):
    with pytest.raises(tree_source.NothingToCopy, match="no files below"):
        tree_source.fill(tmp_path, [tmp_path / "absent"], Bounds(1, 1))


def test_the_rarities_are_what_a_careless_copy_loses(tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").touch()
    root = tmp_path / "root"
    root.mkdir()
    tree_source.fill(root, [tmp_path / "source"], Bounds(1 << 20, 10))
    found = read_tree(root / tree_source.RARITIES).entries
    assert {entry.kind for entry in found.values()} == {"directory", "file", "fifo", "symlink"}
    assert found["setuid"].mode == "4711"
    assert found["setuid"].owner == (12345, 54321)
    assert found["linked twice"].same_as == "linked once"
    assert found["old"].mtime_ns % 1000 == 789
    assert found["old"].xattrs
    sparse = (root / tree_source.RARITIES / "sparse").stat()
    assert sparse.st_blocks * 512 < sparse.st_size


def test_changes_after_the_snapshot_are_seen_by_the_comparison(tmp_path):
    (tmp_path / "source").mkdir()
    for number in range(20):
        (tmp_path / "source" / f"{number}").write_text("the very same text in each of them")
    root = tmp_path / "root"
    root.mkdir()
    tree_source.fill(root, [tmp_path / "source"], Bounds(1 << 20, 100))
    before = read_tree(root)
    tree_source.change(root)
    found = {difference.what for difference in compare(before, read_tree(root))}
    assert {"content", "mode", "missing", "unexpected"} <= found


def test_an_empty_tree_has_only_its_root(tmp_path):
    found = tree.read_tree(tmp_path)
    assert (found.file_count, found.content_bytes) == (1, 0)
