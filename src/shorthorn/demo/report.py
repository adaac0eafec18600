"""What the main job says: steps with their times, commands and answers, and the table at the end.

Owns: the terminal. Spinners and colours on one; plain lines where there is none, or where NO_COLOR
is set. Must never: measure or judge; steps tell it what they measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from rich.console import Console
from rich.table import Table
from rich.text import Text

_INDENT = "     "
_SPINNERS_PER_S = 8
#: Of the table where there is no terminal to ask: wider than it is.
_PLAIN_WIDTH = 160


class Outcome(StrEnum):
    """How a step ended."""

    DONE = "done"
    FAILED = "FAILED"
    INTERRUPTED = "interrupted"


@dataclass(slots=True)
class Step:
    """One line of the table. Bytes are None where there was nothing to measure."""

    number: int
    title: str
    time_s: float = 0.0
    #: growth of what the pool has allocated; below 0: that much was freed
    moved_bytes: int | None = None
    #: bytes that belong to two files of the pool at once
    shared_bytes: int | None = None
    outcome: Outcome = Outcome.FAILED


@dataclass(slots=True)
class Compared:
    """What comparisons have looked at, over the whole run."""

    comparisons: int = 0
    file_count: int = 0
    content_bytes: int = 0


@dataclass(slots=True)
class Report:
    """Prints as the job goes on. Not for two steps at once."""

    console: Console
    steps: list[Step] = field(default_factory=list)
    compared: Compared = field(default_factory=Compared)

    @property
    def is_plain(self) -> bool:
        """Whether lines must stand on their own: no terminal, or no decoration wanted."""
        return not self.console.is_terminal or self.console.is_dumb_terminal or _no_color()

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """Time one step, show that it runs, and how it ended."""
        step = Step(len(self.steps) + 1, title)
        self.steps.append(step)
        self.console.print(Text(f"[{step.number:2}] {title}", style="bold"))
        started = time.monotonic()
        try:
            with self._spinner(title):
                yield step
            step.outcome = Outcome.DONE
        except asyncio.CancelledError:
            step.outcome = Outcome.INTERRUPTED
            raise
        finally:
            step.time_s = time.monotonic() - started
            self._end(step)

    def _spinner(self, title: str) -> contextlib.AbstractContextManager[object]:
        if self.is_plain:
            return contextlib.nullcontext()
        return self.console.status(
            Text(f"{title} …", style="dim"), refresh_per_second=_SPINNERS_PER_S
        )

    def _end(self, step: Step) -> None:
        line = Text(_INDENT)
        line.append(step.outcome, style="green" if step.outcome is Outcome.DONE else "bold red")
        line.append(f" in {step.time_s:.2f} s")
        for text in _measured(step):
            line.append(f"; {text}")
        self.console.print(line)

    def command(self, line: str) -> None:
        """Show a command as a user would type it."""
        self.console.print(Text(f"{_INDENT}$ {line}", style="cyan"), soft_wrap=True)

    def output(self, text: str, *, style: str = "") -> None:
        """Show what a program said, line by line."""
        for line in text.rstrip("\n").splitlines():
            self.console.print(Text(f"{_INDENT}{line}", style=style), soft_wrap=True)

    def note(self, text: str) -> None:
        """Say in our own words what happened."""
        self.console.print(Text(f"{_INDENT}{text}", style="dim"), soft_wrap=True)

    def proven(self, text: str) -> None:
        """Say which comparison held."""
        line = Text(_INDENT)
        line.append("✓ ", style="bold green")
        line.append(text)
        self.console.print(line, soft_wrap=True)

    def differences(self, name: str, lines: Sequence[str]) -> None:
        """Show what was filled in on one of the page's manifests."""
        if not lines:
            self.note(f"{name}: exactly as on the page")
            return
        self.note(f"{name}: filled in, the rest exactly as on the page")
        for line in lines:
            self.changed_line(line)

    def changed_line(self, line: str) -> None:
        """Show one line of a diff."""
        style = "red" if line.startswith("-") else "green"
        self.console.print(Text(f"{_INDENT}  {line}", style=style), soft_wrap=True)

    def problem(self, title: str, text: str) -> None:
        """Show one part of what explains a failure."""
        self.console.print(Text(f"\n{title}", style="bold red"), soft_wrap=True)
        self.output(text)

    def table(self) -> None:
        """Print the table of steps, and what was compared."""
        table = Table(
            title="The main job", box=None, pad_edge=False, show_footer=True, expand=False
        )
        total_s = sum(step.time_s for step in self.steps)
        table.add_column("step", footer="all")
        table.add_column("time", justify="right", footer=f"{total_s:.2f} s", no_wrap=True)
        table.add_column("bytes moved", justify="right", no_wrap=True)
        table.add_column("bytes shared", justify="right", no_wrap=True)
        for step in self.steps:
            table.add_row(
                f"{step.number:2} {step.title}" + _unless_done(step.outcome),
                f"{step.time_s:.2f} s",
                "" if step.moved_bytes is None else format_bytes(step.moved_bytes),
                "" if step.shared_bytes is None else format_bytes(step.shared_bytes),
            )
        self.console.print()
        self.console.print(table)
        done = self.compared
        self.console.print(
            f"\n{done.comparisons} trees compared: {done.file_count:,} files, "
            f"{format_bytes(done.content_bytes)} of content; type, mode, owner, modification time, "
            "hash, links and extended attributes of each."
        )


def make_console() -> Console:
    """Return a console for standard output; as wide as lines need where it is no terminal."""
    console = Console(highlight=False)
    if not console.is_terminal:
        return Console(highlight=False, width=_PLAIN_WIDTH)
    return Console(highlight=False, color_system=None) if _no_color() else console


def format_bytes(count: int) -> str:
    """Return a count of bytes in a unit that leaves it readable."""
    if count < 0:
        return f"{format_bytes(-count)} freed"
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"


def _measured(step: Step) -> list[str]:
    said = []
    if step.moved_bytes is not None and step.moved_bytes < 0:
        said.append(format_bytes(step.moved_bytes))
    elif step.moved_bytes is not None:
        said.append(f"{format_bytes(step.moved_bytes)} moved")
    if step.shared_bytes is not None:
        said.append(f"{format_bytes(step.shared_bytes)} shared")
    return said


def _unless_done(outcome: Outcome) -> str:
    return "" if outcome is Outcome.DONE else f" ({outcome.lower()})"


def _no_color() -> bool:
    return bool(os.environ.get("NO_COLOR"))
