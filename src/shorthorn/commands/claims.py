"""`shorthorn mount`, `umount` and `path`: claims of one host, used as a kubelet's pods would use
them.

Owns: options and words. Must never: mount anything itself (`standalone.attachments` asks the
driver).
"""

from __future__ import annotations

import asyncio
import contextlib
import re
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

_CLAIM = re.compile(r"(?:[a-z0-9][-a-z0-9]*/)?[a-z0-9][-.a-z0-9]*")


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

    target = directory.resolve()
    _check_target(target, data_dir)

    async def work(attachments: Attachments) -> None:
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
        await attachments.unmount(directory.resolve())

    _run(data_dir, work)


def path(claim: Claim, data_dir: DataDir = DEFAULT_DATA_DIR, timeout_s: Timeout = 60.0) -> None:
    """Attach a claim with volumeMode: Block and print its device, for a VM or a database.

    Undo it with `shorthorn umount` on the printed path.
    """
    from shorthorn.standalone.attachments import Attachments

    target = (Settings(data_dir).devices_dir / _key(claim)).resolve()

    async def work(attachments: Attachments) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        await attachments.device(_key(claim), target, timeout_s=timeout_s)

    _run(data_dir, work)
    typer.echo(target)


def _check_target(target: Path, data_dir: Path) -> None:
    """Refuse what a mount would hide; an empty DIR, as of an unset variable, is the current one."""
    if target.exists() and not target.is_dir():
        _refuse(f"{target} is not a directory")
    if target == Path.cwd():
        _refuse(f"{target} is the current directory; a mount there would hide what is in it")
    if target == data_dir or target in data_dir.parents:
        _refuse(f"a mount at {target} would hide the service's own files in {data_dir}")


def _key(claim: str) -> str:
    if not _CLAIM.fullmatch(claim):
        _refuse(f"{claim!r} is no claim; give its name, or NAMESPACE/NAME")
    return claim if "/" in claim else f"default/{claim}"


def _run(data_dir: Path, work: Callable[..., Awaitable[None]]) -> None:
    from shorthorn.standalone.attachments import ClaimUnusable
    from shorthorn.standalone.csi_client import CsiError

    settings = Settings(data_dir)

    async def run() -> None:
        async with _attachments(settings) as attachments:
            await work(attachments)

    try:
        if not settings.kubeconfig.exists():
            _refuse(
                f"no service has run on {data_dir}; "
                f"start it with `shorthorn up --data-dir {data_dir}`"
            )
        asyncio.run(run())
    except PermissionError as exc:
        _refuse(f"{exc}; run it as root")
    except OSError as exc:
        _refuse(str(exc))
    except ClaimUnusable as exc:
        _refuse(str(exc))
    except CsiError as exc:
        _refuse(exc.message)
    except errors.Unavailable as exc:
        _refuse(f"{exc}; is `shorthorn up --data-dir {data_dir}` running?")
    except errors.DomainError as exc:
        _refuse(str(exc))


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
