"""Progress of bytes: a bar on a terminal, plain lines elsewhere, always on standard error.

Owns: how progress looks. Must never: write to standard output, where an image may be going. Called
by uploads, downloads and waiting.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any, Final, Protocol

import typer

from shorthorn.commands.image.printing import printable, size

_LINE_EVERY_S: Final = 5.0
"""A log wants to see that something moves, and not each percent of it (arbitrary)."""


class Meter(Protocol):
    """Where work says how far it is."""

    def moved(self, done: int, total: int | None = None) -> None:
        """Say that `done` bytes are there now; `total`: of how many, once it is known."""

    def say(self, text: str) -> None:
        """Say what is done at the moment, or what went wrong, in a few words."""


@contextlib.contextmanager
def metered(title: str, *, total: int | None = None, quiet: bool = False) -> Iterator[Meter]:
    """Show progress until the block ends."""
    if quiet:
        yield _Silent()
    elif sys.stderr.isatty():
        with _bar(title, total) as bar:
            yield bar
    else:
        lines = _Lines(title, total)
        yield lines
        lines.finish()


class _Silent:
    def moved(self, done: int, total: int | None = None) -> None:
        pass

    def say(self, text: str) -> None:
        pass


class _Lines:
    """One line now and then."""

    def __init__(self, title: str, total: int | None) -> None:
        self._title = title
        self._total = total
        self._first: tuple[float, int] | None = None
        self._told_at = 0.0
        self._told: int | None = None
        self._done = 0

    def moved(self, done: int, total: int | None = None) -> None:
        now = time.monotonic()
        self._done, self._total = done, self._total if total is None else total
        if self._first is None:
            self._first = (now, done)
        if self._told is None or now - self._told_at >= _LINE_EVERY_S:
            self._tell(now)

    def say(self, text: str) -> None:
        self.finish()  # lines are in the order in which things happened
        typer.echo(f"{self._title}: {printable(text)}", err=True)

    def finish(self) -> None:
        """Tell how far it is, unless that was the last thing told."""
        if self._first is not None and self._told != self._done:
            self._tell(time.monotonic())

    def _tell(self, now: float) -> None:
        assert self._first is not None
        self._told_at, self._told = now, self._done
        began, before = self._first
        rate = (self._done - before) / (now - began) if now > began else 0.0
        told = f"{self._title}: {size(self._done)}"
        if self._total:
            told += f" of {size(self._total)} ({self._done * 100 // self._total} %)"
        if rate:
            told += f", {size(int(rate))}/s"
        if rate and self._total:
            told += f", {int((self._total - self._done) / rate)} s left"
        typer.echo(told, err=True)


@contextlib.contextmanager
def _bar(title: str, total: int | None) -> Iterator[Meter]:
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.DownloadColumn(binary_units=True),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(compact=True),
        progress.TextColumn("{task.fields[said]}", markup=False),
    )
    with progress.Progress(*columns, console=Console(stderr=True)) as shown:
        yield _Bar(shown, shown.add_task(title, total=total, said=""))


class _Bar:
    """One bar of rich."""

    def __init__(self, shown: Any, task: Any) -> None:
        self._shown = shown
        self._task = task
        self._has_begun = False

    def moved(self, done: int, total: int | None = None) -> None:
        known = {} if total is None else {"total": total}
        if not self._has_begun:
            # What was there before counts for the bar and not for the rate.
            self._shown.reset(self._task, completed=done, **known)
            self._has_begun = True
        self._shown.update(self._task, completed=done, said="", **known)

    def say(self, text: str) -> None:
        self._shown.update(self._task, said=printable(text))
