"""`shorthorn up`, `down` and `login`: the service on one host.

Owns: options, going to the background, and what is printed. Must never: wire anything (`daemon`
does).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from shorthorn.commands.serving import log_to_stderr, refuse, serve
from shorthorn.settings import (
    DEFAULT_DATA_DIR,
    DEFAULT_NAMESPACE,
    Settings,
    parse_listen,
    parse_size,
)

DataDir = Annotated[
    Path,
    typer.Option(
        "--data-dir",
        envvar="SHORTHORN_DATA_DIR",
        help="Directory for everything: kubeconfig, csi.sock, the pool.",
        file_okay=False,
        resolve_path=True,
    ),
]

_START_TIMEOUT_S = 120.0
"""A first start may have to allocate and format a pool file."""

_STOP_TIMEOUT_S = 30.0

_NEXT_STEPS = """\
Shorthorn is up.

  pool        {pool}
  CSI socket  {socket}
  API server  {url}
  web page: {web}

Try next, with plain kubectl:

  export KUBECONFIG={kubeconfig}
  export SHORTHORN_DATA_DIR={data_dir}
  kubectl apply -f examples/claim.yaml            # makes claim test-vol
  {program} mount test-vol /mnt/test-vol          # then put something into it
  kubectl apply -f examples/snapshot.yaml         # turns it into a qcow2 backing image
  kubectl apply -f examples/restored-claim.yaml   # makes test-restore-pvc from that
  kubectl get pvc,volumesnapshot
  kubectl get backingimages -n {namespace}
  {program} down                                  # stops the service; volumes stay as they are
"""


def up(
    data_dir: DataDir = DEFAULT_DATA_DIR,
    pool_size: Annotated[
        str,
        typer.Option(
            help="Size, as in 20G, of the pool file made where the file system of DATA_DIR has no"
            " reflinks (ext4). Default: half of the free space, at most 20G.",
            show_default=False,
        ),
    ] = "",
    listen: Annotated[
        str, typer.Option(help="HOST:PORT of the API server; loopback only. Port 0: any free one.")
    ] = "127.0.0.1:0",
    web_listen: Annotated[
        str,
        typer.Option(
            help="HOST:PORT of the web page; loopback only. Port 0: the last one, else any free"
            " one. `off`: no web page."
        ),
    ] = "127.0.0.1:0",
    background: Annotated[
        bool, typer.Option("--background", help="Return when the service is ready; it goes on.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what is done.")] = False,
) -> None:
    """Run everything on this host: API server, CSI driver, pool. Needs root.

    Volumes that are in use are not touched by starting, stopping or killing this.
    """
    settings = _settings(data_dir, pool_size, listen, web_listen)
    if os.geteuid() != 0:
        refuse("`shorthorn up` attaches loop devices and mounts file systems: run it as root")
    if background:
        _start_in_background(settings, sys.argv[1:])
        return
    log_to_stderr(logging.INFO if verbose else logging.WARNING)
    asyncio.run(_serve(settings))


def _settings(data_dir: Path, pool_size: str, listen: str, web_listen: str) -> Settings:
    try:
        host, port = parse_listen(listen)
        web_host, web_port = parse_web_listen(web_listen)
        size_bytes = parse_size(pool_size) if pool_size else None
    except ValueError as exc:
        refuse(str(exc))
    return Settings(
        data_dir,
        pool_size_bytes=size_bytes,
        listen_host=host,
        listen_port=port,
        web_host=web_host,
        web_port=web_port,
    )


def parse_web_listen(text: str) -> tuple[str, int | None]:
    """Return host and port of "127.0.0.1:0", or of a bare port; no port where it is off.

    Raises: ValueError.
    """
    if text == "off":
        return "127.0.0.1", None
    return parse_listen(f"127.0.0.1:{text}" if text.isdecimal() else text)


async def _serve(settings: Settings) -> None:
    # The heavy half of the imports: only who serves pays.
    from shorthorn.daemon.standalone import Daemon

    def ready(daemon: Daemon) -> None:
        web = daemon.login_url or "off"
        typer.echo(next_steps(settings, pool=daemon.pool_dir, url=daemon.url, web=web))
        sys.stdout.flush()

    await serve(lambda: Daemon(settings), ready)


def next_steps(settings: Settings, *, pool: Path, url: str, web: str) -> str:
    """Return what to try next, for the terminal."""
    return _NEXT_STEPS.format(
        program=_program(),
        kubeconfig=settings.kubeconfig,
        namespace=DEFAULT_NAMESPACE,
        data_dir=settings.data_dir,
        pool=pool,
        socket=settings.csi_socket,
        url=url,
        web=web,
    )


def _program() -> str:
    """Return how this program is called: by name where the shell finds it, else by path."""
    own = Path(sys.executable).with_name("shorthorn")
    found = shutil.which("shorthorn")
    return "shorthorn" if found is not None and Path(found) == own else str(own)


def _start_in_background(settings: Settings, arguments: list[str]) -> None:
    """Start the same command in a session of its own, and wait until it is ready."""
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as exc:
        refuse(f"cannot make {settings.data_dir}: {exc.strerror}")
    log_file = settings.data_dir / "shorthorn.log"
    rest = [argument for argument in arguments if argument != "--background"]
    with log_file.open("ab") as log:
        start = log.tell()
        child = subprocess.Popen(
            [sys.executable, "-m", "shorthorn", *rest],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        with log_file.open("rb") as log:
            log.seek(start)
            said = log.read().decode(errors="replace")
        if "Shorthorn is up." in said:
            warnings, mark, told = said.partition("Shorthorn is up.")
            if warnings.strip():
                typer.echo(warnings.strip(), err=True)
            typer.echo(mark + told)
            typer.echo(f"  log         {log_file}")
            return
        if child.poll() is not None:
            refuse(f"the service did not start:\n{said.strip()}")
        time.sleep(0.05)
    child.terminate()
    refuse(f"the service was not ready after {_START_TIMEOUT_S:.0f} s; see {log_file}")


def login(data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Print a link that signs in to the web page: good once, for ten minutes. Needs root."""
    from shorthorn.web.sessions import LoginLinks

    settings = Settings(data_dir)
    try:
        key = settings.web_key.read_text(encoding="ascii").strip()
        url = settings.web_url.read_text(encoding="ascii").strip()
    except PermissionError as exc:
        refuse(f"{exc}; run it as root")
    except OSError:
        refuse(f"there is no web page on {data_dir}; start it with `shorthorn up`")
    typer.echo(f"{url}/login?once={LoginLinks(key).make()}")


