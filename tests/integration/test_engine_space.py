"""What exports and restores cost on the disk, and what happens when it is full."""

from __future__ import annotations

import os
import random
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.integration import storage

from shorthorn.domain.errors import NoSpace
from shorthorn.domain.models import FileUsage, ImageFormat, ImageKey, ImageRecord, VolumeSource
from shorthorn.engines.extent_budget import keep_within_budget
from shorthorn.engines.layout import Layout
from shorthorn.engines.local import LocalEngine
from shorthorn.engines.staging import Staging
from shorthorn.host import extents

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from shorthorn.domain.models import Progress

KIB = 1 << 10
MIB = 1 << 20
BLANK = VolumeSource()
KEY = ImageKey("golden", "u")
FROM_IMAGE = VolumeSource(image=KEY.name, image_uuid=KEY.uuid)
CAPACITY = 160 * MIB


@pytest.fixture
async def engine(pool_dir: Path) -> AsyncIterator[LocalEngine]:
    engine = LocalEngine(pool_dir)
    await engine.open()
    yield engine
    await engine.close()


def ignore(progress: Progress) -> None:
    """Nobody watches."""


def fill_contiguous(path: Path) -> None:
    """Write 64 MiB in one piece."""
    with path.open("r+b") as file:
        for _ in range(8):
            file.write(os.urandom(8 * MIB))
        os.fsync(file.fileno())


