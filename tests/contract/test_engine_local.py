"""The local engine keeps the engine's promises on every storage that it may meet."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from tests.contract.engine_suite import EngineSuite
from tests.integration import storage

from shorthorn.engines.local import LocalEngine
from shorthorn.host.pool_file import POOL_BYTES_MIN, ensure_pool, release_pool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

    from shorthorn.domain.ports import Engine


@pytest.fixture(scope="session")
def pool_file_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A mounted pool file, as made where the host's file system cannot share blocks."""
    data_dir = tmp_path_factory.mktemp("pool-file")
    pool = asyncio.run(ensure_pool(data_dir, pool_size_bytes=POOL_BYTES_MIN))
    assert pool.file is not None
    yield pool.path
    storage.clear(pool.path)
    asyncio.run(release_pool(data_dir))


@pytest.fixture(
    params=[
        pytest.param("xfs_dir", marks=[pytest.mark.root, pytest.mark.xfs], id="xfs"),
        pytest.param("btrfs_dir", marks=[pytest.mark.root, pytest.mark.btrfs], id="btrfs"),
        pytest.param("pool_file_dir", marks=[pytest.mark.root, pytest.mark.xfs], id="pool-file"),
        pytest.param("ext4_dir", marks=[pytest.mark.root], id="copy"),
    ]
)
def storage_dir(request: pytest.FixtureRequest) -> Path:
    directory: Path = request.getfixturevalue(request.param)
    storage.clear(directory)
    return directory


@pytest.fixture
async def reopen(storage_dir: Path) -> AsyncIterator[Callable[[], Awaitable[Engine]]]:
    engine = LocalEngine(storage_dir)

    async def another() -> Engine:
        nonlocal engine
        await engine.close()
        engine = LocalEngine(storage_dir)
        await engine.open()
        return engine

    yield another
    await engine.close()


@pytest.fixture
async def engine(reopen: Callable[[], Awaitable[Engine]]) -> Engine:
    return await reopen()


class TestLocalEngine(EngineSuite):
    """See engine_suite."""
