"""`shorthorn image ls` and `show`: what there is.

Owns: columns and sections. Must never: change anything. `app` puts the commands together.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shorthorn.commands.image import options, printing
from shorthorn.commands.image.printing import ListOutput, Output

if TYPE_CHECKING:
    from shorthorn.commands.image.cluster import Cluster
    from shorthorn.domain.models import BackingImage, ImageCopy, Pool
    from shorthorn.web.views.users import Node, Users

LS_EPILOG = """All images: shorthorn image ls

More columns, and only some: shorthorn image ls -o wide -l team=ci

Keep looking: shorthorn image ls -w

For a machine: shorthorn image ls -o json | jq -r '.items[] | .metadata.name'
"""
SHOW_EPILOG = """Everything about one image: shorthorn image show debian-12

Its checksum alone: shorthorn image show debian-12 -o json | jq -r .status.checksum
"""

_HEADER = (
    *("NAME", "STATE", "PROGRESS", "SIZE", "VIRTUAL", "ALLOCATED", "SHARED"),
    *("SOURCE", "COPIES", "AGE"),
)
_WIDE = ("FORMAT", "VERIFIED", "FROM", "MESSAGE")


def ls(
    output: Annotated[
        ListOutput | None,
        typer.Option("--output", "-o", help="Another form than a table.", show_default=False),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on with what changes.")] = False,
    selector: Annotated[
        str, typer.Option("--selector", "-l", help="Label selector, as in kubectl.")
    ] = "",
    namespace: options.Namespace = options.NAMESPACE,
    kubeconfig: options.Kubeconfig = None,
    data_dir: options.DataDir = None,
) -> None:
    """List backing images: state, sizes, what is shared, copies.

    SIZE is the length of the image's file, VIRTUAL what a guest sees, ALLOCATED what all its copies
    take on disk and SHARED how much of that they share with volumes and other images. COPIES are
    those that are ready, of those that are wanted.
    """
    from shorthorn.commands.image.cluster import run

    place = options.find_place(kubeconfig, data_dir, namespace)

    async def work(cluster: Cluster) -> None:
        if watch:
            await _watch(cluster, selector, output)
        else:
            await _list_once(cluster, selector, output)

    run(place, work, interrupted="no longer watching")


async def _list_once(cluster: Cluster, selector: str, output: ListOutput | None) -> None:
    objects = sorted(await cluster.images(selector), key=lambda obj: obj["metadata"]["name"])
    if output is not None and output is not ListOutput.WIDE:
        printing.print_objects(objects, output, as_list=True)
        return
    if not objects:
        typer.echo(f"no backing images in namespace {cluster.namespace}", err=True)
        return
    copies = await _copies(cluster)
    is_wide = output is ListOutput.WIDE
    rows = [_row(obj, copies, is_wide=is_wide) for obj in objects]
    for line in printing.table(_header(is_wide=is_wide), rows):
        typer.echo(line)


async def _watch(cluster: Cluster, selector: str, output: ListOutput | None) -> None:
    """Print all images, then each that changes, until interrupted."""
    known: Mapping[str, Mapping[str, Any]] = {}
    is_wide, widths = output is ListOutput.WIDE, list[int]()
    async for shown in cluster.follow(selector=selector):  # until interrupted
        changed = [shown[name] for name in sorted(shown) if shown[name] != known.get(name)]
        gone = [name for name in known if name not in shown]
        known = shown
        if output is not None and not is_wide:
            printing.print_objects(changed, output)
            continue
        copies = await _copies(cluster)
        header = _header(is_wide=is_wide)
        rows = [_row(obj, copies, is_wide=is_wide) for obj in changed]
        rows += [[name, "gone", *["-"] * (len(header) - 2)] for name in gone]
        cells = [header, *rows] if not widths else rows
        fits = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        widths = [max(pair) for pair in itertools.zip_longest(fits, widths, fillvalue=0)]
        for row in cells:
            typer.echo(printing.line([printing.printable(c) or "-" for c in row], widths))


async def _copies(cluster: Cluster) -> Mapping[str, Sequence[ImageCopy]]:
    found: dict[str, list[ImageCopy]] = defaultdict(list)
    for copy in await cluster.copies():
        found[copy.spec.image].append(copy)
    return found


def _header(*, is_wide: bool) -> tuple[str, ...]:
    return (*_HEADER, *_WIDE) if is_wide else _HEADER


def _row(
    obj: Mapping[str, Any], copies: Mapping[str, Sequence[ImageCopy]], *, is_wide: bool
) -> list[str]:
    """Return the cells of one image."""
    from shorthorn.kube.resources import BACKING_IMAGE
    from shorthorn.web.views.images import row_of

    image = BACKING_IMAGE.from_object(obj)
    row = row_of(image, copies.get(image.meta.name, ()))
    progress = "" if row.progress_percent is None else f"{row.progress_percent}%"
    cells = [
        row.name,
        row.state.replace(" ", "-"),
        progress,
        printing.size(row.size_bytes),
        printing.size(row.virtual_size_bytes),
        printing.size(row.allocated_bytes),
        printing.size(row.shared_bytes),
        image.spec.source_type,
        f"{row.copies_ready}/{row.copies_wanted}",
        printing.age(row.created_at),
    ]
    if is_wide:
        verified = "yes" if row.is_verified else "no"
        cells += [row.format, verified, row.source_detail, row.message]
    return cells


def show(
    name: options.ImageName,
    output: Annotated[
        Output | None,
        typer.Option("--output", "-o", help="The object itself instead.", show_default=False),
    ] = None,
    namespace: options.Namespace = options.NAMESPACE,
    kubeconfig: options.Kubeconfig = None,
    data_dir: options.DataDir = None,
) -> None:
    """Show one backing image: source, sizes, checksum, copies, conditions, and who uses it.

    A user is a volume that was cloned from it, a VolumeSnapshotContent whose handle names it, a
    claim that waits for either, or another image made from it.
    """
    from shorthorn.commands.image.cluster import run

    place = options.find_place(kubeconfig, data_dir, namespace)

    async def work(cluster: Cluster) -> None:
        obj = await cluster.image(name)
        if output is not None:
            printing.print_objects([obj], output)
            return
        for line in await _described(cluster, obj):
            typer.echo(line)

    run(place, work)


async def _described(cluster: Cluster, obj: Mapping[str, Any]) -> list[str]:
    from shorthorn.commands.image.using import find_users
    from shorthorn.kube.resources import BACKING_IMAGE

    image = BACKING_IMAGE.from_object(obj)
    copies = await cluster.copies(image.meta.name)
    pools = {pool.spec.pool_uuid: pool for pool in await cluster.pools()}
    lines = _facts(image, copies)
    lines += ["", "Copies:", *_indented(_copy_table(image, copies, pools))]
    lines += ["", "Conditions:", *_indented(_condition_table(image))]
    lines += ["", "Used by:", *_indented(_user_lines(await find_users(cluster, image)))]
    return lines


def _facts(image: BackingImage, copies: Sequence[ImageCopy]) -> list[str]:
    from shorthorn.domain.manifests import handle_of
    from shorthorn.web.views.images import row_of, shown_url

    row, status = row_of(image, copies), image.status
    state = row.state + (f" ({row.message})" if row.message else "")
    facts = [("Name", image.meta.name), ("State", state), ("Source", image.spec.source_type)]
    for key, value in sorted(image.spec.source_parameters.items()):
        # A URL's user and query may be secrets; -o yaml shows them.
        facts.append((f"  {key}", (shown_url(value) or value) if key == "url" else value))
    facts += [
        ("Format", status.format),
        ("Size", _bytes(row.size_bytes)),
        ("Virtual size", _bytes(row.virtual_size_bytes)),
        ("Allocated", _bytes(row.allocated_bytes)),
        ("Shared", _bytes(row.shared_bytes)),
        ("SHA-512", status.checksum + (" (verified)" if row.is_verified else "")),
        ("Expected", image.spec.checksum),
        ("Node selector", ", ".join(image.spec.node_selector)),
        ("Disk selector", ", ".join(image.spec.disk_selector)),
        ("Created", f"{image.meta.created_at:%Y-%m-%dT%H:%M:%SZ}" if image.meta.created_at else ""),
        ("Point in time", status.point_in_time.isoformat() if status.point_in_time else ""),
        ("UUID", status.uuid),
        ("Handle", handle_of(image) or ""),
    ]
    return [f"{k + ':':<15} {printing.printable(v)}" for k, v in facts if v and v != "-"]


def _copy_table(
    image: BackingImage, copies: Sequence[ImageCopy], pools: Mapping[str, Pool]
) -> list[str]:
    by_pool = {copy.spec.pool_uuid: copy for copy in copies}
    rows = []
    for uuid, file in sorted(image.status.disk_file_status.items()):
        copy, pool = by_pool.get(uuid), pools.get(uuid)
        node = copy.spec.node_id if copy else pool.spec.node_id if pool else ""
        allocated = copy.status.real_size_bytes if copy else None
        shared = copy.status.shared_bytes if copy else None
        progress = "" if file.state == "ready" else f"{file.progress_percent}%"
        sizes = [printing.size(allocated), printing.size(shared)]
        rows.append([node, uuid, file.state.value, progress, *sizes, file.message])
    if not rows:
        return ["none yet"]
    return printing.table(
        ("NODE", "POOL", "STATE", "PROGRESS", "ALLOCATED", "SHARED", "MESSAGE"), rows
    )


def _condition_table(image: BackingImage) -> list[str]:
    rows = [
        [c.type, str(c.is_true), c.reason, printing.age(c.changed_at), c.message]
        for c in image.status.conditions
    ]
    header = ("TYPE", "STATUS", "REASON", "SINCE", "MESSAGE")
    return printing.table(header, rows) if rows else ["none yet"]


def _user_lines(users: Users) -> list[str]:
    lines: list[str] = []

    def add(node: Node, depth: int) -> None:
        note = f" ({node.note})" if node.note else ""
        lines.append(printing.printable(f"{'  ' * depth}{node.kind} {node.name}{note}"))
        for below in node.below:
            add(below, depth + 1)

    for node in users.nodes:
        add(node, 0)
    lines += [f"(you may not list {kind}, so they are not shown)" for kind in users.hidden]
    return lines or ["nobody"]


def _bytes(value: int | None) -> str:
    return "" if value is None else f"{printing.size(value)} ({value} bytes)"


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"  {line}" for line in lines]
