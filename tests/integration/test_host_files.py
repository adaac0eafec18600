"""Durable writes, renames and removal."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest
from tests.integration.storage import MIB

from shorthorn.host import bind_mounts, extents, files, mounts

if TYPE_CHECKING:
    from pathlib import Path


async def test_json_replaces_the_old_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    await files.write_json_atomic(path, {"b": 1, "a": "ü"})
    await files.write_json_atomic(path, {"b": 2})

    assert json.loads(path.read_text()) == {"b": 2}
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["record.json"]


async def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    await files.write_json_atomic(path, {"a": 1})
    with pytest.raises(TypeError):
        await files.write_json_atomic(path, {"a": object()})
    full = tmp_path / "full"
    full.mkdir()
    await mounts.mount("tmpfs", full, "tmpfs", options=["size=64k"])
    try:
        await files.write_json_atomic(full / "record.json", {"a": 1})
        with pytest.raises(OSError, match="No space"):
            await files.write_json_atomic(full / "record.json", {"a": "x" * 100_000})
        assert json.loads((full / "record.json").read_text()) == {"a": 1}
        assert [entry.name for entry in full.iterdir()] == ["record.json"]
    finally:
        await mounts.unmount(full)
    assert json.loads(path.read_text()) == {"a": 1}


async def test_a_commit_moves_a_directory_and_never_replaces_one(pool_dir: Path) -> None:
    staging, final = pool_dir / "staging", pool_dir / "final"
    for name in ("one", "two"):
        (staging / name).mkdir(parents=True)
        (staging / name / "file").write_text(name)
    final.mkdir()

    await files.commit_rename(staging / "one", final / "thing")
    with pytest.raises(FileExistsError) as caught:
        await files.commit_rename(staging / "two", final / "thing")

    assert caught.value.filename2 == str(final / "thing")
    assert (final / "thing" / "file").read_text() == "one"
    assert (staging / "two" / "file").read_text() == "two"
    with pytest.raises(FileNotFoundError):
        await files.commit_rename(staging / "one", final / "other")


async def test_a_file_grows_by_a_hole_and_is_never_cut(pool_dir: Path) -> None:
    path = pool_dir / "volume"
    path.write_bytes(b"x" * 4096)
    await files.grow_file(path, 8 * MIB)
    await files.grow_file(path, 8 * MIB)

    assert path.stat().st_size == 8 * MIB
    assert (await extents.usage(path)).allocated_bytes == 4096
    with pytest.raises(ValueError, match="not cut"):
        await files.grow_file(path, 4096)
    assert path.stat().st_size == 8 * MIB


async def test_a_punched_range_reads_as_zeros_and_takes_no_space(pool_dir: Path) -> None:
    path = pool_dir / "volume"
    path.write_bytes(b"x" * MIB)
    await files.punch_hole(path, offset_bytes=4096, length_bytes=MIB - 8192)

    assert path.read_bytes() == b"x" * 4096 + bytes(MIB - 8192) + b"x" * 4096
    assert (await extents.usage(path)).allocated_bytes == 8192


async def test_a_tree_is_removed_without_following_links(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("content")
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "b" / "file").write_text("content")
    (tree / "a" / "link").symlink_to(outside)
    os.mkfifo(tree / "fifo")

    await files.remove_tree(tree)
    await files.remove_tree(tree)  # missing is fine

    assert not tree.exists()
    assert (outside / "kept").read_text() == "content"
    await files.remove_tree(outside / "kept")
    assert not (outside / "kept").exists()
    (tmp_path / "dangling").symlink_to(tmp_path / "absent")
    await files.remove_tree(tmp_path / "dangling")
    assert not (tmp_path / "dangling").is_symlink()


@pytest.mark.parametrize("kind", ["another file system", "a bind of the same"])
async def test_removal_never_walks_into_a_mounted_volume(tmp_path: Path, kind: str) -> None:
    tree, volume = tmp_path / "tree", tmp_path / "volume"
    inside = tree / "a" / "mounted"
    inside.mkdir(parents=True)
    volume.mkdir()
    if kind == "another file system":
        await mounts.mount("tmpfs", inside, "tmpfs")
    else:
        await bind_mounts.bind(volume, inside, read_only=False)
    (inside / "kept").write_text("content")
    try:
        with pytest.raises(files.TreeHoldsMount) as caught:
            await files.remove_tree(tree)
        assert caught.value.path == inside
        assert (inside / "kept").read_text() == "content"
        with pytest.raises(files.TreeHoldsMount):
            await files.remove_tree(inside)
        assert (inside / "kept").read_text() == "content"
    finally:
        await mounts.unmount(inside)
    await files.remove_tree(tree)
    assert not tree.exists()


async def test_removal_never_takes_a_file_that_is_mounted_on(tmp_path: Path) -> None:
    tree, device = tmp_path / "tree", tmp_path / "device"
    tree.mkdir()
    device.write_text("content")
    (tree / "node").write_text("")
    await bind_mounts.bind(device, tree / "node", read_only=False)
    try:
        with pytest.raises(files.TreeHoldsMount):
            await files.remove_tree(tree)
    finally:
        await mounts.unmount(tree / "node")
    assert device.read_text() == "content"


async def test_syncs_work_on_files_and_directories(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    await files.fsync_file(tmp_path / "file")
    await files.fsync_dir(tmp_path)
    with pytest.raises(NotADirectoryError):
        await files.fsync_dir(tmp_path / "file")
    with pytest.raises(FileNotFoundError):
        await files.fsync_file(tmp_path / "absent")


def test_a_file_is_the_same_under_another_name(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("")
    (tmp_path / "other").write_text("")
    (tmp_path / "link").hardlink_to(tmp_path / "one")
    identity = files.file_identity(tmp_path / "one")
    assert identity == files.file_identity(tmp_path / "link")
    assert identity != files.file_identity(tmp_path / "other")
