"""What exports and restores promise about disks: all data is shared, the pool hardly grows.

No times here; `bench/` has them. Judged by qemu-img called from here, with no sandbox or format of
ours, and by FIEMAP and statvfs of the pool's own file system.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.integration import storage
from tests.integration.attached_volumes import run

from shorthorn.domain.models import ImageFormat, ImageKey, ImageRecord, VolumeSource
from shorthorn.engines.local import LocalEngine
from shorthorn.host import extents

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from shorthorn.domain.models import VolumeRecord

pytestmark = [pytest.mark.root, pytest.mark.xfs]

MIB, GIB = 1 << 20, 1 << 30
BLOCK_BYTES = 4096
GROWTH_PART_MAX = 0.05
SETTLE_TIMEOUT_S = 60.0
KEY = ImageKey("golden", "u")


@dataclass(frozen=True)
class Content:
    """`pieces` of data, each of `piece_bytes`, in a volume of `size_bytes`."""

    pieces: int
    piece_bytes: int
    size_bytes: int

    @property
    def data_bytes(self) -> int:
        return self.pieces * self.piece_bytes

    def write(self, path: Path) -> None:
        """Random bytes; pieces that are not alone never touch, so that each is one extent."""
        rng = random.Random(self.pieces)
        descriptor = os.open(path, os.O_WRONLY)
        try:
            if self.pieces == 1:
                for offset in range(0, self.piece_bytes, MIB):
                    os.pwrite(descriptor, rng.randbytes(MIB), offset)
            else:
                for slot in rng.sample(range(self.size_bytes // BLOCK_BYTES // 2), self.pieces):
                    os.pwrite(descriptor, rng.randbytes(BLOCK_BYTES), slot * 2 * BLOCK_BYTES)
        finally:
            os.close(descriptor)


CONTENTS = {
    "256 MiB contiguous": Content(1, 256 * MIB, GIB),
    "20,000 scattered blocks": Content(20_000, BLOCK_BYTES, 10 * GIB),
}


@pytest.fixture(scope="module", params=CONTENTS.values(), ids=list(CONTENTS))
def content(request: pytest.FixtureRequest) -> Content:
    """What is on the volume."""
    found: Content = request.param
    return found


@pytest.fixture(scope="module")
def reference(content: Content, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The same disk where nothing can be shared with the pool."""
    path = tmp_path_factory.mktemp("reference") / "disk.raw"
    with path.open("wb") as file:
        file.truncate(content.size_bytes)
    content.write(path)
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def pool_file_system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system of nobody else's, so that its growth is ours."""
    storage.require(storage.XFS)
    with storage.mounted(storage.XFS, tmp_path_factory.mktemp("sharing")) as mounted:
        yield mounted


@pytest.fixture
async def engine(pool_file_system: Path) -> AsyncIterator[LocalEngine]:
    root = pool_file_system / "pool"
    root.mkdir()
    engine = LocalEngine(root)
    await engine.open()
    yield engine
    await engine.close()
    await asyncio.to_thread(storage.clear, pool_file_system)


async def filled(engine: LocalEngine, content: Content) -> VolumeRecord:
    volume = await engine.create_volume("source", content.size_bytes, VolumeSource())
    await asyncio.to_thread(content.write, Path(volume.path))
    usage = await extents.usage(Path(volume.path))
    assert usage.allocated_bytes == content.data_bytes
    assert usage.shared_bytes == 0
    return volume


async def exported(engine: LocalEngine, kind: ImageFormat) -> ImageRecord:
    """Export the volume, and go on writing to it before the artifact is made."""
    await engine.begin_export(KEY, "source", kind)
    volume = await engine.find_volume("source")
    assert volume is not None
    with Path(volume.path).open("r+b") as file:
        file.seek(os.lseek(file.fileno(), 0, os.SEEK_DATA))
        file.write(bytes(BLOCK_BYTES))
    return await engine.finish_export(KEY, lambda progress: None)


async def free_bytes(directory: Path) -> int:
    """Return the free bytes once they stay the same: XFS frees in the background."""
    last = -1
    async with asyncio.timeout(SETTLE_TIMEOUT_S):
        while True:
            await run("sync", "--file-system", directory)
            free = os.statvfs(directory).f_bfree
            if free == last:
                return free * os.statvfs(directory).f_frsize
            last = free
            await asyncio.sleep(0.05)


async def assert_same_disk(first: Path, second: Path, kind: ImageFormat) -> None:
    """Compare a raw disk with one of `kind`; qemu-img ends with 1 at the first difference."""
    await run("qemu-img", "compare", "-q", "-f", "raw", "-F", kind, first, second)


@pytest.mark.parametrize("kind", list(ImageFormat))
async def test_an_export_and_what_is_restored_from_it_share_all_data_and_hardly_grow_the_pool(
    engine: LocalEngine, content: Content, reference: Path, kind: ImageFormat
) -> None:
    volume = await filled(engine, content)
    most_bytes = content.data_bytes * GROWTH_PART_MAX
    free_at_first = await free_bytes(Path(volume.path).parent)
    image = await exported(engine, kind)
    free_then = await free_bytes(Path(volume.path).parent)
    assert free_at_first - free_then < most_bytes
    artifact = Path(image.artifact_path)
    info = json.loads(await run("qemu-img", "info", "--output=json", artifact))
    assert (info["format"], info["virtual-size"]) == (kind, content.size_bytes)
    if kind is ImageFormat.QCOW2:
        await run("qemu-img", "check", "-q", "-f", "qcow2", artifact)
    await assert_same_disk(reference, artifact, kind)
    # All but the block that the volume's user has written since.
    kept_bytes = content.data_bytes - BLOCK_BYTES
    assert await extents.shared_with(Path(volume.path), artifact) == kept_bytes

    source = VolumeSource(image=KEY.name, image_uuid=KEY.uuid)
    restored = await engine.create_volume("restored", content.size_bytes, source)
    path = Path(restored.path)
    assert free_then - await free_bytes(path.parent) < most_bytes
    await assert_same_disk(reference, path, ImageFormat.RAW)
    assert await extents.shared_with(artifact, path) == content.data_bytes
    assert (await extents.usage(path)).allocated_bytes == content.data_bytes
