"""One control plane for all tests of this directory that only look at it.

A test that kills parts of it takes `own_cluster`.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.cluster.control_plane import ControlPlane, control_plane
from tests.e2e.cluster.release import Release, of_its_own
from tests.e2e.cluster.users import User, user

pytest.register_assert_rewrite("tests.contract.api_suite")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def cluster() -> Iterator[ControlPlane]:
    """A control plane on loopback, without nodes."""
    yield from _one()


@pytest.fixture(scope="module")
def own_cluster() -> Iterator[ControlPlane]:
    """A control plane of the module's own."""
    yield from _one()


def _one() -> Iterator[ControlPlane]:
    # Not below pytest's own directory: socket paths have 107 bytes.
    directory = Path(tempfile.mkdtemp(prefix="shorthorn-e2e-"))
    try:
        with control_plane(directory) as made:
            yield made
    finally:
        shutil.rmtree(directory)


@pytest.fixture(scope="session")
def release() -> Iterator[Release]:
    """The chart, installed: three nodes and two controllers."""
    with of_its_own() as made:
        yield made


@pytest.fixture
def own(release: Release, request: pytest.FixtureRequest) -> Iterator[User]:
    """A user with a namespace of the test's own, which is deleted at the end."""
    name = hashlib.sha256(request.node.name.encode()).hexdigest()[:8]
    with user(release, f"test-{name}") as made:
        yield made
