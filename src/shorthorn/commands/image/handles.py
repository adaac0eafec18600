"""`shorthorn image handle`: how an image is named in manifests.

Owns: the command. Must never: know the grammar of handles, or a manifest (`domain.manifests` does).
`app` puts the commands together.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shorthorn.commands.image import options, printing

if TYPE_CHECKING:
    from shorthorn.commands.image.cluster import Cluster
    from shorthorn.domain.models import BackingImage

EPILOG = """The handle: shorthorn image handle debian-12

A claim from an image, and all it needs:

  shorthorn image handle debian-12 --kind all --name my-disk -n default | kubectl apply -f -

Only the claim, larger than the image:

  shorthorn image handle debian-12 --kind claim --size 20Gi
"""


class Kind(StrEnum):
    """What is printed instead of the handle."""

    CONTENT = "content"
    SNAPSHOT = "snapshot"
    CLAIM = "claim"
    ALL = "all"


class VolumeMode(StrEnum):
    """How a claim's volume is used."""

    FILESYSTEM = "Filesystem"
    BLOCK = "Block"


def handle(
    name: options.ImageName,
    kind: Annotated[
        Kind | None,
        typer.Option(help="Print a manifest instead, as YAML.", show_default=False),
    ] = None,
    namespace: Annotated[
        str, typer.Option("--namespace", "-n", help="Namespace of snapshot and claim.")
    ] = "default",
    object_name: Annotated[
        str,
        typer.Option(
            "--name",
            help="Name of content, snapshot and claim. Default: the image's.",
            show_default=False,
        ),
    ] = "",
    size: Annotated[
        str,
        typer.Option(help="Size of the claim. Default: the image's virtual size.", metavar="10Gi"),
    ] = "",
    volume_mode: Annotated[
        VolumeMode,
        typer.Option(help="Block for images with partitions: VM disks.", case_sensitive=False),
    ] = VolumeMode.FILESYSTEM,
    storage_class: Annotated[str, typer.Option(help="StorageClass of the claim.")] = "longhorn",
    image_namespace: options.ImageNamespace = options.NAMESPACE,
    kubeconfig: options.Kubeconfig = None,
    data_dir: options.DataDir = None,
) -> None:
    """Print the bi:// handle of an image, or manifests with it that are ready to be applied.

    content: a VolumeSnapshotContent, which keeps the image when it goes. snapshot: the
    VolumeSnapshot that it stands for. claim: a claim for a new volume made from that. all: the
    three.
    """
    from shorthorn.commands.image.cluster import run
    from shorthorn.domain.manifests import Names

    names = Names(object_name or name, namespace, storage_class=storage_class)
    place = options.find_place(kubeconfig, data_dir, image_namespace)

    async def work(cluster: Cluster) -> None:
        from shorthorn.kube.resources import BACKING_IMAGE

        image = BACKING_IMAGE.from_object(await cluster.image(name))
        text = _handle(image)
        if kind is None:
            typer.echo(text)
            return
        documents = _documents(image, text, names, size=size, mode=volume_mode)
        chosen = documents if kind is Kind.ALL else {kind: documents[kind]}
        typer.echo(printing.to_yaml(*chosen.values()))

    run(place, work)


def _handle(image: BackingImage) -> str:
    from shorthorn.commands.serving import refuse
    from shorthorn.domain.manifests import handle_of

    text = handle_of(image)
    if text is None:
        refuse(f"no handle can name image {image.meta.name}")
    return text


def _documents(
    image: BackingImage, text: str, names: Any, *, size: str, mode: VolumeMode
) -> dict[Kind, dict[str, Any]]:
    from shorthorn.domain import manifests
    from shorthorn.settings import DRIVER_NAME

    claim = manifests.claim(
        names,
        snapshot=names.name,
        size_bytes=image.status.virtual_size_bytes,
        volume_mode=mode.value,
    )
    if size:
        claim["spec"]["resources"]["requests"]["storage"] = _quantity(size)
    elif not image.status.virtual_size_bytes:
        typer.echo("shorthorn: the image's size is not known yet; check the claim's", err=True)
    return {
        Kind.CONTENT: manifests.content(text, names, driver=DRIVER_NAME),
        Kind.SNAPSHOT: manifests.snapshot(names),
        Kind.CLAIM: claim,
    }


def _quantity(text: str) -> str:
    from shorthorn.domain.errors import InvalidArgument
    from shorthorn.standalone.quantity import parse_quantity

    try:
        parse_quantity(text)
    except InvalidArgument as exc:
        raise typer.BadParameter(str(exc), param_hint="--size") from None
    return text
