"""csi-sanity against the split programs: a node's socket, and the leading controller's.

csi-sanity makes most volumes without saying where they shall be, and mounts them on the node that
it speaks to. So that node is the only one with a pool, while each of the two kinds has its turn.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.cluster import rights
from tests.e2e.cluster.release import NAMESPACE, Layout, Machine, Node, Pod, Release, of_its_own
from tests.e2e.conformance import reasons, sanity
from tests.e2e.conformance.leftovers import left_behind
from tests.integration import storage
from tests.integration.daemon_process import poll

pytestmark = [pytest.mark.root, pytest.mark.xfs, pytest.mark.btrfs]

#: One DaemonSet for each kind of pool: a pool file with XFS on whatever is there, and a directory.
LAYOUT = Layout(
    {
        "nodeGroups": [
            {"name": "file", "nodeSelector": {"pool": "xfs"}, "poolSize": "3G"},
            {"name": "directory", "nodeSelector": {"pool": "btrfs"}, "dataDir": "/mnt/shorthorn"},
        ]
    },
    (
        Machine("xfs", {"pool": "xfs"}),
        Machine("btrfs", {"pool": "btrfs"}, storage.BTRFS, 4 * storage.GIB),
    ),
)
PARAMETERS = {
    "snap": {"type": "snap"},
    "bi": {"type": "bi"},
    "bi-qcow2": {"type": "bi", "export-type": "qcow2"},
    "none": {},
}
#: The short form has each kind of pool with both access types, and with both types of snapshots.
SHORT = {
    ("xfs", "mount", "bi"),
    ("xfs", "block", "snap"),
    ("btrfs", "mount", "snap"),
    ("btrfs", "block", "bi"),
}


@pytest.fixture(scope="module")
def two_kinds() -> Iterator[Release]:
    """A release with a node for each kind of pool."""
    storage.require(storage.BTRFS)
    with of_its_own(LAYOUT) as made:
        yield made


@pytest.fixture(scope="module")
def node(two_kinds: Release, request: pytest.FixtureRequest) -> Node:
    """The node of one kind, the only one with a pool."""
    wanted = two_kinds.node(request.param)
    if _owners(two_kinds) == [wanted.name]:
        return wanted
    for other in two_kinds.nodes:
        other.kill()
    for pool in two_kinds.pools():
        if pool["spec"]["nodeID"] != wanted.name:
            two_kinds.plane.api.delete("Pool", NAMESPACE, pool["metadata"]["name"])
    wanted.start()
    poll(lambda: _owners(two_kinds) == [wanted.name], what=f"{wanted.name}'s pool alone")
    return wanted


def _owners(release: Release) -> list[str]:
    return [pool["spec"]["nodeID"] for pool in release.pools()]


def _runs() -> Iterator[object]:
    for kind in ("xfs", "btrfs"):
        for access in ("mount", "block"):
            for parameters in PARAMETERS:
                marks = () if (kind, access, parameters) in SHORT else (pytest.mark.full,)
                name = f"{kind}-{access}-{parameters}"
                yield pytest.param(kind, access, parameters, id=name, marks=marks)


@pytest.mark.parametrize(("node", "access", "parameters"), [*_runs()], indirect=["node"])
def test_csi_sanity_is_content_with(
    two_kinds: Release, node: Node, access: str, parameters: str
) -> None:
    run_against(node, two_kinds.leader(), two_kinds, access, parameters)


@pytest.mark.full
@pytest.mark.parametrize("node", ["xfs"], indirect=True)
def test_a_controller_that_does_not_lead_answers_as_well(two_kinds: Release, node: Node) -> None:
    leader = two_kinds.leader()
    (other,) = (pod for pod in two_kinds.controllers if pod is not leader)
    run_against(node, other, two_kinds, "mount", "bi")


def run_against(
    node: Node, controller: Pod, release: Release, access: str, parameters: str
) -> None:
    """Run csi-sanity; fail unless all that applies passes and nothing stays."""
    scratch = Path(tempfile.mkdtemp(dir=node.directory / "kubelet"))
    report = sanity.run(
        node.socket,
        scratch,
        access=access,
        parameters=PARAMETERS[parameters],
        controller=controller.socket,
    )
    assert report.failed == [], report.output
    assert reasons.complaints(report.specs) == []
    assert left_behind(release.plane.api, node.data_dir) == []
    for pod in (node, *release.controllers):
        assert "Traceback" not in pod.driver.said()
    requests = rights.requests_in(release.plane.commands.audit_log, NAMESPACE)
    assert rights.refused(requests) == set()
