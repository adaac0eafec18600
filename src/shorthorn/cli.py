"""The command-line program: sub-commands put together.

Owns: their names. Must never: do anything itself. Entry point `shorthorn`, also `python -m
shorthorn`.
"""

from __future__ import annotations

import typer

from shorthorn.commands import claims, cluster, demo, handle, lint, service
from shorthorn.commands.image import app as image

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="markdown",
    help="Golden disk images behind the Kubernetes VolumeSnapshot API.\n\n"
    "`shorthorn up` serves one host; then plain `kubectl` does the rest. `shorthorn controller` and"
    " `shorthorn node` are what the Helm chart runs in a cluster.",
)
app.command("up")(service.up)
app.command("down")(service.down)
app.command("login")(service.login)
app.command("controller", epilog=cluster.CONTROLLER_EPILOG)(cluster.controller)
app.command("node", epilog=cluster.NODE_EPILOG)(cluster.node)
app.command("mount")(claims.mount)
app.command("umount")(claims.umount)
app.command("path")(claims.path)
app.add_typer(image.app, name="image")
app.add_typer(handle.app, name="handle")
app.command("lint", epilog=lint.EPILOG)(lint.lint)
app.command("demo", epilog=demo.EPILOG)(demo.demo)


def main() -> None:
    """Run the command line."""
    app()
