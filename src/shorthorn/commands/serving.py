"""What every command that serves has in common: refusals, the log, signals, the end.

Owns: running a program until SIGTERM or SIGINT, or until a part of it fails. Must never: know which
program. Used by `commands.service` and `commands.cluster`.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import typer

if TYPE_CHECKING:
    from shorthorn.daemon.program import Program

Served = TypeVar("Served", bound="Program")


def refuse(message: str) -> NoReturn:
    """End with exit code 1 and one line."""
    typer.echo(f"shorthorn: {message}", err=True)
    raise typer.Exit(1)


def log_to_stderr(level: int) -> None:
    """Log from `level` on, one line for each event."""
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for chatty in ("httpx2", "httpcore2"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


async def serve(make: Callable[[], Served], ready: Callable[[Served], None]) -> None:
    """Run a program until told to stop, or until a part of it fails.

    Args: make: called in the event loop. ready: called when the program is up.
    Raises: typer.Exit: it cannot start, which one line says. Whatever a part died of.
    """
    from shorthorn.daemon.program import StartFailed

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        async with make() as program:
            ready(program)
            await _until(stop, program.failed)
    except StartFailed as exc:
        refuse(str(exc))


async def _until(stop: asyncio.Event, failed: asyncio.Future[None]) -> None:
    """Return when told to stop; raise when a part of the program failed."""
    stopping: asyncio.Future[Any] = asyncio.ensure_future(stop.wait())
    await asyncio.wait({stopping, failed}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if failed.done():
        failed.result()
