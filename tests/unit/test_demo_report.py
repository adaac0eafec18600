"""What the main job prints: on a terminal, in a log, and with NO_COLOR."""

from __future__ import annotations

import asyncio
import io

import pytest
from rich.console import Console

from shorthorn.demo.report import Report, format_bytes, make_console


def console(*, terminal: bool, width: int = 100) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    made = Console(file=out, force_terminal=terminal, width=width)
    return made, out


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (5 << 20, "5.0 MiB"),
        (3 << 30, "3.00 GiB"),
        (5000 << 30, "5000.00 GiB"),
        (-(5 << 20), "5.0 MiB freed"),
    ],
)
def test_bytes_are_told_in_a_readable_unit(count, expected):
    assert format_bytes(count) == expected


def test_a_step_is_told_with_time_and_bytes_and_stands_in_the_table():
    made, out = console(terminal=False)
    report = Report(made)
    with report.step("first") as step:
        step.moved_bytes, step.shared_bytes = 2048, 4096
    report.table()
    said = out.getvalue()
    assert "[ 1] first" in said
    assert "s; 2.0 KiB moved; 4.0 KiB shared" in said
    assert " 1 first" in said.split("The main job")[1]


@pytest.mark.parametrize(
    ("error", "told"),
    [(RuntimeError("x"), "failed"), (asyncio.CancelledError(), "interrupted")],
)
def test_a_step_that_did_not_end_well_says_so(error, told):
    made, out = console(terminal=False)
    report = Report(made)
    with pytest.raises(type(error)), report.step("first"):
        raise error
    report.table()
    assert f"1 first ({told})" in out.getvalue()
    assert "done" not in out.getvalue()


def test_without_a_terminal_there_are_lines_and_nothing_else():
    made, out = console(terminal=False)
    report = Report(made)
    with report.step("first"):
        report.command("kubectl get pvc")
        report.proven("equal")
    assert report.is_plain
    assert "\x1b" not in out.getvalue()


def test_on_a_terminal_a_spinner_turns_while_a_step_runs():
    made, out = console(terminal=True)
    report = Report(made)
    with report.step("first"):
        assert not report.is_plain
    assert "first …" in out.getvalue()
    assert "\x1b" in out.getvalue()


def test_no_color_means_plain_lines_on_a_terminal_too(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes the output for a terminal then
    made = make_console()
    made.file = out = io.StringIO()
    report = Report(made)
    with report.step("first"):
        report.proven("equal")
    assert report.is_plain
    assert "\x1b" not in out.getvalue()


def test_a_diff_shows_what_was_taken_away_and_what_was_put_in():
    made, out = console(terminal=False)
    Report(made).differences("x.yaml", ["-  name: a", "+  name: b"])
    Report(made).differences("y.yaml", [])
    assert "x.yaml: filled in, the rest exactly as on the page" in out.getvalue()
    assert "-  name: a" in out.getvalue()
    assert "y.yaml: exactly as on the page" in out.getvalue()
