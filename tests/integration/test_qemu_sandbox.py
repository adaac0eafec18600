"""The cage holds: what a tool in it can see, use and outlive."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from shorthorn.host.sandbox import CagedFile, Limits, SandboxUnavailable, caged, check_available
from shorthorn.kit import process

pytestmark = pytest.mark.root

#: Nothing here needs it; a loaded machine may.
PATIENCE_S = 60.0


async def _run(script: str, *files: CagedFile, **limits: int) -> process.Completed:
    argv = caged(["sh", "-c", script], files=files, limits=Limits(**limits))
    return await process.run(argv, timeout_s=PATIENCE_S, check=False)


async def test_the_cage_can_be_built_here() -> None:
    await check_available()


async def test_a_caged_tool_sees_only_the_files_it_was_given(tmp_path: Path) -> None:
    (tmp_path / "given").write_text("seen")
    (tmp_path / "other").write_text("hidden")
    done = await _run(
        f"cat /image/source; ls /image; cat {tmp_path}/other; cat /etc/passwd; ls /proc/1",
        CagedFile(tmp_path / "given", "/image/source"),
    )
    assert done.text == "seensource\n"
    assert done.returncode != 0


async def test_a_file_that_was_given_for_reading_cannot_be_written(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("as it was")
    read_only = await _run("echo x > /image/f", CagedFile(file, "/image/f"), file_size_bytes=99)
    assert read_only.returncode != 0
    assert file.read_text() == "as it was"
    await _run(
        "echo changed > /image/f", CagedFile(file, "/image/f", writable=True), file_size_bytes=99
    )
    assert file.read_text() == "changed\n"


async def test_a_caged_tool_has_no_network_no_capability_and_no_way_to_new_namespaces() -> None:
    script = (
        "import ctypes, os, socket\n"
        "print([name for _, name in socket.if_nameindex()])\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "print(libc.unshare(0x10000000), libc.unshare(0x00020000))\n"
        "print(libc.prctl(23, 21, 0, 0, 0))\n"  # PR_CAPBSET_READ, CAP_SYS_ADMIN
    )
    argv = caged(["python3", "-c", script], files=(), limits=Limits())
    done = await process.run(argv, timeout_s=PATIENCE_S)
    assert done.text.splitlines() == ["['lo']", "-1 -1", "0"]


async def test_writing_past_the_file_size_limit_ends_the_tool(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    done = await _run(
        "head -c 100000 /dev/zero > /image/f",
        CagedFile(file, "/image/f", writable=True),
        file_size_bytes=4096,
    )
    assert done.returncode != 0
    assert file.stat().st_size == 4096


async def test_taking_more_memory_than_allowed_fails() -> None:
    argv = caged(["python3", "-c", "bytearray(3 << 30)"], files=(), limits=Limits())
    done = await process.run(argv, timeout_s=PATIENCE_S, check=False)
    assert b"MemoryError" in done.stderr


async def test_using_more_processor_time_than_allowed_ends_the_tool() -> None:
    done = await _run("while :; do :; done", cpu_s=1)
    assert done.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL, 128 + signal.SIGXCPU)


async def test_a_caged_tool_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    """Kill -9 of the parent, with no chance to clean up, leaves nothing running."""
    fifo = tmp_path / "alive"
    os.mkfifo(fifo)
    argv = caged(
        ["sh", "-c", "exec 9> /image/alive; sleep 1000 & sleep 1000"],
        files=[CagedFile(fifo, "/image/alive", writable=True)],
        limits=Limits(),
    )
    program = (
        "import asyncio, os, sys\n"
        "from shorthorn.kit import process\n"
        f"asyncio.run(process.run({argv!r}, timeout_s=1000))\n"
    )
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", program)
    # Opening succeeds when the caged shell holds the other end; reading ends when its last holder
    # does.
    reader = await asyncio.wait_for(asyncio.to_thread(os.open, fifo, os.O_RDONLY), PATIENCE_S)
    parent.kill()
    await parent.wait()
    ended = await asyncio.wait_for(asyncio.to_thread(os.read, reader, 1), PATIENCE_S)
    os.close(reader)
    assert ended == b""


async def test_a_host_that_forbids_the_cage_is_told_so_and_nothing_runs_outside(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A bubblewrap that fails as it does in a container without user namespaces."""
    bwrap = tmp_path / "bwrap"
    bwrap.write_text("#!/bin/sh\necho 'No permissions to create new namespace' >&2; exit 1")
    bwrap.chmod(0o755)
    monkeypatch.setattr(process, "SEARCH_PATH", f"{tmp_path}:{process.SEARCH_PATH}")
    process._which.cache_clear()
    try:
        with pytest.raises(SandboxUnavailable, match="No permissions to create new namespace"):
            await check_available()
    finally:
        monkeypatch.undo()
        process._which.cache_clear()
