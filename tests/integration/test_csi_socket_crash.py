"""Staging and publishing, killed with SIGKILL on the way and taken up by another process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.fakes.csi_calls import capability
from tests.integration.csi_host import MIB, serving
from tests.integration.test_csi_socket import attached_below

CRASHER = Path(__file__).with_name("node_crasher.py")
XFS = capability(fs_type="xfs")


@pytest.mark.root
@pytest.mark.xfs
@pytest.mark.parametrize(
    ("method", "when"),
    [
        ("attach", "after"),
        ("format", "before"),
        ("format", "after"),
        ("mount", "after"),
        ("bind", "before"),
        ("bind", "after"),
    ],
)
async def test_another_process_goes_on_where_one_was_killed(
    xfs_dir: Path, tmp_path: Path, method: str, when: str
) -> None:
    async with serving(xfs_dir, tmp_path) as csi:
        await csi.create("pvc-1", size=320 * MIB, capabilities=[XFS])
    staging, target = tmp_path / "staging" / "pvc-1", tmp_path / "pod" / "pvc-1"
    for directory in (staging, target.parent):
        directory.mkdir(parents=True)
    killed = subprocess.run(  # noqa: ASYNC221 - nothing else runs meanwhile
        [sys.executable, CRASHER, xfs_dir, staging, target, method, when],
        check=False,
        capture_output=True,
        text=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    async with serving(xfs_dir, tmp_path) as csi:
        await csi.stage("pvc-1", XFS)
        await csi.publish("pvc-1", XFS, read_only=True)
        mounted = Path("/proc/self/mountinfo").read_text()
        assert mounted.count(f" {staging} ") == mounted.count(f" {target} ") == 1
        assert len(attached_below(xfs_dir)) == 1
        assert os.statvfs(target).f_flag & os.ST_RDONLY
        (staging / "file").write_text("data")
        assert (target / "file").read_text() == "data"
        await csi.unmount("pvc-1")
        assert attached_below(xfs_dir) == []
        await csi.delete("pvc-1")
