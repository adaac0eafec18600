"""The crash matrix of the local engine: killed at every step, the next process makes it whole.

For each operation and each durable step k a process of its own is killed with SIGKILL right after
k. A new engine then opens the pool and repeats the operation: the answer and every file in the
pool must be what an undisturbed run leaves, and a third call must answer the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from tests.integration.attached_volumes import EXT4, PATIENCE_S, formatted, write_succeeds
from tests.integration.engine_scenarios import KEY, SCENARIOS, Scenario, files_of

from shorthorn.domain.models import VolumeSource
from shorthorn.engines.extent_budget import EXTENTS_MAX
from shorthorn.engines.local import LocalEngine
from shorthorn.host.locks import LOCK_NAME

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
#: Differ from run to run; that they stay once answered is asserted apart.
PASSING = {"createdAt", "pointInTime", "poolUuid"}


class Crasher:
    """Our end of the process that forks and kills; see `engine_crasher`."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.engine_crasher"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    async def run(self, **request: object) -> dict[str, Any]:
        return await asyncio.to_thread(self._run, request)

    def _run(self, request: dict[str, object]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        assert answer.get("status", 0) == 0, f"{request} failed; see standard error"
        return answer

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="module")
def crasher() -> Iterator[Crasher]:
    with contextlib.closing(Crasher()) as running:
        yield running


async def prepared(root: Path, scenario: Scenario) -> Path:
    """Make a pool with what the operation needs. The empty pool of nothing is not even opened."""
    root.mkdir()
    if scenario.prepare is not SCENARIOS["open a new pool"].prepare:
        engine = LocalEngine(root)
        await engine.open()
        await scenario.prepare(engine)
        await engine.close()
    return root


async def repeated(root: Path, scenario: Scenario) -> object:
    """Open the pool as the next process does, and ask twice."""
    engine = LocalEngine(root, extents_max=scenario.extents_max)
    await engine.open()
    answer = await scenario.operate(engine)
    assert await scenario.operate(engine) == answer
    await engine.close()
    return answer


def contents(root: Path) -> dict[str, object]:
    """Describe every file of a pool by what matters of it."""
    owned = root / LOCK_NAME
    found = (path for path in files_of(root) if path != owned)
    return {str(path.relative_to(root)): _content(path) for path in found}


def _content(path: Path) -> object:
    if path.suffix == ".json":
        record = json.loads(path.read_bytes())
        return {key: value for key, value in record.items() if key not in PASSING}
    return hashlib.sha256(path.read_bytes()).hexdigest()


def lasting(answer: object, root: Path) -> object:
    """Return an answer without its times and with paths that do not depend on the pool."""
    text = msgspec.json.encode(answer).decode().replace(str(root), "POOL")
    value = json.loads(text)
    if isinstance(value, list):  # of a moment and a record
        value = value[-1] if value else value
    if isinstance(value, dict):
        return {k: v for k, v in value.items() if k not in {"created_at", "point_in_time"}}
    return None


def directories_left(root: Path) -> list[str]:
    """Return directories that no object needs: in staging, or an image's name without images."""
    staged = [path for path in root.glob("staging/*/*") if path.is_dir()]
    hollow = [path for path in root.glob("images/*") if not any(path.iterdir())]
    return [
        str(path.relative_to(root))
        for path in (*staged, *hollow)
        if not any(entry.is_file() for entry in path.rglob("*"))
    ]


@pytest.mark.parametrize("name", list(SCENARIOS))
async def test_an_operation_killed_at_any_step_is_made_whole(
    name: str, pool_dir: Path, crasher: Crasher
) -> None:
    scenario = SCENARIOS[name]
    with_open = name == "open a new pool"
    straight = await prepared(pool_dir / "straight", scenario)
    run = await crasher.run(root=str(straight), scenario=name, step=0, with_open=with_open)
    expected_contents = contents(straight)
    expected = lasting(await repeated(straight, scenario), straight)
    assert contents(straight) == expected_contents, "repeating changed something"
    assert len(run["steps"]) >= 2, "nothing was observed, so nothing would be tested"
    if scenario.extents_max < EXTENTS_MAX:
        assert "base replaced by its contiguous copy" in run["steps"]

    for step in range(1, len(run["steps"]) + 1):
        root = await prepared(pool_dir / f"step-{step}", scenario)
        at = f"{name}, killed at {step}: {run['steps'][step - 1]}"
        crash = await crasher.run(root=str(root), scenario=name, step=step, with_open=with_open)
        assert crash["killed"], at
        moment = begun_moment(root)
        answer = await repeated(root, scenario)
        assert lasting(answer, root) == expected, at
        assert contents(root) == expected_contents, at
        assert directories_left(root) == [], at
        if moment is not None and name == "begin an export":
            assert msgspec.to_builtins(answer) == moment, at
        shutil.rmtree(root)


@pytest.mark.parametrize("name", ["commit a download", "finish an export to qcow2"])
async def test_a_commit_that_was_begun_is_ended_by_the_next_start(
    name: str, pool_dir: Path, crasher: Crasher
) -> None:
    scenario = SCENARIOS[name]
    straight = await prepared(pool_dir / "straight", scenario)
    steps = (await crasher.run(root=str(straight), scenario=name, step=0))["steps"]
    for step in range(steps.index("image.json staged") + 1, len(steps) + 1):
        root = await prepared(pool_dir / f"step-{step}", scenario)
        await crasher.run(root=str(root), scenario=name, step=step)
        engine = LocalEngine(root)
        await engine.open()
        assert await engine.find_image(KEY) is not None, steps[step - 1]
        assert list(root.glob("staging/images/*/*")) == []
        await engine.close()
        assert contents(root) == contents(straight), steps[step - 1]


