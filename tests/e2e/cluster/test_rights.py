"""Every right that the chart grants is used, and none is missing.

Runs last: it looks at what the programs did while all other tests ran.
"""

from __future__ import annotations

import pytest
from tests.e2e.cluster import rights
from tests.e2e.cluster.release import NAMESPACE, Release

pytestmark = pytest.mark.runs_last


def test_nothing_is_refused(release: Release) -> None:
    refused = rights.refused(release.plane.commands.audit_log, NAMESPACE)
    assert not refused, "not granted:\n" + "\n".join(sorted(map(str, refused)))


@pytest.mark.full  # only all tests together use all of them
def test_every_right_is_used(release: Release) -> None:
    used = rights.used(release.plane.commands.audit_log, NAMESPACE)
    unused = rights.granted(release.documents) - used
    assert not unused, "granted for nothing:\n" + "\n".join(sorted(map(str, unused)))
