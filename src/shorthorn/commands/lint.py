"""`shorthorn lint`: explain what is wrong in manifests, and print or write the mended form.

Owns: files, output and exit code. Must never: know a rule (`shorthorn.lint` does).
`cli` takes `lint` and `EPILOG`, `app` is that one command alone.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from shorthorn.lint import Finding, Severity, check, mend

app = typer.Typer()

EPILOG = """Explain: shorthorn lint *.yaml

See what would change: shorthorn lint --fix snapshot.yaml | diff snapshot.yaml -

Mend and apply: shorthorn lint --fix snapshot.yaml | kubectl apply -f -

Mend the file itself: shorthorn lint --fix --in-place snapshot.yaml

For a machine: shorthorn lint -o json snapshot.yaml | jq '.findings[].rule'
"""

_STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.INFO: "cyan"}
_STDIN = "-"


class Output(StrEnum):
    """How findings are printed."""

    TEXT = "text"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class _Linted:
    """One file: its mended text (its own text without --fix) and what is left to say."""

    name: str
    text: str
    findings: list[Finding]


@app.command("lint", epilog=EPILOG)
def lint(
    files: Annotated[
        list[str], typer.Argument(help="YAML files; - is standard input.", show_default=False)
    ],
    fix: Annotated[bool, typer.Option("--fix", help="Print the mended manifests.")] = False,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="With --fix: write the files instead.")
    ] = False,
    output: Annotated[
        Output, typer.Option("--output", "-o", help="How to print what was found.")
    ] = Output.TEXT,
) -> None:
    """Explain what is wrong in snapshot and claim manifests, and mend what is clear.

    Checks VolumeSnapshotClass, VolumeSnapshot, VolumeSnapshotContent and
    PersistentVolumeClaim: fields at the wrong indentation, versions no longer
    served, handles that mean something else than they seem to. Comments and
    layout survive mending.

    With --fix the mended manifests go to standard output and the findings that
    are left to standard error. Exits 1 if errors remain.
    """
    if in_place and (not fix or _STDIN in files):
        raise typer.BadParameter("--in-place needs --fix, and files that can be written")
    linted = [_lint_file(name, fix=fix) for name in files]
    if fix and in_place:
        for one in linted:
            _write(Path(one.name), one.text)
    elif fix:
        # Bytes: the manifest's own characters, whatever the terminal's encoding is.
        typer.echo(_joined([one.text for one in linted]).encode(), nl=False)
    _report(linted, output, to_stderr=fix and not in_place)
    if any(finding.is_error for one in linted for finding in one.findings):
        raise typer.Exit(1)


def _lint_file(name: str, *, fix: bool) -> _Linted:
    try:
        raw = sys.stdin.buffer.read() if name == _STDIN else Path(name).read_bytes()
    except OSError as exc:
        _fail(f"cannot read {name}: {exc.strerror}")
    try:
        # Bytes, not text mode: line ends have to survive.
        text = raw.decode("utf-8")
    except UnicodeDecodeError as exc:
        _fail(f"{name} is not UTF-8 text (byte {exc.start}); is it a manifest?")
    if fix:
        text = mend(text)
    return _Linted(name, text, check(text))


def _report(linted: list[_Linted], output: Output, *, to_stderr: bool) -> None:
    if output is Output.JSON:
        listed = [_as_json(one.name, finding) for one in linted for finding in one.findings]
        typer.echo(json.dumps({"findings": listed}, indent=2), err=to_stderr)
        return
    console = Console(stderr=to_stderr, highlight=False, soft_wrap=True)
    for one in linted:
        for finding in one.findings:
            console.print(_as_text(one.name, finding))
    if not to_stderr:
        console.print(_summary([finding for one in linted for finding in one.findings]))


def _as_text(name: str, finding: Finding) -> Text:
    shown = Text(f"{_printable(name)}:{finding.line}:{finding.column}: ")
    shown.append(f"{finding.severity}", style=_STYLES[finding.severity])
    shown.append(f" [{finding.rule}] {_printable(finding.message)}\n")
    return shown.append(f"    → {_printable(finding.advice)}", style="dim")


def _as_json(name: str, finding: Finding) -> dict[str, object]:
    return {
        "file": name,
        "line": finding.line,
        "column": finding.column,
        "severity": finding.severity,
        "rule": finding.rule,
        "message": finding.message,
        "advice": finding.advice,
        "mendable": finding.mend is not None,
    }


def _summary(findings: list[Finding]) -> str:
    counts = dict.fromkeys(Severity, 0)
    for finding in findings:
        counts[finding.severity] += 1
    mendable = sum(finding.mend is not None for finding in findings)
    told = ", ".join(
        f"{count} {severity}{'s' * (count > 1)}" for severity, count in counts.items() if count
    )
    hint = f"; {mendable} can be mended with --fix" if mendable else ""
    return (told or "nothing to say") + hint


def _printable(text: str) -> str:
    """Replace what would move the cursor or end the line: manifests come from anywhere."""
    return "".join(char if char.isprintable() else "\ufffd" for char in text)


def _joined(texts: list[str]) -> str:
    """Join files into one stream, each beginning a document of its own."""
    joined = ""
    for text in texts:
        if joined and not text.startswith(("---", "%")):
            text = f"---\n{text}"
        joined += text if not joined or joined.endswith("\n") else f"\n{text}"
    return joined


def _write(path: Path, text: str) -> None:
    """Replace a file's content atomically, keeping its mode; unchanged files stay untouched."""
    raw = text.encode()
    try:
        target = path.resolve(strict=True)
        if target.read_bytes() == raw:
            return
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(raw)
                os.fchmod(stream.fileno(), target.stat().st_mode & 0o7777)
            Path(name).replace(target)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as exc:
        _fail(f"cannot write {path}: {exc.strerror}")


def _fail(problem: str) -> NoReturn:
    typer.echo(f"shorthorn: {problem}", err=True)
    raise typer.Exit(1)