def begun_moment(root: Path) -> str | None:
    """Return the point in time that a journal holds: one that may have been answered."""
    journal = root / "staging" / "images" / KEY.name / KEY.uuid / "export.json"
    return json.loads(journal.read_bytes())["pointInTime"] if journal.exists() else None


@pytest.mark.parametrize("name", ["clone an image", "export", "delete an image"])
async def test_an_operation_killed_at_any_time_is_made_whole(
    name: str, pool_dir: Path, crasher: Crasher
) -> None:
    scenario = SCENARIOS[name]
    straight = await prepared(pool_dir / "straight", scenario)
    await crasher.run(root=str(straight), scenario=name, step=0)
    expected = lasting(await repeated(straight, scenario), straight)
    expected_contents = contents(straight)
    seed = random.randrange(1 << 32)
    source = random.Random(seed)
    kills, longest_s = 0, 0.06
    for number in range(12):
        root = await prepared(pool_dir / f"try-{number}", scenario)
        delay_s = source.uniform(0, longest_s)
        crash = await crasher.run(
            root=str(root), scenario=name, step=0, with_open=True, kill_after_s=delay_s
        )
        kills += crash["killed"]
        if not crash["killed"]:
            longest_s = delay_s  # a run here takes less than that
        at = f"{name}, seed {seed}, after {delay_s} s and {crash['steps']}"
        assert lasting(await repeated(root, scenario), root) == expected, at
        assert contents(root) == expected_contents, at
        assert directories_left(root) == [], at
        shutil.rmtree(root)
    assert kills > 0, f"seed {seed}: every run was faster than its kill"


#: Each of them with the file system of a mounted volume frozen.
FROZEN_STEPS = ("frozen", "captured")


async def mounted_source(root: Path, stack: contextlib.AsyncExitStack, target: Path) -> None:
    """Make a pool with a volume `source` that is mounted at `target`."""
    root.mkdir()
    engine = LocalEngine(root)
    await engine.open()
    volume = await engine.create_volume("source", EXT4.size_bytes, VolumeSource())
    await engine.close()
    await stack.enter_async_context(formatted(volume.path, target))


@pytest.mark.parametrize("victims", ["process", "group"])
async def test_a_volume_thaws_by_itself_after_a_kill_at_any_step(
    victims: str, pool_dir: Path, tmp_path: Path, crasher: Crasher
) -> None:
    name, live = "create a snapshot", tmp_path / "live"
    root = pool_dir / "pool"
    async with contextlib.AsyncExitStack() as stack:
        await mounted_source(root, stack, live)
        run = await crasher.run(root=str(root), scenario=name, step=0)
        assert set(FROZEN_STEPS) < set(run["steps"])
        for step in range(1, len(run["steps"]) + 1):
            await discard_snapshot(root)
            crash = await crasher.run(root=str(root), scenario=name, step=step, victims=victims)
            assert crash["killed"], run["steps"][step - 1]
            await write_succeeds(live)
        await repeated(root, SCENARIOS[name])
        await write_succeeds(live)


async def discard_snapshot(root: Path) -> None:
    engine = LocalEngine(root)
    await engine.open()
    await engine.delete_snapshot("snap")
    await engine.close()


@pytest.mark.parametrize("step", FROZEN_STEPS)
async def test_opening_thaws_what_nobody_else_can(
    step: str, pool_dir: Path, tmp_path: Path, crasher: Crasher
) -> None:
    name, live = "create a snapshot", tmp_path / "live"
    root = pool_dir / "pool"
    async with contextlib.AsyncExitStack() as stack:
        await mounted_source(root, stack, live)
        run = await crasher.run(root=str(root), scenario=name, step=0)
        await discard_snapshot(root)
        number = run["steps"].index(step) + 1
        await crasher.run(root=str(root), scenario=name, step=number, victims="children")
        writer = await asyncio.create_subprocess_exec("touch", live / "waited")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await writer.wait()

        engine = LocalEngine(root)
        await engine.open()
        async with asyncio.timeout(PATIENCE_S):
            assert await writer.wait() == 0
        assert [snapshot.snapshot_id for snapshot in await engine.list_snapshots()] == []
        await engine.close()
        assert list(root.glob("staging/*/*")) == []


@pytest.mark.parametrize("name", ["clone an image", "create a snapshot", "export"])
async def test_an_operation_cancelled_at_any_step_leaves_nothing_that_a_retry_cannot_use(
    name: str, pool_dir: Path
) -> None:
    scenario = SCENARIOS[name]
    step, is_cancelled = 0, True
    while is_cancelled:
        step += 1
        root = await prepared(pool_dir / f"step-{step}", scenario)
        is_cancelled, reached = await cancelled_at(root, scenario, step)
        answer = await repeated(root, scenario)
        assert answer is not None, reached
        assert directories_left(root) == [], reached
        shutil.rmtree(root)
    assert step > 3


async def cancelled_at(root: Path, scenario: Scenario, step: int) -> tuple[bool, list[str]]:
    """Cancel the operation at a step; tell whether it ended by that, and which steps it reached."""
    loop = asyncio.get_running_loop()
    steps: list[str] = []

    def reached(name: str) -> None:
        steps.append(name)
        if len(steps) == step and task is not None:
            loop.call_soon_threadsafe(task.cancel)

    task: asyncio.Task[object] | None = None
    engine = LocalEngine(root, reached=reached)
    await engine.open()
    steps.clear()
    task = asyncio.ensure_future(scenario.operate(engine))
    await asyncio.wait({task})
    await engine.close()
    if task.cancelled():
        assert list(root.glob("staging/*/*")) == [] or "export.json staged" in steps, steps
    return task.cancelled(), steps
