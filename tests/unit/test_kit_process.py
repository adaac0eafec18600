"""Programs: what they leave, how they end, and that none outlives its time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from shorthorn.kit import process

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Nothing here needs it; a loaded machine may.
PATIENCE_S = 60.0


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def ends(pid: int) -> None:
    """Wait until a process has ended that is not our child."""
    async with asyncio.timeout(PATIENCE_S):
        while is_alive(pid):  # noqa: ASYNC110 - somebody else's child; nothing announces it
            await asyncio.sleep(0.01)


@pytest.fixture
def open_descriptors() -> Iterator[None]:
    """See that a test leaves no descriptor open."""
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert len(set(os.listdir("/proc/self/fd")) - before) <= 3  # the event loop's own


async def test_output_and_status_come_back(open_descriptors: None) -> None:
    result = await process.run(["sh", "-c", "echo out; echo err >&2"], timeout_s=PATIENCE_S)

    assert (result.stdout, result.stderr, result.returncode) == (b"out\n", b"err\n", 0)
    assert result.text == "out\n"
    assert result.argv[0] == "sh"


async def test_input_of_any_size_reaches_the_program() -> None:
    data = os.urandom(3 << 20)
    result = await process.run(["cat"], stdin=data, timeout_s=PATIENCE_S)
    assert result.stdout == data


async def test_output_beyond_the_limit_is_dropped_and_does_not_stop_the_program() -> None:
    count = process.OUTPUT_LIMIT_BYTES + (1 << 20)
    result = await process.run(["head", "-c", str(count), "/dev/zero"], timeout_s=PATIENCE_S)
    assert len(result.stdout) == process.OUTPUT_LIMIT_BYTES


async def test_a_failure_carries_status_and_message() -> None:
    with pytest.raises(process.CommandFailed, match=r"sh ended with status 3: no\b") as caught:
        await process.run(["sh", "-c", "echo no >&2; exit 3"], timeout_s=PATIENCE_S)
    assert caught.value.returncode == 3
    assert caught.value.stderr == "no\n"

    unchecked = await process.run(["false"], check=False, timeout_s=PATIENCE_S)
    assert unchecked.returncode == 1


async def test_a_death_by_signal_is_a_negative_status() -> None:
    with pytest.raises(process.CommandFailed, match="signal 9"):
        await process.run(["sh", "-c", "kill -9 $$"], timeout_s=PATIENCE_S)


async def test_a_missing_program_names_the_package_that_has_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(process.CommandMissing, match="no-such-tool is not installed"):
        await process.run(["no-such-tool"], timeout_s=PATIENCE_S)

    monkeypatch.setattr(process, "SEARCH_PATH", str(tmp_path))
    process._which.cache_clear()
    with pytest.raises(process.CommandMissing, match="apt-get install xfsprogs"):
        process.locate("mkfs.xfs")
    process._which.cache_clear()


async def test_the_environment_is_clean_and_messages_are_in_english(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/somewhere")
    result = await process.run(["env"], env={"EXTRA": "1"}, timeout_s=PATIENCE_S)
    names = dict(line.split("=", 1) for line in result.text.splitlines())
    assert names == {"PATH": process.SEARCH_PATH, "LC_ALL": "C", "EXTRA": "1"}


async def test_a_program_leads_a_session_of_its_own() -> None:
    code = "import os; print(os.getpid() == os.getsid(0) == os.getpgid(0))"
    result = await process.run([sys.executable, "-c", code], timeout_s=PATIENCE_S)
    assert result.text == "True\n"


async def test_a_deadline_ends_the_whole_group(open_descriptors: None) -> None:
    script = "sleep 300 & echo $!; sleep 300"
    seen: list[bytes] = []
    with pytest.raises(process.CommandTimedOut, match=r"stopped after 3 s"):
        await process.run(["sh", "-c", script], timeout_s=3, on_stdout=seen.append)
    await ends(int(b"".join(seen)))


async def stubborn_child() -> process.Child:
    """Start a program that ignores SIGTERM, and wait until it does."""
    ready = asyncio.Event()
    child = process.start(
        ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done"],
        on_stdout=lambda _: ready.set(),
    )
    async with asyncio.timeout(PATIENCE_S):
        await ready.wait()
    return child


async def test_a_program_that_ignores_sigterm_is_killed() -> None:
    child = await stubborn_child()

    assert await child.stop(grace_s=0.05) == -signal.SIGKILL

    assert not child.is_running
    assert await child.stop() == -signal.SIGKILL  # again is fine


async def test_what_a_program_leaves_behind_in_its_group_is_killed() -> None:
    script = "sleep 300 >/dev/null 2>&1 & echo $!"
    result = await process.run(["sh", "-c", script], timeout_s=PATIENCE_S)
    await ends(int(result.stdout))


async def test_a_grandchild_that_fled_with_our_pipes_does_not_hold_us_up(tmp_path: Path) -> None:
    fifo = tmp_path / "fled"
    os.mkfifo(fifo)
    script = f"setsid sh -c 'echo $$ > {fifo}; exec sleep 300' & cat {fifo}"
    result = await process.run(["sh", "-c", script], timeout_s=PATIENCE_S)
    fled = int(result.text)
    assert is_alive(fled), "we have its output while it still holds the pipes"
    os.kill(fled, signal.SIGKILL)


@pytest.mark.parametrize("delay_ms", [0, 1, 5, 20, 50])
async def test_cancelled_at_any_moment_nothing_is_left(delay_ms: int, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    script = f"echo $$ > {pid_file}; sleep 300 & sleep 300"
    task = asyncio.create_task(process.run(["sh", "-c", script], timeout_s=300))
    await asyncio.sleep(delay_ms / 1000)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    mine = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    assert not [pid for pid in mine if b"sleep 300" in cmdline(int(pid))]
    if pid_file.exists() and (text := pid_file.read_text()):
        assert not is_alive(int(text))


def cmdline(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
    return b""


async def test_a_second_cancellation_does_not_cut_the_end_short() -> None:
    child = await stubborn_child()
    stopping = asyncio.create_task(child.stop(grace_s=0.2))
    await asyncio.sleep(0.01)
    for _ in range(3):
        stopping.cancel()
        await asyncio.sleep(0.01)
    with pytest.raises(asyncio.CancelledError):
        await stopping
    assert not child.is_running
    assert not is_alive(child.pid)


PARENT = """
import asyncio, sys
from shorthorn.kit import process

