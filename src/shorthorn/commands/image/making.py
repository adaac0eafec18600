"""`shorthorn image create` and `export`: images from URLs, other images and volumes.

Owns: the objects these two write. Must never: move bytes. `app` puts the commands together.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from shorthorn.commands.image import options, printing
from shorthorn.commands.image.printing import Output
from shorthorn.domain.handle_traps import CHECKSUM_FORM

if TYPE_CHECKING:
    from shorthorn.commands.image.cluster import Cluster, Object

CREATE_EPILOG = """From the web, and wait for it:

  shorthorn image create debian-12 --wait \\
    --url https://cloud.debian.org/images/cloud/bookworm/latest/debian-12-nocloud-amd64.qcow2

Only if its file has this checksum, and on two nodes:

  shorthorn image create golden --url https://example.org/golden.qcow2 --copies 2 \\
    --checksum "$(curl -s https://example.org/golden.qcow2.sha512 | cut -d' ' -f1)"

From another image: shorthorn image create golden-test --from-image golden
"""
EXPORT_EPILOG = """From a claim: shorthorn image export golden --claim default/test-vol --wait

From a volume, as qcow2: shorthorn image export golden --volume pvc-6b7d6e0c --format qcow2
"""

Created = Annotated[
    Output | None,
    typer.Option("--output", "-o", help="Print the object.", show_default=False),
]
Checksum = Annotated[
    str,
    typer.Option(
        help="SHA-512 that the image's file must have; with any other it fails.",
        metavar="SHA512",
        show_default=False,
    ),
]
Copies = Annotated[int, typer.Option(help="On how many nodes it is kept.", min=1, max=1000)]
NodeSelector = Annotated[
    list[str] | None,
    typer.Option(help="Tag that its nodes must have; may be given again.", metavar="TAG"),
]
DiskSelector = Annotated[
    list[str] | None,
    typer.Option(help="Tag that its disks must have; may be given again.", metavar="TAG"),
]


class Format(StrEnum):
    """Format of an exported image's file."""

    RAW = "raw"
    QCOW2 = "qcow2"


def create(
    name: Annotated[str, typer.Argument(help="Name of the new image.", show_default=False)],
    url: Annotated[
        str, typer.Option(help="Where to download it from: http or https.", show_default=False)
    ] = "",
    from_image: Annotated[
        str,
        typer.Option(
            help="Image to make it from, which may go afterwards.",
            metavar="NAME",
            show_default=False,
            autocompletion=options.complete_image,
        ),
    ] = "",
    checksum: Checksum = "",
    copies: Copies = 1,
    node_selector: NodeSelector = None,
    disk_selector: DiskSelector = None,
    wait: options.Wait = False,
    timeout_s: options.Timeout = options.TIMEOUT_S,
    quiet: options.Quiet = False,
    output: Created = None,
    namespace: options.Namespace = options.NAMESPACE,
    kubeconfig: options.Kubeconfig = None,
    data_dir: options.DataDir = None,
) -> None:
    """Make an image from a URL, or from another image.

    The cluster does the work, with or without --wait. Asked again with the same words it changes
    nothing and succeeds; a name that means something else is refused.
    """
    if bool(url) == bool(from_image):
        raise typer.BadParameter("give either --url or --from-image")
    source = ("download", {"url": url}) if url else ("clone", {"backing-image": from_image})
    wanted = image_object(
        name,
        source_type=source[0],
        parameters=source[1],
        checksum=read_checksum(checksum),
        copies=copies,
        node_selector=node_selector or [],
        disk_selector=disk_selector or [],
    )
    place = options.find_place(kubeconfig, data_dir, namespace)
    _make(place, wanted, wait=wait, timeout_s=timeout_s, quiet=quiet, output=output)


def export(
    name: Annotated[str, typer.Argument(help="Name of the new image.", show_default=False)],
    volume: Annotated[
        str,
        typer.Option(help="Handle of the volume: pvc-UID.", metavar="HANDLE", show_default=False),
    ] = "",
    claim: Annotated[
        str,
        typer.Option(
            help="Claim whose volume it is.", metavar="NAMESPACE/NAME", show_default=False
        ),
    ] = "",
    image_format: Annotated[
        Format, typer.Option("--format", help="Format of the image's file.")
    ] = Format.QCOW2,
    copies: Copies = 1,
    wait: options.Wait = False,
    timeout_s: options.Timeout = options.TIMEOUT_S,
    quiet: options.Quiet = False,
    output: Created = None,
    namespace: options.Namespace = options.NAMESPACE,
    kubeconfig: options.Kubeconfig = None,
    data_dir: options.DataDir = None,
) -> None:
    """Make an image from a volume, whether it is in use or not.

    What the volume holds at one moment soon after the command is what the image holds
    (status.pointInTime says which). The volume may go afterwards.
    """
    if bool(volume) == bool(claim):
        raise typer.BadParameter("give either --volume or --claim")
    if claim and not re.fullmatch(r"(?:[^/\s]+/)?[^/\s]+", claim):
        raise typer.BadParameter(f"{claim!r} is not NAMESPACE/NAME", param_hint="--claim")
    place = options.find_place(kubeconfig, data_dir, namespace)

    async def wanted(cluster: Cluster) -> Object:
        handle = volume or await _volume_of(cluster, claim)
        return image_object(
            name,
            source_type="export-from-volume",
            parameters={"volume-name": handle, "export-type": image_format.value},
            copies=copies,
        )

    _make(place, wanted, wait=wait, timeout_s=timeout_s, quiet=quiet, output=output)


