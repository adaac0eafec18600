"""Runs one operation of the local engine in a process that dies at a step of the test's choice.

Started once by the crash tests; forks for every request, which costs milliseconds instead of the
start of an interpreter. One request per line on standard input, one answer per line on standard
output, both JSON: {"root", "scenario", "step"} → {"killed", "steps"}, the steps reached, in order.
Step 0 kills never. A request may also hold "with_open" (steps of opening the pool count, too),
"kill_after_s" and "victims": `process` (the default), `group` (its whole process group) or
`children` (it, after every process that it has started).
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from tests.integration.engine_scenarios import SCENARIOS

from shorthorn.engines.local import LocalEngine


async def _run(request: dict[str, Any], pipe: int) -> None:
    is_counting = bool(request.get("with_open"))
    count = 0

    def reached(step: str) -> None:
        nonlocal count
        if not is_counting:
            return
        count += 1
        os.write(pipe, step.encode() + b"\n")
        if count == request["step"]:
            _die(request.get("victims", "process"))

    scenario = SCENARIOS[request["scenario"]]
    root = Path(request["root"])
    engine = LocalEngine(root, reached=reached, extents_max=scenario.extents_max)
    await engine.open()
    is_counting = True
    await scenario.operate(engine)
    await engine.close()


def _die(victims: str) -> None:
    if victims == "group":
        os.killpg(os.getpgrp(), signal.SIGKILL)
    if victims == "children":
        # Programs are started on the event loop's thread, the main one.
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
        for child in children.split():
            os.kill(int(child), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def _serve(request: dict[str, Any]) -> dict[str, Any]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setpgid(0, 0)
            if request.get("kill_after_s"):
                # The kernel's timer: it strikes wherever the operation happens to be.
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.setitimer(signal.ITIMER_REAL, request["kill_after_s"])
            asyncio.run(_run(request, writing))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writing)
    with open(reading, "rb") as pipe:
        steps = pipe.read().decode().split("\n")[:-1]
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return {"killed": True, "steps": steps}
    return {"killed": False, "steps": steps, "status": os.WEXITSTATUS(status)}


def main() -> None:
    for line in sys.stdin:
        print(json.dumps(_serve(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
