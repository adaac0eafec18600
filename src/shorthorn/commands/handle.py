"""`shorthorn handle`: read and write snapshot handles.

Owns: the command's options and its JSON. Must never: know the grammar (`domain.handles` does).
`app` is mounted by `cli` under the name `handle`.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, NoReturn

import typer

from shorthorn.domain import handles
from shorthorn.domain.errors import InvalidArgument

app = typer.Typer(
    no_args_is_help=True,
    help="Read and write snapshot handles (bi://… and snap://…).",
)

_PARSE_EPILOG = """Quote the handle: & and ? mean something to the shell.

shorthorn handle parse 'bi://backing?backingImageDataSourceType=upload&backingImage=a'

shorthorn handle parse "$HANDLE" | jq -r '.warnings[]'
"""

_MAKE_EPILOG = """An image that exists:

  shorthorn handle make --image golden --source-type download

Download on demand:

  shorthorn handle make --image golden --source-type download \\
    --url 'https://example.org/golden.qcow2?v=1&arch=amd64' \\
    --checksum "$(sha512sum golden.qcow2 | cut -d' ' -f1)"

Export on demand:

  shorthorn handle make --image golden --source-type export-from-volume \\
    --volume-name "$(kubectl get pvc test-vol -o jsonpath='{.spec.volumeName}')" \\
    --export-type qcow2
"""

_MAKE_SNAP_EPILOG = "Example: shorthorn handle make-snap pvc-6b7d6e0c before-upgrade"


@app.command("parse", epilog=_PARSE_EPILOG)
def parse_handle(
    handle: Annotated[str, typer.Argument(help="The handle, quoted.", show_default=False)],
) -> None:
    """Print what a handle means, as JSON, with warnings about the known traps.

    Exits 1 with one line on standard error when the handle names nothing.
    """
    try:
        parsed = handles.parse(handle)
    except handles.InvalidHandle as exc:
        _refuse(exc)
    typer.echo(json.dumps(_described(parsed), indent=2))


@app.command("make", epilog=_MAKE_EPILOG)
def make_handle(
    image: Annotated[str, typer.Option(help="Name of the backing image.", show_default=False)],
    source_type: Annotated[
        str,
        typer.Option(
            help="How its bytes first arrived: download, export-from-volume, upload, restore"
            " or clone.",
            show_default=False,
        ),
    ],
    url: Annotated[str, typer.Option(help="URL to download, as you would type it.")] = "",
    volume_name: Annotated[
        str, typer.Option(help="Volume to export: its handle (pvc-UID), not the PVC's name.")
    ] = "",
    export_type: Annotated[str, typer.Option(help="Format to export: raw or qcow2.")] = "",
    checksum: Annotated[str, typer.Option(help="SHA-512 of the image's file.")] = "",
    param: Annotated[
        list[str] | None,
        typer.Option(help="Another source parameter; may be repeated.", metavar="KEY=VALUE"),
    ] = None,
) -> None:
    """Print the handle of a backing image, checked and percent-encoded.

    Without any source parameter it names an image that exists. With them the
    image is made on demand: download needs --url, export-from-volume needs
    --volume-name and --export-type.
    """
    named = {"url": url, "volume-name": volume_name, "export-type": export_type}
    try:
        parameters = _parameters(param or []) | {k: v for k, v in named.items() if v}
        typer.echo(handles.make(image, source_type, checksum, parameters).format())
    except InvalidArgument as exc:
        _refuse(exc)


@app.command("make-snap", epilog=_MAKE_SNAP_EPILOG)
def make_snapshot_handle(
    volume: Annotated[str, typer.Argument(help="The volume's handle.", show_default=False)],
    snapshot: Annotated[str, typer.Argument(help="The snapshot's name.", show_default=False)],
) -> None:
    """Print the handle of a snapshot that is kept beside its volume."""
    try:
        typer.echo(handles.SnapshotHandle(volume, snapshot).format())
    except InvalidArgument as exc:
        _refuse(exc)


def _described(parsed: handles.BackingImageHandle | handles.SnapshotHandle) -> dict[str, Any]:
    if isinstance(parsed, handles.SnapshotHandle):
        return {
            "type": "snap",
            "volume": parsed.volume_id,
            "snapshot": parsed.name,
            "warnings": list(parsed.warnings),
        }
    return {
        "type": "bi",
        "backingImage": parsed.backing_image,
        "sourceType": parsed.source_type,
        "checksum": parsed.checksum,
        "parameters": dict(parsed.parameters),
        "warnings": list(parsed.warnings),
    }


def _parameters(pairs: list[str]) -> dict[str, str]:
    parameters: dict[str, str] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator:
            raise InvalidArgument("--param", f"{pair!r}: write KEY=VALUE")
        parameters[key] = value
    return parameters


def _refuse(exc: InvalidArgument) -> NoReturn:
    """Say on one line of standard error what is wrong, and exit 1."""
    typer.echo(f"shorthorn: {exc}".encode("utf-8", "replace").decode(), err=True)
    raise typer.Exit(1) from None
