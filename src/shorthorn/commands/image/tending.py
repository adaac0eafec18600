"""`shorthorn image verify`, `retry` and `rm`: what is asked of images that are there.

Owns: these requests and the question before a deletion. Must never: touch anything but the image.
`app` puts the commands together.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from shorthorn.commands.image import options
from shorthorn.commands.image.printing import printable
from shorthorn.domain.image_bytes import RETRY_AT, VERIFY_AT

if TYPE_CHECKING:
    from shorthorn.commands.image.cluster import Cluster, Object
    from shorthorn.web.views.users import Users

VERIFY_EPILOG = """Read all copies again and compare: shorthorn image verify golden --wait"""
RETRY_EPILOG = """After the reason is mended: shorthorn image retry golden --wait"""
RM_EPILOG = """See what would happen, and decide: shorthorn image rm golden

In a script: shorthorn image rm golden old-golden --yes
"""


def verify(
    name: options.ImageName,
    wait: options.Wait = False,
    timeout_s: options.Timeout = options.TIMEOUT_S,
    quiet: options.Quiet = False,
    namespace: options.Namespace = options.NAMESPACE,
    kubeconfig: options.Kubeconfig = None,
    data_dir: options.DataDir = None,
) -> None:
    """Have every copy of an image read again: its artifact is hashed and compared with the
    checksum, and what volumes are made of is compared with the artifact.

    With --wait it ends with 0 if all is well and with 1 if not; the condition ChecksumVerified says
    the same.
    """
    from shorthorn.commands.image.cluster import run
    from shorthorn.commands.image.verifying import wait_verified

    place = options.find_place(kubeconfig, data_dir, namespace)

    async def work(cluster: Cluster) -> None:
        at = _now()
        await cluster.image(name)
        await cluster.annotate_image(name, {VERIFY_AT: at})
        if not wait:
            typer.echo(f"{name}: verification asked for at {at}")
            return
        checksum = await wait_verified(cluster, name, at, timeout_s=timeout_s, quiet=quiet)
        typer.echo(f"{name}: verified, SHA-512 {checksum}")

    run(place, work, interrupted="the verification goes on; `shorthorn image show` has its result")


def retry(
    name: options.ImageName,
    wait: options.Wait = False,
    timeout_s: options.Timeout = options.TIMEOUT_S,
    quiet: options.Quiet = False,
    namespace: options.Namespace = options.NAMESPACE,
    kubeconfig: options.Kubeconfig = None,
    data_dir: options.DataDir = None,
) -> None:
    """Have a failed image, or a failed copy of one, made anew."""
    from shorthorn.commands.image.cluster import run
    from shorthorn.commands.image.waiting import wait_retried

    place = options.find_place(kubeconfig, data_dir, namespace)

    async def work(cluster: Cluster) -> None:
        before = await cluster.image(name)
        at = _now()
        await cluster.annotate_image(name, {RETRY_AT: at})
        typer.echo(f"{name}: asked to try again at {at}")
        if wait:
            await wait_retried(cluster, before, timeout_s=timeout_s, quiet=quiet)
            typer.echo(f"{name} is ready")

    run(place, work, interrupted="it goes on; `shorthorn image ls -w` shows it")


def rm(
    names: options.ImageNames,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask; needed where nobody can answer.")
    ] = False,
    timeout_s: options.Timeout = 60.0,
    namespace: options.Namespace = options.NAMESPACE,
    kubeconfig: options.Kubeconfig = None,
    data_dir: options.DataDir = None,
) -> None:
    """Delete images, after saying who uses them and what that means for them.

    Volumes made from an image stay as they are, always. What ends is making new ones of it.
    """
    from shorthorn.commands.image.cluster import run

    place = options.find_place(kubeconfig, data_dir, namespace)

    async def work(cluster: Cluster) -> None:
        found = [await cluster.image(name) for name in dict.fromkeys(names)]
        for obj in found:
            for line in await _consequences(cluster, obj):
                typer.echo(line, err=True)
        _ask(len(found), yes=yes)
        for obj in found:
            await _delete(cluster, obj, timeout_s)

    run(place, work, interrupted="images whose deletion was asked for go on going")


async def _delete(cluster: Cluster, obj: Object, timeout_s: float) -> None:
    from shorthorn.commands.image.waiting import wait_gone

    name, uid = obj["metadata"]["name"], obj["metadata"]["uid"]
    await cluster.delete_image(name)
    await wait_gone(cluster, name, uid=uid, timeout_s=timeout_s)
    typer.echo(f"{name} deleted")


async def _consequences(cluster: Cluster, obj: Object) -> list[str]:
    from shorthorn.commands.image.using import find_users
    from shorthorn.kube.resources import BACKING_IMAGE

    image = BACKING_IMAGE.from_object(obj)
    users = await find_users(cluster, image)
    return [printable(line) for line in said_of_users(image.meta.name, users)]


def said_of_users(name: str, users: Users) -> list[str]:
    """Return what deleting an image means to those who use it, one sentence a line."""
    said = []
    if users.volumes:
        said.append(f"{_count(users.volumes, 'volume')} made from it will stay as they are")
    if users.clones:
        said.append(f"images made from it ({_listed(users.clones)}) will stay as they are")
    if users.contents:
        said.append(
            f"snapshots that stand for it (VolumeSnapshotContent {_listed(users.contents)}) will"
            " have nothing behind them, and claims made from them will fail"
        )
    if users.pending_claims:
        said.append(f"claims that wait for it will stay pending: {_listed(users.pending_claims)}")
    said += [f"you may not list {kind}: whether any uses it is not known" for kind in users.hidden]
    return [f"{name}: {line}" for line in said or ["nobody uses it"]]


def _ask(count: int, *, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter("nobody is here to answer; give --yes to delete")
    what = "it" if count == 1 else f"these {count} images"
    if not typer.confirm(f"Delete {what}?", err=True):
        typer.echo("nothing was deleted", err=True)
        raise typer.Exit(1)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _listed(names: object) -> str:
    shown = list(names) if isinstance(names, (list, tuple)) else []
    more = f" and {len(shown) - 5} more" if len(shown) > 5 else ""
    return ", ".join(map(str, shown[:5])) + more
