"""A node's kernel in memory: `domain.node_ports.NodeStorage` over a MemoryEngine's contents.

`kill_after` counts the calls that change something; the one that reaches 0 raises Killed, either
before or after it took effect, as a kill -9 would.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
from typing import TYPE_CHECKING

from shorthorn.domain.errors import InUse
from shorthorn.domain.node_ports import (
    Content,
    ContentKind,
    FileSystemUsage,
    JournalReplayNeeded,
    MountPoint,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.fakes.memory_engine import MemoryEngine


class Killed(Exception):
    """The process ended here."""


class MemoryNodeStorage:
    """Contents that it knows: `<type>` or `<type> dirty` (a file system), `partitions`, `luks`."""

    def __init__(self, engine: MemoryEngine) -> None:
        self._engine = engine
        self.attached: dict[str, str] = {}
        self.read_only_devices: set[str] = set()
        self.mounts: dict[str, MountPoint] = {}
        self.mount_options: dict[str, tuple[str, ...]] = {}
        self.grown: list[str] = []
        self.formatted: list[str] = []
        self.kill_after: int | None = None
        self.kill_before_effect = False

    def _image_of(self, device: str) -> str:
        return next(image for image, found in self.attached.items() if found == device)

    async def _change(self, effect: object) -> None:
        """Run `effect`, unless the process is killed first; or be killed right after it."""
        await asyncio.sleep(0)
        is_last = self.kill_after == 0
        if self.kill_after is not None:
            self.kill_after -= 1
        if is_last and self.kill_before_effect:
            raise Killed
        assert callable(effect)
        effect()
        if is_last:
            raise Killed

    async def resolve(self, path: str) -> str:
        return path.rstrip("/")

    async def attach(self, image: str) -> str:
        if image not in self.attached:
            used = set(self.attached.values())
            free = next(n for n in range(100) if f"/dev/loop{n}" not in used)
            await self._change(lambda: self.attached.update({image: f"/dev/loop{free}"}))
        return self.attached[image]

    async def find_device(self, image: str) -> str | None:
        return self.attached.get(image)

    async def detach(self, image: str) -> None:
        device = self.attached.get(image)
        if device is None:
            return
        if any(mount.device == device for mount in self.mounts.values()):
            raise InUse("device", device, "a mount")
        await self._change(lambda: self.attached.pop(image))

    async def set_writable(self, device: str, *, writable: bool) -> None:
        if writable:
            await self._change(lambda: self.read_only_devices.discard(device))
        else:
            await self._change(lambda: self.read_only_devices.add(device))

    async def device_size_bytes(self, device: str) -> int:
        path = self._image_of(device)
        return next(v.capacity_bytes for v in self._engine.volumes.values() if v.path == path)

    async def inspect(self, device: str) -> Content:
        content = self._engine.contents.get(self._image_of(device), "")
        if not content or content == "noise":
            return Content(ContentKind.EMPTY)
        if content == "partitions":
            return Content(ContentKind.PARTITIONS, "gpt")
        if content == "luks":
            return Content(ContentKind.OTHER, "crypto_LUKS")
        return Content(ContentKind.FILE_SYSTEM, content.split()[0])

    async def format(self, device: str, fs_type: str) -> None:
        def effect() -> None:
            self.formatted.append(device)
            self._engine.contents[self._image_of(device)] = fs_type

        await self._change(effect)

    async def mount(
        self,
        device: str,
        target: str,
        fs_type: str,
        *,
        read_only: bool,
        options: Sequence[str],
    ) -> None:
        content = self._engine.contents[self._image_of(device)]
        if device in self.read_only_devices and "dirty" in content:
            raise JournalReplayNeeded

        def effect() -> None:
            self._engine.contents[self._image_of(device)] = content.removesuffix(" dirty")
            self.mounts[target] = MountPoint(target, device, False, read_only)
            self.mount_options[target] = tuple(options)

        await self._change(effect)

    async def bind(self, source: str, target: str, *, read_only: bool) -> None:
        found = self.mounts.get(source)
        device = found.device if found else source
        is_block = found.is_block if found else True
        is_read_only = read_only or bool(found and found.is_read_only)
        mount = MountPoint(target, device, is_block, is_read_only)
        await self._change(lambda: self.mounts.update({target: mount}))

    async def unmount(self, target: str) -> None:
        if target in self.mounts:
            await self._change(lambda: self.mounts.pop(target))

    async def remove_mount_point(self, target: str) -> None:
        await asyncio.sleep(0)

    async def find_mount(self, target: str) -> MountPoint | None:
        return self.mounts.get(os.path.abspath(target))

    async def list_mounts(self, device: str) -> Sequence[MountPoint]:
        return [mount for mount in self.mounts.values() if mount.device == device]

    async def grow_unmounted(self, device: str, fs_type: str) -> None:
        await self._change(lambda: None)

    async def grow(self, mount: MountPoint) -> None:
        await self._change(lambda: self.grown.append(mount.target))

    async def usage(self, target: str) -> FileSystemUsage:
        return FileSystemUsage(1000, 400, 600, 100, 10, 90)

    async def clone_file(self, source: str, target: str) -> None:
        content = self._engine.contents.get(source, "")
        await self._change(lambda: self._engine.contents.update({target: content}))

    async def remove_file(self, path: str) -> None:
        if path in self._engine.contents:
            await self._change(lambda: self._engine.contents.pop(path))

    def mounted_at(self) -> dict[str, MountPoint]:
        """Return a copy of what is mounted, for comparing."""
        return {target: dataclasses.replace(m) for target, m in self.mounts.items()}
