"""The words and the file that a run ends with.

Owns tables on the terminal, JSON below `bench/results/`, and what the machine is. Must never judge:
sections bring their checks.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from bench.figures import median

if TYPE_CHECKING:
    from bench.figures import Check, Section

RESULTS = Path(__file__).resolve().parent / "results"
_WIDTH = 110


class Report:
    """Prints each section as it comes and keeps all for the file."""

    def __init__(self, arguments: dict[str, Any], *, judges_timings: bool) -> None:
        self._console = Console(width=_WIDTH, highlight=False)
        self._arguments = arguments
        self._judges_timings = judges_timings
        self._sections: list[Section] = []
        self._began = datetime.now(UTC)
        for name, value in machine().items():
            self._console.print(f"{name:10} {value}")

    def add(self, section: Section) -> None:
        self._sections.append(section)
        self._console.print()
        if section.seconds:
            self._console.print(_table(section))
        else:
            self._console.print(f"[bold]{section.title}")
        for name, value in section.figures.items():
            self._console.print(f"  {name}: {value}")
        for check in section.checks:
            self._console.print(f"  {self._mark(check)}  {check.promise}: {check.found}")

    def broken(self) -> list[Check]:
        """Return the promises that count in this run and were not kept."""
        checks = [check for section in self._sections for check in section.checks]
        return [check for check in checks if not check.is_kept and self._counts(check)]

    def _counts(self, check: Check) -> bool:
        return self._judges_timings or not check.is_timing

    def _mark(self, check: Check) -> str:
        if check.is_kept:
            return "[green]kept  [/]"
        return "[red]BROKEN[/]" if self._counts(check) else "not judged"

    def write(self) -> Path:
        """Write all figures as JSON; return where."""
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{self._began:%Y%m%dT%H%M%SZ}.json"
        content = {
            "formatVersion": 1,
            "began": self._began.isoformat(),
            "arguments": self._arguments,
            "machine": machine(),
            "sections": [dataclasses.asdict(section) for section in self._sections],
        }
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        return path


def machine() -> dict[str, str]:
    """Return what the figures were measured on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    qemu = subprocess.run(["qemu-img", "--version"], check=True, capture_output=True, text=True)
    return {
        "machine": f"{os.cpu_count()} cores, {memory / (1 << 30):.0f} GiB of memory, load {load}",
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "software": f"Python {platform.python_version()}, {qemu.stdout.splitlines()[0]}",
        "commit": _commit(),
    }


def _commit() -> str:
    argv = ["git", "-C", str(RESULTS.parent), "rev-parse", "--short", "HEAD"]
    found = subprocess.run(argv, check=False, capture_output=True, text=True)
    return found.stdout.strip() or "not a checkout"


def _table(section: Section) -> Table:
    table = Table(title=section.title, title_justify="left", title_style="bold")
    table.add_column("what")
    for name in ("median", "least", "most", "rounds"):
        table.add_column(name, justify="right")
    if section.instead_of:
        table.add_column("times faster than")
    for what, seconds in section.seconds.items():
        cells = [duration(value) for value in (median(seconds), min(seconds), max(seconds))]
        row = [what, *cells, str(len(seconds))]
        if section.instead_of:
            row.append(_comparisons(section, what))
        table.add_row(*row)
    return table


def _comparisons(section: Section, what: str) -> str:
    lines = []
    for other in section.instead_of.get(what, []):
        ratios = section.ratios(what, other)
        spread = f"{_times(median(ratios))} ({_times(min(ratios))} to {_times(max(ratios))})"
        lines.append(f"{spread} {other}")
    return "\n".join(lines)


def _times(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.1f}"


def duration(seconds: float) -> str:
    """Return seconds for a reader: 1.23 s, 45.6 ms."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"
