"""Raw to qcow2 by a backup job in a caged `qemu-storage-daemon`.

Owns the daemon's life (one per export, seconds long) and the job's conversation over QMP. Must
never listen anywhere: the two ends of a socket pair are the only connection, so nobody else can
speak to it and nothing is left in the file system; when we die, the sandbox takes the daemon with
us. Called by `host.qcow2_conversion`.

`blockdev-backup` with `use-copy-range` hands every cluster that holds data to copy_file_range(2),
and on one file system with reflinks the target comes to share it. `qemu-img convert -C` cannot do
that: from 2 GiB of contiguous data on, QEMU 7.2 asks for unaligned ranges, which are copied.
    Measured in
docs/design/0005-qcow2-export.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from qemu.qmp import EventListener, ExecuteError, QMPClient, QMPError

from shorthorn.host.qemu_img import (
    QemuFailed,
    QemuTimedOut,
    create_qcow2,
    failure,
    transfer_limits,
    transfer_timeout_s,
)
from shorthorn.host.sandbox import CagedFile, Limits, caged
from shorthorn.kit import process

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

#: 64 KiB: tables are 1/8192 of the data that is mapped, and a cluster that holds 4 KiB of data
#: keeps the rest of itself as a hole, so scattered blocks cost no more space. With 4 KiB clusters,
#: 20,000 scattered blocks need 43 MiB of tables for 79 MiB of data, and the job takes 12 s instead
#: of 0.7 s.
CLUSTER_SIZE_BYTES = 64 << 10
PROGRESS_INTERVAL_S = 0.25
#: From the program's start to its greeting; 10 ms on an idle machine.
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0
#: From the end of its line to its own.
END_TIMEOUT_S = 5.0

_JOB = "export"
_SOURCE = "/image/source"
_TARGET = "/image/target"


async def back_up_to_qcow2(
    source: Path,
    target: Path,
    *,
    virtual_size_bytes: int,
    on_bytes: Callable[[int, int], None] | None = None,
    timeout_s: float | None = None,
) -> None:
    """Write the raw disk `source` into the existing empty file `target` as qcow2 (version 3).

    Neither may be changed by anyone else meanwhile. Data is flushed into the file but not synced:
    the caller does that.

    Args:   virtual_size_bytes: length of `source`; a multiple of 512.
        on_bytes: told (done, total) about four times a second, from the event loop.
    Raises: QemuFailed, QemuTimedOut. OSError(ENOSPC).
    State:  no daemon is left, however this ends; after an error `target` is to be thrown away.
    """
    await create_qcow2(
        target, virtual_size_bytes=virtual_size_bytes, cluster_size_bytes=CLUSTER_SIZE_BYTES
    )
    limit_s = transfer_timeout_s(virtual_size_bytes) if timeout_s is None else timeout_s
    try:
        async with asyncio.timeout(limit_s):
            async with _daemon(
                [CagedFile(source, _SOURCE), CagedFile(target, _TARGET, writable=True)],
                _block_nodes(),
                transfer_limits(virtual_size_bytes, writes=True),
            ) as qmp:
                await _run_backup_job(qmp, on_bytes)
    except TimeoutError as exc:
        raise QemuTimedOut(f"the qcow2 export did not end within {limit_s:.0f} s") from exc


def _block_nodes() -> list[dict[str, Any]]:
    """Return the block graph: every format and every file is named, nothing is looked for."""
    return [
        {"driver": "file", "node-name": "source-file", "filename": _SOURCE, "read-only": True},
        {"driver": "raw", "node-name": "source", "file": "source-file", "read-only": True},
        {"driver": "file", "node-name": "target-file", "filename": _TARGET},
        {"driver": "qcow2", "node-name": "target", "file": "target-file", "backing": None},
    ]


async def _run_backup_job(qmp: QMPClient, on_bytes: Callable[[int, int], None] | None) -> None:
    """Start the job and return when it has succeeded. Raises: QemuFailed, OSError(ENOSPC)."""
    events = EventListener(("JOB_STATUS_CHANGE",))
    with qmp.listen(events):
        try:
            await qmp.execute(
                "blockdev-backup",
                {
                    "job-id": _JOB,
                    "device": "source",
                    "target": "target",
                    "sync": "full",
                    "auto-finalize": True,
                    "auto-dismiss": False,
                    "x-perf": {"use-copy-range": True},
                },
            )
        except ExecuteError as exc:
            raise QemuFailed(str(exc)) from exc
        concluded = asyncio.create_task(_concluded(events), name="qcow2-export-events")
        try:
            while not concluded.done():
                await asyncio.wait({concluded}, timeout=PROGRESS_INTERVAL_S)
                job = await _query_job(qmp)
                if on_bytes is not None:
                    on_bytes(int(job["current-progress"]), int(job["total-progress"]))
        finally:
            concluded.cancel()
    job = await _query_job(qmp)
    if job["status"] != "concluded" or "error" in job:
        raise failure("the qcow2 export", 1, str(job.get("error", "the job vanished")))


async def _concluded(events: EventListener) -> None:
    async for event in events:
        data = cast("dict[str, Any]", event["data"])
        if data["id"] == _JOB and data["status"] == "concluded":
            return


async def _query_job(qmp: QMPClient) -> dict[str, Any]:
    for job in await _query(qmp, "query-jobs"):
        if job["id"] == _JOB:
            return job
    raise QemuFailed("the qcow2 export's job vanished")


async def _query(qmp: QMPClient, command: str) -> list[dict[str, Any]]:
    answer = cast("Any", await qmp.execute(command))
    assert isinstance(answer, list), command
    return answer


@contextlib.asynccontextmanager
async def _daemon(
    files: Sequence[CagedFile], nodes: Sequence[dict[str, Any]], limits: Limits
) -> AsyncIterator[QMPClient]:
    """Run a caged daemon with these block nodes; at the end it has flushed and is gone.

    Raises: what `failure` makes of a daemon that ends early.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        argv = [
            *("qemu-storage-daemon", "--chardev", f"socket,id=qmp,fd={theirs.fileno()}"),
            *("--monitor", "chardev=qmp"),
        ]
        for node in nodes:
            argv += ["--blockdev", json.dumps(node)]
        try:
            daemon = process.start(
                caged(argv, files=files, limits=limits), pass_fds=(theirs.fileno(),)
            )
        except BaseException:
            ours.close()
            raise
    qmp = QMPClient("qcow2-export")
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            await _connect(qmp, ours)
        yield qmp
        await _quit(qmp, daemon)
    except (QMPError, EOFError, ConnectionError) as exc:
        # The line ends a moment before the cage does, whose own status tells what befell the
        # daemon; one that we ended ourselves would tell of us.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_TIMEOUT_S):
                await daemon.wait()
        returncode = await daemon.stop()
        raise failure("qemu-storage-daemon", returncode, daemon.stderr) from exc
    finally:
        if daemon.is_running:
            await daemon.stop()
        with contextlib.suppress(QMPError, EOFError, OSError):
            await qmp.disconnect()
        ours.close()


async def _connect(qmp: QMPClient, line: socket.socket) -> None:
    """Greet the daemon. Raises: QMPError, EOFError: the line has ended."""
    try:
        await qmp.connect(line)
    except AssertionError as exc:
        # The library is sure that a line that was up a moment ago is still up.
        raise EOFError("the line ended as soon as it was up") from exc


async def _quit(qmp: QMPClient, daemon: process.Child) -> None:
    """Let the daemon close its images (that writes the last tables) and end."""
    await qmp.execute("quit")
    async with asyncio.timeout(STOP_TIMEOUT_S):
        returncode = await daemon.wait()
    if returncode != 0:
        raise failure("qemu-storage-daemon", returncode, daemon.stderr)
