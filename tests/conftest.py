"""Fixtures for the whole project: directories on real file systems.

`xfs_dir`, `btrfs_dir` and `ext4_dir` are empty directories on loop-mounted file systems of 1 GiB,
made once per session and taken away however it ends; each test gets a directory of its own.
`pool_dir` is one on each file system that a pool may live on.
"""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings
from tests.integration import storage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_TASTE = (
    "COLUMNS",
    "FORCE_COLOR",
    "GITHUB_ACTIONS",
    "NO_COLOR",
    "PY_COLORS",
    "TERMINAL_WIDTH",
    "TTY_COMPATIBLE",
    "TTY_INTERACTIVE",
)


# An example may be slow because the machine is: no property is about time. In CI the examples are
# the same in every run; elsewhere each run looks at others.
settings.register_profile(
    "shorthorn",
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
)
settings.load_profile("shorthorn")


def pytest_configure() -> None:
    """Let SIGTERM end the run as Ctrl-C does, so that mounts and loop devices are taken away.

    Ctrl-C too: a run in the background of a script was told to ignore it, and so would be every
    program that it starts, some of them to see what they do then.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)


def pytest_sessionstart() -> None:
    """Let no test depend on the terminal and the taste of whoever runs it.

    After pytest has looked at them for its own output, before Typer is imported and does.
    """
    os.environ["TERM"] = "xterm-256color"
    for name in _TASTE:
        os.environ.pop(name, None)


@pytest.fixture(scope="session")
def file_system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """Mount a file system of the named kind when it is first asked for."""
    made: dict[str, Path] = {}
    with contextlib.ExitStack() as stack:

        def get(name: str) -> Path:
            kind = storage.STORAGES[name]
            storage.require(kind)
            if name not in made:
                scratch = tmp_path_factory.mktemp("storage")
                made[name] = stack.enter_context(storage.mounted(kind, scratch))
            return made[name]

        yield get


@contextlib.contextmanager
def _own_directory(root: Path) -> Iterator[Path]:
    storage.clear(root)
    directory = root / "test"
    directory.mkdir()
    yield directory
    storage.clear(root)


@pytest.fixture
def xfs_dir(file_system: Callable[[str], Path]) -> Iterator[Path]:
    """An empty directory on XFS with reflinks."""
    with _own_directory(file_system("xfs")) as directory:
        yield directory


@pytest.fixture
def btrfs_dir(file_system: Callable[[str], Path]) -> Iterator[Path]:
    """An empty directory on btrfs."""
    with _own_directory(file_system("btrfs")) as directory:
        yield directory


@pytest.fixture
def ext4_dir(file_system: Callable[[str], Path]) -> Iterator[Path]:
    """An empty directory on ext4, which has no reflinks."""
    with _own_directory(file_system("ext4")) as directory:
        yield directory


@pytest.fixture(
    params=[
        pytest.param("xfs", marks=[pytest.mark.root, pytest.mark.xfs]),
        pytest.param("btrfs", marks=[pytest.mark.root, pytest.mark.btrfs]),
    ]
)
def pool_dir(request: pytest.FixtureRequest, file_system: Callable[[str], Path]) -> Iterator[Path]:
    """An empty directory on each file system with reflinks in turn."""
    with _own_directory(file_system(request.param)) as directory:
        yield directory