async def main():
    child = process.start(["sleep", "300"], die_with_parent=sys.argv[1] == "dies")
    print(child.pid, flush=True)
    await child.wait()

asyncio.run(main())
"""


@pytest.mark.parametrize("fate", ["dies", "lives"])
async def test_a_child_dies_with_its_parent_unless_it_must_not(fate: str) -> None:
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PARENT, fate), stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    async with asyncio.timeout(PATIENCE_S):
        while b"sleep" not in cmdline(pid).split(b" ")[0]:  # noqa: ASYNC110 - still setpriv
            await asyncio.sleep(0.01)

    parent.kill()
    await parent.wait()

    if fate == "dies":
        await ends(pid)
    else:
        assert is_alive(pid)
        os.kill(pid, signal.SIGKILL)


async def test_descriptors_are_passed_on_and_output_goes_where_it_is_told(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with target.open("wb") as file:
        child = process.start(["sh", "-c", "echo told"], stdout=file.fileno())
        assert await child.wait() == 0
    assert target.read_text() == "told\n"
    assert child.completed().stdout == b""

    reading, writing = os.pipe()
    await process.run(
        ["sh", "-c", f"echo passed > /dev/fd/{writing}"], pass_fds=[writing], timeout_s=PATIENCE_S
    )
    os.close(writing)
    with open(reading, "rb") as pipe:
        assert pipe.read() == b"passed\n"
