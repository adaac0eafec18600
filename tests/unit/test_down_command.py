"""`shorthorn down`: when it returns, the service is gone."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from typer.testing import CliRunner

from shorthorn.cli import app

if TYPE_CHECKING:
    from pathlib import Path

#: Lets go of the lock when it is told to stop, and takes its time to end.
SERVICE = """
import pathlib, select, signal, sys
from shorthorn.host.locks import DirectoryLock
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
lock = DirectoryLock(pathlib.Path(sys.argv[1]), owner="a service")
lock.acquire()
print("held", flush=True)
signal.sigwait({signal.SIGTERM})
lock.release()
select.select([sys.stdin], [], [], 0.5)
"""


def test_down_returns_when_the_service_has_ended_and_not_only_unlocked(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SERVICE, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as service:
        try:
            assert service.stdout is not None
            assert service.stdout.readline() == b"held\n"
            result = CliRunner().invoke(app, ["down", "--data-dir", str(tmp_path)])
            assert result.exit_code == 0, result.output
            assert "stopped" in result.output
            assert service.poll() == 0
        finally:
            service.kill()


def test_down_where_nothing_runs_is_success(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["down", "--data-dir", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "nothing runs" in result.output
