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
from tests.integration.engine_scenarios import KEY, SCENARIOS, Scenario, files_of

from shorthorn.engines.local import LocalEngine

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
    engine = LocalEngine(root)
    await engine.open()
    answer = await scenario.operate(engine)
    assert await scenario.operate(engine) == answer
    await engine.close()
    return answer


def contents(root: Path) -> dict[str, object]:
    """Describe every file of a pool by what matters of it."""
    return {str(path.relative_to(root)): _content(path) for path in files_of(root)}


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
    kills = 0
    for number in range(12):
        root = await prepared(pool_dir / f"try-{number}", scenario)
        delay_s = source.uniform(0.002, 0.06)
        crash = await crasher.run(
            root=str(root), scenario=name, step=0, with_open=True, kill_after_s=delay_s
        )
        kills += crash["killed"]
        at = f"{name}, seed {seed}, after {delay_s} s and {crash['steps']}"
        assert lasting(await repeated(root, scenario), root) == expected, at
        assert contents(root) == expected_contents, at
        assert directories_left(root) == [], at
        shutil.rmtree(root)
    assert kills > 0, f"seed {seed}: every run was faster than its kill"