def fill_scattered(path: Path) -> None:
    """Write 2,000 blocks of 4 KiB, each apart from the others."""
    blocks = random.Random(1).sample(range(CAPACITY // (64 * KIB)), 2000)
    with path.open("r+b", buffering=0) as file:
        for block in blocks:
            os.pwrite(file.fileno(), os.urandom(4 * KIB), block * 64 * KIB)
        os.fsync(file.fileno())


def allocated(root: Path) -> int:
    subprocess.run(["sync", "--file-system", root], check=True)
    status = os.statvfs(root)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


@pytest.mark.parametrize("kind", list(ImageFormat))
@pytest.mark.parametrize("fill", [fill_contiguous, fill_scattered])
async def test_export_and_restore_share_every_block_of_data(
    engine: LocalEngine, pool_dir: Path, kind: ImageFormat, fill: object
) -> None:
    assert callable(fill)
    volume = await engine.create_volume("v", CAPACITY, BLANK)
    fill(Path(volume.path))
    data = await engine.measure_volume("v")
    before = allocated(pool_dir)

    await engine.begin_export(KEY, "v", kind)
    image = await engine.finish_export(KEY, ignore)
    restored = await engine.create_volume("w", CAPACITY, FROM_IMAGE)

    places = [Path(p) for p in (volume.path, image.base_path, image.artifact_path, restored.path)]
    for other in places[1:]:
        assert await extents.shared_with(places[0], other) == data.allocated_bytes
    assert (await engine.measure_volume("w")).shared_bytes == data.allocated_bytes
    # A data block that is shared costs nothing; reference counts and tables do. btrfs counts its
    # metadata twice (DUP), and 2,000 scattered blocks need more of it than 5 % of 8 MiB.
    metadata = 0.05 * data.allocated_bytes + 4 * MIB
    assert allocated(pool_dir) - before < metadata
    assert Path(restored.path).read_bytes() == Path(volume.path).read_bytes()


def fragment(path: Path) -> None:
    """Make 32 MiB of data that lie in thousands of pieces: overwrite a clone at random."""
    blocks = list(range(8192))
    random.Random(2).shuffle(blocks)
    with path.open("wb", buffering=0) as file:
        file.truncate(64 * MIB)
        for number, block in enumerate(blocks):
            os.pwrite(file.fileno(), block.to_bytes(4, "little") * KIB, block * 4 * KIB)
            if number % 64 == 0:
                os.fsync(file.fileno())
        os.fsync(file.fileno())


async def test_an_image_in_too_many_pieces_is_rewritten_in_one(pool_dir: Path) -> None:
    base = pool_dir / "base.raw"
    fragment(base)
    content = base.read_bytes()
    before = await extents.usage(base)
    assert before.extent_count > 500
    reports: list[tuple[int, int]] = []
    staging = Staging(Layout(pool_dir))

    assert not await keep_within_budget(staging, base, extents_max=before.extent_count)
    assert await keep_within_budget(
        staging, base, extents_max=100, on_bytes=lambda *report: reports.append(report)
    )

    after = await extents.usage(base)
    assert after == FileUsage(allocated_bytes=32 * MIB, shared_bytes=0, extent_count=1)
    assert base.read_bytes() == content
    assert base.stat().st_size == 64 * MIB
    assert reports[-1] == (32 * MIB, 32 * MIB)
    assert [path.name for path in pool_dir.iterdir()] == ["base.raw"]


@pytest.mark.parametrize("kind", list(ImageFormat))
async def test_an_export_in_too_many_pieces_is_committed_in_one(
    pool_dir: Path, kind: ImageFormat
) -> None:
    engine = LocalEngine(pool_dir, extents_max=100)
    await engine.open()
    volume = await engine.create_volume("v", 64 * MIB, BLANK)
    fragment(Path(volume.path))
    await engine.begin_export(KEY, "v", kind)
    reports: list[Progress] = []
    image = await engine.finish_export(KEY, reports.append)
    base, artifact = Path(image.base_path), Path(image.artifact_path)
    assert (await engine.measure_image(KEY)).extent_count == 1
    assert await extents.shared_with(base, artifact) == 32 * MIB
    assert base.read_bytes() == Path(volume.path).read_bytes()
    assert "writing in one piece" in {report.message for report in reports}
    await engine.close()


async def test_a_download_in_too_many_pieces_stays_one_file_with_its_artifact(
    pool_dir: Path,
) -> None:
    engine = LocalEngine(pool_dir, extents_max=100)
    await engine.open()
    staging = await engine.staging_dir(KEY)
    fragment(staging / "artifact")
    (staging / "base.raw").hardlink_to(staging / "artifact")
    content = (staging / "artifact").read_bytes()
    image = await engine.commit_image(
        ImageRecord(
            key=KEY,
            format=ImageFormat.RAW,
            size_bytes=64 * MIB,
            virtual_size_bytes=64 * MIB,
            checksum="ab" * 64,
            source={"type": "download"},
            created_at=datetime.now(UTC),
            point_in_time=None,
            artifact_path="",
            base_path="",
        )
    )
    assert (await engine.measure_image(KEY)).extent_count == 1
    assert Path(image.base_path).samefile(image.artifact_path)
    assert Path(image.artifact_path).read_bytes() == content
    await engine.close()


async def test_holes_alone_are_no_reason_to_rewrite(pool_dir: Path) -> None:
    base = pool_dir / "base.raw"
    with base.open("wb") as file:
        file.truncate(CAPACITY)
    fill_scattered(base)
    inode = base.stat().st_ino
    assert (await extents.usage(base)).extent_count > 1500
    assert not await keep_within_budget(Staging(Layout(pool_dir)), base, extents_max=100)
    assert base.stat().st_ino == inode


@pytest.fixture(params=["xfs", "btrfs", "ext4"])
def small_pool(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, to be filled to the last block."""
    kind = storage.STORAGES[request.param]
    storage.require(kind)
    with storage.mounted(kind, tmp_path, size_bytes=320 * MIB) as root:
        (root / "pool").mkdir()
        yield root / "pool"


async def test_a_full_pool_says_so_and_nothing_half_made_stays(small_pool: Path) -> None:
    engine = LocalEngine(small_pool)
    await engine.open()
    volume = await engine.create_volume("v", 64 * MIB, BLANK)
    with open(volume.path, "r+b") as file:
        file.write(os.urandom(4 * MIB))
        os.fsync(file.fileno())
    await engine.create_volume("deletable", MIB, BLANK)
    await engine.create_snapshot("s", "v")
    await engine.begin_export(KEY, "v", ImageFormat.QCOW2)
    hog = small_pool.parent / "hog"
    storage.fill_up(hog)
    before = set(small_pool.rglob("*"))

    with pytest.raises(NoSpace) as caught:
        await engine.finish_export(KEY, ignore)
    assert caught.value.pool == str(small_pool)
    assert caught.value.free_bytes < 8 * MIB
    refusals = 0
    for number in range(40):
        try:
            await engine.create_volume(f"c{number}", 64 * MIB, VolumeSource(snapshot="s"))
            await engine.create_snapshot(f"t{number}", "v")
        except NoSpace:
            refusals += 1
            assert await engine.find_snapshot(f"t{number}") is None
        await engine.delete_volume(f"c{number}")
        await engine.delete_snapshot(f"t{number}")
    assert refusals > 0
    leftovers = set(small_pool.rglob("*")) - before
    assert leftovers == set(), "something half made stayed"

    await engine.delete_volume("deletable")
    assert await engine.find_volume("deletable") is None
    (hog / "large").unlink()
    allocated(hog)  # the space is there once the file system has finished
    image = await engine.finish_export(KEY, ignore)
    assert Path(image.base_path).read_bytes() == Path(volume.path).read_bytes()
    await engine.close()


@pytest.mark.parametrize(
    "is_killed", [pytest.param(False, id="closed"), pytest.param(True, id="killed")]
)
async def test_a_full_pool_opens_so_that_something_can_be_deleted(
    small_pool: Path, is_killed: bool
) -> None:
    engine = LocalEngine(small_pool)
    await engine.open()
    method = engine.clone_method
    await engine.create_volume("deletable", MIB, BLANK)
    if not is_killed:
        await engine.close()
    storage.fill_up(small_pool.parent / "hog")
    if is_killed:
        assert engine._lock._descriptor is not None
        os.close(engine._lock._descriptor)
    again = LocalEngine(small_pool)
    await again.open()
    assert again.clone_method == method
    await again.delete_volume("deletable")
    assert await again.find_volume("deletable") is None
    await again.close()
