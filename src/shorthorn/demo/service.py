"""The service under show: `shorthorn up` as a child process, and the other commands as a user types
them.

Owns: starting and stopping them, and what the service logged. Must never: import what it runs.
"""

from __future__ import annotations

import asyncio
import shlex
import sys
from pathlib import Path

from shorthorn.demo.failures import StepFailed
from shorthorn.demo.report import Report
from shorthorn.demo.workspace import Workspace
from shorthorn.kit import process

READY = "Shorthorn is up."

_START_TIMEOUT_S = 60.0
_COMMAND_TIMEOUT_S = 120.0
#: `shorthorn up` gives running operations 10 s to end.
_STOP_GRACE_S = 15.0
_LOG_TAIL_LINES = 30


class Service:
    """One `shorthorn up` on the workspace's data directory."""

    def __init__(self, workspace: Workspace, pool_size: str, report: Report) -> None:
        self._workspace = workspace
        self._pool_size = pool_size
        self._report = report
        self._child: process.Child | None = None
        self._said = ""
        self._is_ready = asyncio.Event()

    async def start(self) -> None:
        """Start the service and wait until it is ready. Raises StepFailed: it does not start."""
        arguments = ("up", f"--data-dir={self._workspace.data_dir}")
        self._report.command(shlex.join(("shorthorn", *arguments, "--pool-size", self._pool_size)))
        self._child = process.start(
            (*_program(), *arguments, f"--pool-size={self._pool_size}", "--verbose"),
            on_stdout=self._listen,
        )
        ready = asyncio.ensure_future(self._is_ready.wait())
        ended = asyncio.ensure_future(self._child.wait())
        done, _ = await asyncio.wait(
            {ready, ended}, timeout=_START_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED
        )
        ready.cancel()
        if ready not in done:
            how = "ended" if ended in done else f"is not ready after {_START_TIMEOUT_S:.0f} s"
            raise StepFailed(f"`shorthorn up` {how}")

    async def stop(self) -> None:
        """Stop the service if it runs, and write down what it said."""
        if self._child is not None:
            await self._child.stop(grace_s=_STOP_GRACE_S)
            self._workspace.log.write_text(self._child.stderr)

    async def run(self, *arguments: str | Path) -> str:
        """Run another command on the same data directory and show it. Raises StepFailed."""
        words = [str(argument) for argument in arguments]
        data_dir = ("--data-dir", str(self._workspace.data_dir))
        self._report.command(shlex.join(("shorthorn", *words, *data_dir)))
        done = await _run((*words, *data_dir), None)
        said = done.stderr.decode(errors="replace") + done.text
        if done.returncode != 0:
            raise StepFailed(f"shorthorn {words[0]} ended with {done.returncode}: {said.strip()}")
        return done.text

    @property
    def is_running(self) -> bool:
        """Whether the service has been started and has not ended."""
        return self._child is not None and self._child.is_running

    def log_tail(self) -> str:
        """Return the last lines of what the service logged."""
        said = self._child.stderr if self._child else ""
        return "\n".join(said.splitlines()[-_LOG_TAIL_LINES:])

    def _listen(self, data: bytes) -> None:
        self._said += data.decode(errors="replace")
        if READY in self._said:
            self._is_ready.set()


async def lint(manifest: str, *options: str) -> tuple[int, str, str]:
    """Run `shorthorn lint` on a manifest. Returns its status, output and complaints."""
    done = await _run(("lint", *options, "-"), manifest.encode())
    return done.returncode, done.text, done.stderr.decode(errors="replace")


async def _run(arguments: tuple[str, ...], stdin: bytes | None) -> process.Completed:
    return await process.run(
        (*_program(), *arguments),
        timeout_s=_COMMAND_TIMEOUT_S,
        stdin=stdin,
        check=False,
        env={"COLUMNS": "1000"},
    )


def _program() -> tuple[str, ...]:
    """Return how this very Shorthorn is run again, whatever PATH holds."""
    return (sys.executable, "-m", "shorthorn")
