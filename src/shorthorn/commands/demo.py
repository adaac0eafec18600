"""`shorthorn demo`: the main job, for a user's eyes.

Owns: options and exit status. Must never: know a step (`shorthorn.demo` does).
"""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path
from typing import Annotated

import typer

EPILOG = """Watch it: shorthorn demo

With your own files: shorthorn demo --source /srv/pictures --source-mib 512

After a failure, look into it: shorthorn demo --keep

Plain lines for a log: NO_COLOR=1 shorthorn demo | tee demo.log
"""


def demo(
    directory: Annotated[
        Path | None,
        typer.Option(
            "--dir",
            help="Where the private directory is made; about 3.5 GiB are needed. Default: TMPDIR,"
            " else /var/tmp.",
            file_okay=False,
            exists=True,
            resolve_path=True,
            show_default=False,
        ),
    ] = None,
    source: Annotated[
        list[Path] | None,
        typer.Option(
            help="What the volume is filled with; may be given again. Default: /usr/share/doc and"
            " other directories that every machine has.",
            file_okay=False,
            exists=True,
            resolve_path=True,
            show_default=False,
        ),
    ] = None,
    source_mib: Annotated[
        int, typer.Option(help="Copy at most so many MiB.", min=1, max=800)
    ] = 160,
    source_files: Annotated[
        int, typer.Option(help="Copy at most so many files.", min=1, max=100_000)
    ] = 6000,
    kubectl: Annotated[str, typer.Option(help="Which kubectl to use.")] = "kubectl",
    keep: Annotated[
        bool, typer.Option("--keep", help="After a failure, keep the data to look into it.")
    ] = False,
) -> None:
    """Carry a real disk through everything: export, restore, download, refusals. Needs root.

    Starts `shorthorn up` on a private directory and then does what a user does, with plain kubectl:
    a claim is filled with files of this machine and keeps being written to; a VolumeSnapshot
    makes a qcow2 image of it, and a second claim is restored from that image and compared file by
    file. Then the other ways to an image: one that exists, one that is downloaded on demand, one
    that is exported on demand. Then what is refused, and how that is said. At last everything is
    deleted.

    Every step is shown with its commands and its time, and a table at the end says how many
    bytes were moved and how many are shared. The exit status is 0 only if every comparison held;
    whatever happens, also after Ctrl-C, nothing stays behind.
    """
    if os.geteuid() != 0:
        typer.echo("shorthorn: the demo mounts file systems: run it as root", err=True)
        raise typer.Exit(1)
    from shorthorn.demo import run  # much to import, for this command only
    from shorthorn.demo.report import Report, make_console
    from shorthorn.demo.tree_source import CANDIDATES, Bounds

    options = run.Options(
        parent=directory or run.default_parent(),
        sources=tuple(source) if source else CANDIDATES,
        bounds=Bounds(source_mib << 20, source_files),
        # Found as the user's shell finds it; our own programs are looked for in fewer places.
        kubectl=shutil.which(kubectl) or kubectl,
        keep=keep,
    )
    raise typer.Exit(asyncio.run(run.run(options, Report(make_console()))))
