"""A process that stages and publishes a volume, and is killed with SIGKILL on the way.

Run by test_csi_socket_crash.py as `python node_crasher.py POOL STAGING TARGET METHOD WHEN`, where
METHOD is a method of NodeStorage and WHEN is `before` or `after` its effect.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

from shorthorn.engines.local import LocalEngine
from shorthorn.host.node_storage import HostNodeStorage
from shorthorn.kit.keyed import KeyedLocks, KeyedOperations
from shorthorn.services.capabilities import AccessMode, Capability, VolumeMode
from shorthorn.services.node import NodeService, PublishRequest, StageRequest

WANTED = Capability(VolumeMode.FILESYSTEM, AccessMode.SINGLE_NODE_WRITER, "xfs")


def kill_at(storage: HostNodeStorage, method: str, when: str) -> None:
    """Let the named method end this process."""
    original: Any = getattr(storage, method)

    async def deadly(*arguments: Any, **named: Any) -> None:
        if when == "after":
            await original(*arguments, **named)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(storage, method, deadly)


async def main(pool: str, staging: str, target: str, method: str, when: str) -> None:
    engine = LocalEngine(Path(pool))
    await engine.open()
    storage = HostNodeStorage()
    kill_at(storage, method, when)
    node = NodeService(
        engine=engine, storage=storage, operations=KeyedOperations(), locks=KeyedLocks()
    )
    await node.stage(StageRequest("pvc-1", staging, WANTED))
    await node.publish(PublishRequest("pvc-1", staging, target, WANTED, is_read_only=True))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
