"""`shorthorn mount`, `umount` and `path`: claims of one host, used as a kubelet's pods would use
them.

Owns: options and words. Must never: mount anything itself (`standalone.attachments` asks the
driver).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from shorthorn.commands.service import DataDir
from shorthorn.domain import errors
from shorthorn.settings import DEFAULT_DATA_DIR, Settings

Claim = Annotated[
    str,
    typer.Argument(metavar="PVC", help="Name of the claim, or NAMESPACE/NAME.", show_default=False),
]
Timeout = Annotated[
    float, typer.Option("--timeout", help="Seconds to wait for the claim to be bound.")
]


def mount(
    claim: Claim,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where; made if missing.")],
    data_dir: DataDir = DEFAULT_DATA_DIR,
    read_only: Annotated[bool, typer.Option("--read-only", "-r", help="Refuse writes.")] = False,
    timeout_s: Timeout = 60.0,
) -> None:
    """Mount a claim's file system. It stays when Shorthorn stops; undo it with `shorthorn umount
    DIR`.
    """
    from shorthorn.standalone.attachments import Attachments

    async def work(attachments: Attachments) -> None:
        target = directory.resolve()
        await attachments.mount(_key(claim), target, read_only=read_only, timeout_s=timeout_s)

    _run(data_dir, work)


def umount(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="What `mount` was given, or `path` printed.")
    ],
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Undo `shorthorn mount` or `shorthorn path`."""
    from shorthorn.standalone.attachments import Attachments

    async def work(attachments: Attachments) -> None:
        await attachments.unmount(directory.parent.resolve() / directory.name)

    _run(data_dir, work)


def path(claim: Claim, data_dir: DataDir = DEFAULT_DATA_DIR, timeout_s: Timeout = 60.0) -> None:
    """Attach a claim with volumeMode: Block and print its device, for a VM or a database.

    Undo it with `shorthorn umount` on the printed path.
    """
    from shorthorn.standalone.attachments import Attachments

    target = Settings(data_dir).devices_dir / _key(claim)

    async def work(attachments: Attachments) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        await attachments.device(_key(claim), target, timeout_s=timeout_s)

    _run(data_dir, work)
    typer.echo(target)


def _key(claim: str) -> str:
    return claim if "/" in claim else f"default/{claim}"


def _run(data_dir: Path, work: Callable[..., Awaitable[None]]) -> None:
    from shorthorn.standalone.attachments import ClaimUnusable
    from shorthorn.standalone.csi_client import CsiError

    settings = Settings(data_dir)
    if not settings.kubeconfig.exists():
        _refuse(
            f"no service has run on {data_dir}; start it with `shorthorn up --data-dir {data_dir}`"
        )

    async def run() -> None:
        async with _attachments(settings) as attachments:
            await work(attachments)

    try:
        asyncio.run(run())
    except ClaimUnusable as exc:
        _refuse(str(exc))
    except CsiError as exc:
        _refuse(exc.message)
    except errors.Unavailable as exc:
        _refuse(f"{exc}; is `shorthorn up --data-dir {data_dir}` running?")


@contextlib.asynccontextmanager
async def _attachments(settings: Settings) -> AsyncIterator[object]:
    from shorthorn.kube.client import connect
    from shorthorn.standalone import objects
    from shorthorn.standalone.attachments import Attachments
    from shorthorn.standalone.csi_client import CsiClient

    client = connect(settings.kubeconfig, namespace="default")
    driver = CsiClient(settings.csi_socket)
    try:
        yield Attachments(
            objects.Objects(client, objects.PVC, is_namespaced=True),
            objects.Objects(client, objects.PV, is_namespaced=False),
            objects.Objects(client, objects.EVENT, is_namespaced=True),
            driver,
            staging_dir=settings.staging_dir,
            tell=lambda said: typer.echo(said, err=True),
        )
    finally:
        await driver.close()
        await client.aclose()


def _refuse(message: str) -> NoReturn:
    typer.echo(f"shorthorn: {message}", err=True)
    raise typer.Exit(1)
