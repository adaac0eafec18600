"""Mounting claims on one host: what a kubelet does for a pod.

Owns: NodeStage, NodePublish and their reverse for `shorthorn mount`, `umount` and `path`; being the
first consumer of a WaitForFirstConsumer claim. Must never: mount anything itself; the driver does,
over its socket. Runs in the command's process; what is mounted stays when the command or the daemon
ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import grpc

from shorthorn.csi.proto import csi_pb2
from shorthorn.domain import errors
from shorthorn.standalone import storage_class
from shorthorn.standalone.consumers import PUBLISHED, SELECTED_NODE, published_paths
from shorthorn.standalone.csi_client import CALL_TIMEOUT_S, Answer, CsiClient, CsiError, answer
from shorthorn.standalone.objects import Object, Objects, annotations_of, is_deleting, key_of

_POLL_S = 0.1
_BUSY_S = 10.0


class ClaimUnusable(Exception):
    """The claim cannot be mounted as asked for; the message says why and what to do."""


@dataclass(frozen=True)
class Attached:
    """A claim with its volume."""

    claim: Object
    volume: Object

    @property
    def volume_mode(self) -> str:
        return str(self.volume["spec"].get("volumeMode", "Filesystem"))

    @property
    def volume_id(self) -> str:
        return str(self.volume["spec"]["csi"]["volumeHandle"])

    @property
    def capability(self) -> csi_pb2.VolumeCapability:
        spec = self.volume["spec"]
        return storage_class.capability(
            self.claim["spec"]["accessModes"][0],
            self.volume_mode,
            spec["csi"].get("fsType") or storage_class.DEFAULT_FS_TYPE,
            spec.get("mountOptions") or [],
        )


class Attachments:
    """Publishes and unpublishes claims of one host."""

    def __init__(
        self,
        claims: Objects,
        volumes: Objects,
        events: Objects,
        driver: CsiClient,
        *,
        staging_dir: Path,
        tell: Callable[[str], None],
    ) -> None:
        self._claims = claims
        self._volumes = volumes
        self._events = events
        self._driver = driver
        self._staging_dir = staging_dir
        self._tell = tell

    async def mount(self, key: str, target: Path, *, read_only: bool, timeout_s: float) -> None:
        """Mount the file system of claim `key` at `target`. Again: success. Raises ClaimUnusable,
        CsiError.
        """
        attached = await self._bound(key, timeout_s)
        if attached.volume_mode == "Block":
            raise ClaimUnusable(
                f"claim {key} has volumeMode: Block; `shorthorn path {key}` prints its device"
            )
        await self._publish(attached, target, read_only=read_only)

    async def device(self, key: str, target: Path, *, timeout_s: float) -> None:
        """Publish the block device of claim `key` at `target`. Raises ClaimUnusable, CsiError."""
        attached = await self._bound(key, timeout_s)
        if attached.volume_mode != "Block":
            raise ClaimUnusable(
                f"claim {key} holds a file system; `shorthorn mount {key} DIR` mounts it "
                "(a device needs volumeMode: Block in the claim)"
            )
        await self._publish(attached, target, read_only=False)

    async def unmount(self, target: Path) -> None:
        """Undo `mount` or `device` at `target`. Raises ClaimUnusable where nothing of ours is
        there.
        """
        claim = await self._claim_at(target)
        volume = await self._volumes.find(claim["spec"]["volumeName"])
        if volume is None:
            raise ClaimUnusable(f"the volume of claim {key_of(claim)} is gone")
        attached = Attached(claim, volume)
        await _when_free(
            lambda: self._driver.node.NodeUnpublishVolume(
                csi_pb2.NodeUnpublishVolumeRequest(
                    volume_id=attached.volume_id, target_path=str(target)
                ),
                timeout=CALL_TIMEOUT_S,
            )
        )
        if attached.volume_mode != "Block":
            # CSI has the driver remove its target; a user's directory is there after umount.
            target.mkdir(exist_ok=True)
        await self._leave(attached, target)

    async def _leave(self, attached: Attached, target: Path) -> None:
        """Unstage behind the last publication, and only then forget where it was: whoever is
        stopped in between can do it again.
        """
        claim = await self._claims.find(key_of(attached.claim))
        others = set(published_paths(claim)) - {str(target)} if claim else set()
        if not others:
            await self._unstage(attached)
        left = await self._record(key_of(attached.claim), lambda paths: paths - {str(target)})
        if others and not left:  # they left at the same time
            await self._unstage(attached)

    async def _claim_at(self, target: Path) -> Object:
        for claim in await self._claims.list():
            if str(target) in published_paths(claim):
                return claim
        raise ClaimUnusable(f"no claim is mounted at {target}; `mount` and `findmnt` show what is")

    async def _publish(self, attached: Attached, target: Path, *, read_only: bool) -> None:
        """Stage, publish, and have written down before that the claim is in use."""
        was_published = str(target) in published_paths(attached.claim)
        await self._record(key_of(attached.claim), lambda paths: paths | {str(target)})
        try:
            await self._stage(attached)
            await _when_free(
                lambda: self._driver.node.NodePublishVolume(
                    csi_pb2.NodePublishVolumeRequest(
                        volume_id=attached.volume_id,
                        staging_target_path=str(self._staging_path(attached)),
                        target_path=str(target),
                        volume_capability=attached.capability,
                        readonly=read_only,
                        volume_context=attached.volume["spec"]["csi"].get("volumeAttributes", {}),
                    ),
                    timeout=CALL_TIMEOUT_S,
                )
            )
        except BaseException:
            if not was_published:
                # What went wrong first is what the user must see; `umount` tidies up the rest.
                with contextlib.suppress(CsiError, errors.DomainError):
                    await self._leave(attached, target)
            raise

    async def _stage(self, attached: Attached) -> None:
        path = self._staging_path(attached)
        path.mkdir(parents=True, exist_ok=True)
        await _when_free(
            lambda: self._driver.node.NodeStageVolume(
                csi_pb2.NodeStageVolumeRequest(
                    volume_id=attached.volume_id,
                    staging_target_path=str(path),
                    volume_capability=attached.capability,
                    volume_context=attached.volume["spec"]["csi"].get("volumeAttributes", {}),
                ),
                timeout=CALL_TIMEOUT_S,
            )
        )

    async def _unstage(self, attached: Attached) -> None:
        path = self._staging_path(attached)
        await _when_free(
            lambda: self._driver.node.NodeUnstageVolume(
                csi_pb2.NodeUnstageVolumeRequest(
                    volume_id=attached.volume_id, staging_target_path=str(path)
                ),
                timeout=CALL_TIMEOUT_S,
            )
        )
        for directory in (path, path.parent):
            _remove_empty(directory)

    def _staging_path(self, attached: Attached) -> Path:
        return self._staging_dir / str(attached.volume["metadata"]["name"]) / "globalmount"

    async def _record(self, key: str, change: Callable[[set[str]], set[str]]) -> list[str]:
        """Write down where the claim is mounted; its deletion waits for that to become empty."""
        while True:
            claim = await self._claims.find(key)
            if claim is None:
                return []
            paths = sorted(change(set(published_paths(claim))))
            annotations = {**annotations_of(claim), PUBLISHED: "\n".join(paths)}
            if not paths:
                del annotations[PUBLISHED]
            claim["metadata"]["annotations"] = annotations
            try:
                await self._claims.replace(claim)
            except errors.Conflict:
                continue
            return paths

    async def _bound(self, key: str, timeout_s: float) -> Attached:
        """Return the claim once it is bound, as its first consumer if it waits for one."""
        claim = await self._claims.find(key)
        if claim is None:
            raise ClaimUnusable(f"there is no claim {key}; `kubectl get pvc -A` lists them")
        if is_deleting(claim) and not published_paths(claim):
            raise ClaimUnusable(f"claim {key} is being deleted")
        if not claim["spec"].get("volumeName") and SELECTED_NODE not in annotations_of(claim):
            node = await answer(
                self._driver.node.NodeGetInfo(csi_pb2.NodeGetInfoRequest(), timeout=CALL_TIMEOUT_S)
            )
            await self._claims.merge(
                key, {"metadata": {"annotations": {SELECTED_NODE: node.node_id}}}
            )
        return await self._wait_bound(key, timeout_s)

    async def _wait_bound(self, key: str, timeout_s: float) -> Attached:
        """Wait, telling what the provisioner says meanwhile."""
        told = ""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while True:
            claim = await self._claims.find(key)
            if claim is None:
                raise ClaimUnusable(f"claim {key} was deleted")
            if (claim.get("status") or {}).get("phase") == "Bound":
                volume = await self._volumes.find(claim["spec"]["volumeName"])
                if volume is not None:
                    return Attached(claim, volume)
            said = await self._last_event(claim)
            if said and said != told:
                self._tell(said)
                told = said
            if asyncio.get_running_loop().time() > deadline:
                raise ClaimUnusable(
                    f"claim {key} is not bound after {timeout_s:.0f} s"
                    + (f": {said}" if said else "; `kubectl describe pvc` may say why")
                )
            await asyncio.sleep(_POLL_S)

    async def _last_event(self, claim: Object) -> str:
        mine = [
            event
            for event in await self._events.list(namespace=claim["metadata"]["namespace"])
            if event["involvedObject"].get("uid") == claim["metadata"]["uid"]
        ]
        if not mine:
            return ""
        latest = max(mine, key=lambda event: event.get("lastTimestamp") or "")
        return f"{latest['reason']}: {latest['message']}"


async def _when_free(call: Callable[[], Awaitable[Answer]]) -> Answer:
    """Make a call again while something else is being done to the volume: another command, or what
    one that was stopped had begun. Raises CsiError.
    """
    deadline = asyncio.get_running_loop().time() + _BUSY_S
    while True:
        try:
            return await answer(call())
        except CsiError as exc:
            is_busy = exc.code is grpc.StatusCode.ABORTED
            if not is_busy or asyncio.get_running_loop().time() > deadline:
                raise
        await asyncio.sleep(_POLL_S)


def _remove_empty(directory: Path) -> None:
    """Remove a directory unless somebody has put something into it meanwhile."""
    try:
        directory.rmdir()
    except FileNotFoundError:
        return
    except OSError as exc:
        if exc.errno not in (errno.ENOTEMPTY, errno.EBUSY):
            raise
