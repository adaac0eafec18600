"""What a run of csi-sanity has left: objects, data, mounts, loop devices.

Owns: where to look. Must never: take anything away. Called by the suite's `__main__`, and by the
cluster's tests.
"""

from __future__ import annotations

from pathlib import Path

from tests.integration.daemon_process import loops_below, mounts_of
from tests.integration.service_api import Api

_KINDS = ("Volume", "Snapshot", "BackingImage", "ImageCopy")


def left_behind(api: Api, data_dir: Path) -> list[str]:
    """Say what is there: objects, data, half-made data, mounts and loop devices."""
    pool = data_dir / "pool"
    objects = [f"{kind} {found['metadata']['name']}" for kind in _KINDS for found in api.list(kind)]
    patterns = ("volumes/*", "snapshots/*", "images/*", "staging/*/*")
    data = [str(path) for pattern in patterns for path in pool.glob(pattern)]
    mounts = [target for target in mounts_of(data_dir) if target != str(pool)]
    loops = [file for file in loops_below(data_dir).values() if file.startswith(f"{pool}/")]
    return [f"left behind: {what}" for what in (*objects, *data, *mounts, *loops)]
