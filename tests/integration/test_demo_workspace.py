"""Private directories of the main job: several runs may clean up after the same dead one."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

from shorthorn.demo import workspace

if TYPE_CHECKING:
    from pathlib import Path


async def test_an_abandoned_directory_may_be_removed_by_several_runs_at_once(
    tmp_path: Path,
) -> None:
    for number in range(5):
        abandoned = tmp_path / f"{workspace.PREFIX}{number}"
        for part in range(20):
            directory = abandoned / "files" / f"{part}"
            directory.mkdir(parents=True)
            for name in range(20):
                (directory / f"{name}.txt").write_text("x")

    runs = [
        asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            "import asyncio, pathlib, sys\n"
            "from shorthorn.demo import workspace\n"
            "asyncio.run(workspace.remove_abandoned(pathlib.Path(sys.argv[1])))",
            tmp_path,
        )
        for _ in range(4)
    ]
    processes = await asyncio.gather(*runs)

    assert [await process.wait() for process in processes] == [0] * len(processes)
    assert list(tmp_path.iterdir()) == []