def down(
    data_dir: DataDir = DEFAULT_DATA_DIR,
    release: Annotated[
        bool,
        typer.Option(
            "--release",
            help="Also unmount the pool, so that nothing of Shorthorn is left in the kernel."
            " Refused while a volume is in use.",
        ),
    ] = False,
) -> None:
    """Stop the service. Volumes that are mounted stay mounted; data stays where it is."""
    from shorthorn.host.errors import HostError

    try:
        if release:
            _refuse_while_in_use(data_dir)
        _stop(data_dir)
        if release:
            _release(data_dir)
    except PermissionError as exc:
        refuse(f"{exc}; run it as root")
    except (HostError, OSError) as exc:
        refuse(str(exc))


def _stop(data_dir: Path) -> None:
    from shorthorn.host.locks import find_owner

    owner = find_owner(data_dir)
    if owner is None:
        typer.echo(f"nothing runs on {data_dir}")
        return
    with contextlib.suppress(ProcessLookupError), _process(owner.pid) as process:
        if find_owner(data_dir) == owner:  # else it ended just now, and the number may be another's
            signal.pidfd_send_signal(process, signal.SIGTERM)
            # Until it has ended, and not only let go of its lock, it keeps file systems busy.
            if not select.select([process], [], [], _STOP_TIMEOUT_S)[0]:
                refuse(f"process {owner.pid} does not stop; see {data_dir / 'shorthorn.log'}")
    typer.echo("stopped; volumes and images stay")


@contextlib.contextmanager
def _process(pid: int) -> Iterator[int]:
    """Hold on to a process, whatever becomes of its number. Raises: ProcessLookupError."""
    descriptor = os.pidfd_open(pid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _refuse_while_in_use(data_dir: Path) -> None:
    """Refuse before the service is stopped: `shorthorn umount` needs it."""
    from shorthorn.host.pool_file import find_users

    used = asyncio.run(find_users(data_dir))
    if used:
        refuse(
            f"the pool is in use ({', '.join(map(str, used[:3]))}); undo every `shorthorn mount` "
            "and `path` with `shorthorn umount`, then release"
        )


def _release(data_dir: Path) -> None:
    from shorthorn.host.locks import DirectoryLock
    from shorthorn.host.pool_file import release_pool

    if data_dir.is_dir():
        with DirectoryLock(data_dir, owner="shorthorn down"):
            asyncio.run(release_pool(data_dir))
    typer.echo("the pool is unmounted")