def image_object(
    name: str,
    *,
    source_type: str,
    parameters: dict[str, str],
    checksum: str = "",
    copies: int = 1,
    node_selector: list[str] | None = None,
    disk_selector: list[str] | None = None,
    annotations: dict[str, str] | None = None,
) -> Object:
    """Return a BackingImage to create; what is not asked for is left out.

    Raises: BadParameter: no image can have this name, or be at this URL.
    """
    parameters = _checked(name, parameters)
    spec: dict[str, Any] = {"sourceType": source_type, "minNumberOfCopies": copies}
    optional = {
        "sourceParameters": parameters,
        "checksum": checksum,
        "nodeSelector": node_selector,
        "diskSelector": disk_selector,
    }
    spec |= {key: value for key, value in optional.items() if value}
    metadata: dict[str, Any] = {"name": name}
    if annotations:
        metadata["annotations"] = annotations
    return {
        "apiVersion": "longhorn.io/v1beta2",
        "kind": "BackingImage",
        "metadata": metadata,
        "spec": spec,
    }


def _checked(name: str, parameters: dict[str, str]) -> dict[str, str]:
    """Return the parameters as objects hold them. Raises: BadParameter."""
    from shorthorn.domain.errors import InvalidArgument
    from shorthorn.services.image_requests import URL, check_name, web_url

    try:
        check_name(name)
    except InvalidArgument as exc:
        raise typer.BadParameter(exc.problem, param_hint="NAME") from None
    try:
        return {k: web_url(v.strip()) if k == URL else v for k, v in parameters.items()}
    except InvalidArgument as exc:
        raise typer.BadParameter(f"this {exc.problem}", param_hint="--url") from None


def read_checksum(text: str) -> str:
    """Return a SHA-512 as objects hold it: lower case. Raises: BadParameter."""
    checksum = text.strip().lower()
    if checksum and not CHECKSUM_FORM.fullmatch(checksum):
        raise typer.BadParameter(
            "a SHA-512 is 128 hexadecimal digits, as `sha512sum` prints them",
            param_hint="--checksum",
        )
    return checksum


def _make(
    place: options.Place,
    wanted: Any,
    *,
    wait: bool,
    timeout_s: float,
    quiet: bool,
    output: Output | None,
) -> None:
    """Create an image (an object, or what makes one of the cluster), and say what is to be said."""
    from shorthorn.commands.image.cluster import run
    from shorthorn.commands.image.waiting import wait_ready

    async def work(cluster: Cluster) -> None:
        obj = wanted if isinstance(wanted, dict) else await wanted(cluster)
        made, is_new = await _create(cluster, obj)
        name = made["metadata"]["name"]
        if output is None:
            typer.echo(f"{name} {'created' if is_new else 'exists already, as asked for'}")
        if wait:
            made = await wait_ready(cluster, name, timeout_s=timeout_s, quiet=quiet)
        if output is not None:
            printing.print_objects([made], output)
        elif wait:
            typer.echo(f"{name} is ready")

    told = "the image goes on being made; `shorthorn image ls -w` shows it"
    run(place, work, interrupted=told)


async def _create(cluster: Cluster, wanted: Object) -> tuple[Object, bool]:
    """Create the image, or return the one that is there if nothing of it differs."""
    from shorthorn.domain import errors

    name = wanted["metadata"]["name"]
    try:
        return await cluster.create_image(wanted), True
    except errors.AlreadyExists:
        found = await cluster.image(name)
    if found["metadata"].get("deletionTimestamp"):
        raise errors.OperationPending(f"backing image {name}, which is being deleted")
    for key in ("sourceType", "sourceParameters", "checksum", "nodeSelector", "diskSelector"):
        have, want = found["spec"].get(key), wanted["spec"].get(key)
        if (have or None) != (want or None):
            raise errors.AlreadyExists("backing image", name, f"its {key} is {have or 'not set'}")
    return found, False


async def _volume_of(cluster: Cluster, claim: str) -> str:
    """Return the handle of a claim's volume."""
    from shorthorn.commands.image.cluster import CLAIM, PERSISTENT_VOLUME

    namespace, _, name = claim.rpartition("/")
    found = await cluster.find(CLAIM, name, namespace=namespace or "default")
    volume = str((found.get("spec") or {}).get("volumeName") or "")
    if not volume:
        _refuse(f"claim {claim} is not bound to a volume yet")
    persistent = await cluster.find(PERSISTENT_VOLUME, volume)
    source = (persistent.get("spec") or {}).get("csi") or {}
    if not source.get("volumeHandle"):
        _refuse(f"the volume of claim {claim} is none of a CSI driver")
    return str(source["volumeHandle"])


def _refuse(message: str) -> NoReturn:
    from shorthorn.commands.serving import refuse

    refuse(message)
