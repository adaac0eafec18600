"""`shorthorn image upload` and `download`: their options, and what users are told.

Owns: the two commands. Must never: move a byte (`uploading` and `downloading` do). `app` puts the
commands together.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from shorthorn.commands.image import making, options, printing
from shorthorn.domain.image_bytes import ArtifactForm

if TYPE_CHECKING:
    from shorthorn.commands.image.cluster import Cluster
    from shorthorn.commands.image.part_file import PartFile, Stream

UPLOAD_EPILOG = """Send a file, and go on after whatever broke it (the same command again):

  shorthorn image upload golden golden.qcow2

Only if it is the right one: shorthorn image upload golden golden.qcow2 --checksum SHA512

To a cluster, from a shell beside `kubectl port-forward`:

  shorthorn image upload golden golden.qcow2 --server http://127.0.0.1:8080
"""
DOWNLOAD_EPILOG = """The image's file as it is: shorthorn image download golden golden.qcow2

As a disk for a VM, with holes where it is empty:

  shorthorn image download golden golden.raw --as raw

Small, for an archive: shorthorn image download golden --as raw.zst

Through a pipe: shorthorn image download golden - --as raw | ssh other 'dd of=/dev/vdb bs=1M'
"""

_STDOUT = "-"


def upload(
    name: options.ImageName,
    file: Annotated[
        Path,
        typer.Argument(
            help="qcow2 or raw; a file or a block device.",
            exists=True,
            dir_okay=False,
            readable=True,
            show_default=False,
        ),
    ],
    checksum: making.Checksum = "",
    copies: making.Copies = 1,
    node_selector: making.NodeSelector = None,
    disk_selector: making.DiskSelector = None,
    server: options.Server = "",
    retry_for_s: options.RetryFor = options.RETRY_FOR_S,
    timeout_s: options.Timeout = options.TIMEOUT_S,
    quiet: options.Quiet = False,
    output: making.Created = None,
    namespace: options.Namespace = options.NAMESPACE,
    kubeconfig: options.Kubeconfig = None,
    data_dir: options.DataDir = None,
) -> None:
    """Make an image from a file of this machine.

    It can be interrupted at any time; the same command goes on with what is missing, and does
    nothing where all is there. The file is hashed while it is sent, and at the end compared with
    what arrived. A file of another length is refused from the beginning. Unfinished uploads are
    given up after a day; `shorthorn image rm` does it at once.
    """
    from shorthorn.commands.image.cluster import run
    from shorthorn.commands.image.endpoint import locator

    place = options.find_place(kubeconfig, data_dir, namespace)
    checksum = making.read_checksum(checksum)

    async def work(cluster: Cluster) -> None:
        from shorthorn.commands.image import byte_client, uploading

        locate = locator(place, server)
        locate()  # before anything is made
        wanted = uploading.Wanted(
            name, file, checksum, copies, tuple(node_selector or ()), tuple(disk_selector or ())
        )
        limits = uploading.Limits(retry_for_s, timeout_s, quiet)
        try:
            async with byte_client.ByteClient(locate) as client:
                obj = await uploading.upload(cluster, client, wanted, limits)
        except byte_client.Refused as exc:
            _refuse(f"the upload was refused: {exc}")
        except byte_client.Lost as exc:
            _refuse(f"the upload does not go on ({exc}); the same command takes it up again")
        if output is not None:
            printing.print_objects([obj], output)
        else:
            typer.echo(f"{name} is ready, SHA-512 {obj['status']['checksum']}")

    run(place, work, interrupted="interrupted; the same command goes on with the upload")


def download(
    name: options.ImageName,
    file: Annotated[
        str,
        typer.Argument(
            help="Where it goes; - is standard output. Default: the image's name with an ending.",
            show_default=False,
        ),
    ] = "",
    form: Annotated[
        ArtifactForm,
        typer.Option(
            "--as",
            help="artifact: the image's file, byte by byte. raw: what a guest sees. qcow2: that,"
            " compressed. raw.zst: that, with zstandard.",
        ),
    ] = ArtifactForm.ARTIFACT,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Replace FILE where it exists.")
    ] = False,
    server: options.Server = "",
    retry_for_s: options.RetryFor = options.RETRY_FOR_S,
    quiet: options.Quiet = False,
    namespace: options.Namespace = options.NAMESPACE,
    kubeconfig: options.Kubeconfig = None,
    data_dir: options.DataDir = None,
) -> None:
    """Fetch an image into a file of this machine.

    It arrives as FILE.part and is renamed when it is complete and durable; an artifact's SHA-512 is
    compared before. It can be interrupted at any time: of artifact and raw the same command fetches
    only what is missing, the other two begin anew.
    """
    from shorthorn.commands.image.cluster import run
    from shorthorn.commands.image.endpoint import locator

    place = options.find_place(kubeconfig, data_dir, namespace)
    if file == _STDOUT and sys.stdout.isatty():
        raise typer.BadParameter("an image is nothing for a terminal; name a file, or use a pipe")

    async def work(cluster: Cluster) -> None:
        from shorthorn.commands.image import byte_client, downloading
        from shorthorn.commands.image.progress import metered

        locate = locator(place, server)
        locate()
        target = file or _file_name(name, form, await cluster.image(name))
        sink = _open_sink(target, form, force=force)
        try:
            async with byte_client.ByteClient(locate) as client:
                with metered(name, quiet=quiet) as meter:
                    fetched = await downloading.download(
                        cluster, client, name, form, sink,
                        retry_for_s=retry_for_s, meter=meter,
                    )  # fmt: skip
        except byte_client.Refused as exc:
            _refuse(f"the download was refused: {exc}")
        except downloading.NotWritten as exc:
            _refuse(f"{target}: {exc}{_resume_hint(file, form)}")
        except byte_client.Lost as exc:
            _refuse(f"the download does not go on ({exc}){_resume_hint(file, form)}")
        finally:
            sink.close()
        _tell(target, form, fetched, printing.size(fetched.bytes_written))

    run(place, work, interrupted=f"interrupted{_resume_hint(file, form)}")


def _tell(target: str, form: ArtifactForm, fetched: object, amount: str) -> None:
    """Say what is there now, on standard error where standard output is the image."""
    checksum = getattr(fetched, "checksum", "")
    told = f"{'the image' if target == _STDOUT else target}: {amount}"
    if checksum:
        told += f", SHA-512 {checksum} as it should be"
    elif form is ArtifactForm.ARTIFACT:
        told += "; its checksum is not known yet, so it was not compared"
    typer.echo(told, err=target == _STDOUT)


def _resume_hint(file: str, form: ArtifactForm) -> str:
    if file == _STDOUT:
        return ""
    if form.has_ranges:
        return "; the same command goes on with the download"
    return f"; the same command begins anew ({form} cannot be resumed)"


def _file_name(name: str, form: ArtifactForm, obj: dict[str, object]) -> str:
    if form is not ArtifactForm.ARTIFACT:
        return f"{name}.{form}"
    status = obj.get("status")
    known = str(status.get("format") or "img") if isinstance(status, dict) else "img"
    return f"{name}.{known}"


def _open_sink(target: str, form: ArtifactForm, *, force: bool) -> PartFile | Stream:
    from shorthorn.commands.image.part_file import PartFile, Stream

    if target == _STDOUT:
        return Stream(sys.stdout.buffer)
    path = Path(target)
    if path.is_dir():
        _refuse(f"{path} is a directory; name a file in it")
    if path.exists() and not path.is_file():
        _refuse(f"{path} is not a regular file; write to it through a pipe: … - > {path}")
    if path.exists() and not force:
        _refuse(f"{path} exists; --force replaces it")
    if not os.access(path.parent, os.W_OK):
        _refuse(f"{path.parent} is no directory that you may write to")
    return PartFile(
        path,
        sparse=form is ArtifactForm.RAW,
        replace=force,
        hashed=form is ArtifactForm.ARTIFACT,
    )


def _refuse(message: str) -> NoReturn:
    from shorthorn.commands.serving import refuse

    refuse(message)
