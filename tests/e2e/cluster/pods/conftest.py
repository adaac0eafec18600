"""One cluster with kubelets for all tests of this directory, gone with the last of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest
from tests.e2e.cluster import rights
from tests.e2e.cluster.pods.installation import Installation, installation
from tests.e2e.cluster.pods.workloads import PodUser
from tests.e2e.cluster.release import NAMESPACE
from tests.integration.daemon_process import poll

_GONE_S = 90.0


@pytest.fixture(scope="package")
def installed() -> Iterator[Installation]:
    """The chart on two nodes with kubelets, everything ready."""
    with installation() as made, rights.recorded(made.plane.commands.audit_log, NAMESPACE):
        yield made


@pytest.fixture
def own(installed: Installation, request: pytest.FixtureRequest) -> Iterator[PodUser]:
    """A user with a namespace of the test's own; its end must leave nothing on any node."""
    name = f"test-{hashlib.sha256(request.node.name.encode()).hexdigest()[:8]}"
    installed.plane.make_namespace(name)
    user = PodUser(installed.plane, name)
    try:
        yield user
    finally:
        user.remove()
    poll(lambda: not installed.left(), timeout_s=_GONE_S, what="something is left on a node")
