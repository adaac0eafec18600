"""The local engine keeps the engine's promises on every storage that it may meet."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest
from tests.contract.engine_suite import EngineSuite

from shorthorn.engines.local import LocalEngine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from shorthorn.domain.ports import Engine


@pytest.fixture(
    params=[
        pytest.param("xfs_dir", marks=[pytest.mark.root, pytest.mark.xfs], id="xfs"),
        pytest.param("btrfs_dir", marks=[pytest.mark.root, pytest.mark.btrfs], id="btrfs"),
        pytest.param("ext4_dir", marks=[pytest.mark.root], id="copy"),
    ]
)
def storage_dir(request: pytest.FixtureRequest) -> Path:
    directory: Path = request.getfixturevalue(request.param)
    return directory


@pytest.fixture
async def reopen(storage_dir: Path) -> AsyncIterator[Callable[[], Awaitable[Engine]]]:
    async with contextlib.AsyncExitStack() as stack:

        async def another() -> Engine:
            engine = LocalEngine(storage_dir)
            await engine.open()
            stack.push_async_callback(engine.close)
            return engine

        yield another


@pytest.fixture
async def engine(reopen: Callable[[], Awaitable[Engine]]) -> Engine:
    return await reopen()


class TestLocalEngine(EngineSuite):
    """See engine_suite."""
