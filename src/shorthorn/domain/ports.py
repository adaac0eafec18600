"""What the services need from the world, as obligations.

Owns: the protocols between the inside (services, controllers) and the adapters (engines, images,
kube, host). Must never: hold an implementation. `daemon` wires concrete classes to them; the
contract suites in tests/contract hold every implementation to these words.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from pathlib import Path
from typing import Protocol, TypeVar

from shorthorn.domain.models import (
    FileUsage,
    FormatState,
    ImageFormat,
    ImageKey,
    ImageRecord,
    Peer,
    PoolUsage,
    Progress,
    SnapshotRecord,
    VolumeRecord,
    VolumeSource,
)

T = TypeVar("T")
ReportProgress = Callable[[Progress], None]
"""Called from the event loop, often; must return at once."""


class Registry(Protocol[T]):
    """Desired and observed state of one kind, behind the Kubernetes API.

    Names are object names within the one namespace that holds our objects. Values are the frozen
    dataclasses of domain.models; what a registry returns is never older than what this process
    wrote through it before.
    """

    async def find(self, name: str) -> T | None:
        """Return the object, or None where there is none. Reads from the API server."""

    async def list(self, *, labels: Mapping[str, str] | None = None) -> Sequence[T]:
        """Return all objects that carry these labels, from the API server: also those which this
        process does not watch.
        """

    def cached(self) -> Sequence[T]:
        """Return all objects as last seen by the watch; may be slightly old, costs nothing."""

    def find_cached(self, name: str) -> T | None:
        """Return one object as last seen by the watch."""

    async def create(self, obj: T) -> T:
        """Store a new object (spec and meta; status is ignored). Raises AlreadyExists,
        InvalidArgument.
        """

    async def update(self, obj: T) -> T:
        """Replace spec, labels, annotations and finalizers; what the domain does not know of them
        stays as it is. Raises Conflict where resource_version is old, NotFound.
        """

    async def update_status(self, obj: T) -> T:
        """Replace the status. Raises Conflict, NotFound."""

    async def delete(self, name: str, *, uid: str | None = None) -> None:
        """Ask for deletion; missing (or another uid) is success. Finalizers may keep the object for
        a while.
        """

    async def wait(
        self, name: str, until: Callable[[T | None], bool], *, timeout_s: float
    ) -> T | None:
        """Return the object (None: gone) as soon as `until` holds. Raises TimeoutError.

        Event-driven: `until` sees the state at the start and after every change.
        """

    def subscribe(self) -> AbstractAsyncContextManager[AsyncIterator[str]]:
        """Yield the name of every object that exists at the start, then of every one that changes
        or goes.

        Bursts are coalesced; a name is yielded again after each change that follows its delivery.
        Never ends by itself: lost connections and expired resource versions are mended inside.
        """


class Engine(Protocol):
    """Keeps volumes, snapshots and images on one pool of this node.

    Every method may be called again after success, after failure and after the process died in the
    middle: it then goes on or answers what it answered. Only what was committed (renamed into place
    and synced) is ever found or listed. Callers serialise operations on the same object; different
    objects run in parallel. All raise NoSpace where the pool is full, with nothing half made left
    behind.
    """

    @property
    def name(self) -> str:
        """Short name: `local`."""

    @property
    def clone_method(self) -> str:
        """`reflink` or `copy`."""

    @property
    def pool_uuid(self) -> str: ...

    async def open(self) -> None:
        """Thaw what a dead predecessor left frozen, sweep or keep staging, check format versions.
        First of all calls.
        """

    async def usage(self) -> PoolUsage: ...

    # volumes
    async def create_volume(
        self,
        volume_id: str,
        capacity_bytes: int,
        source: VolumeSource,
        *,
        content: ImageKey | None = None,
    ) -> VolumeRecord:
        """Make a volume of exactly `capacity_bytes`, blank or a clone; the tail beyond the source
        reads zero.

        A source volume is captured at this moment as by `create_snapshot`. `content`: the image of
        this pool into which the source, which is on another node, was brought; `source` is what is
        recorded. Raises NotFound (source), SizeOutOfRange (source larger), AlreadyExists (other
        capacity or source).
        """

    async def find_volume(self, volume_id: str) -> VolumeRecord | None: ...

    async def list_volumes(self) -> Sequence[VolumeRecord]: ...

    async def expand_volume(self, volume_id: str, capacity_bytes: int) -> VolumeRecord:
        """Grow, never shrink; an attached loop device learns its new size. Raises NotFound."""

    async def delete_volume(self, volume_id: str) -> None:
        """Make absent; missing is success. Raises InUse while a loop device of it is mounted or
        open.
        """

    async def measure_volume(self, volume_id: str) -> FileUsage: ...

    async def record_format(self, volume_id: str, state: FormatState, fs_type: str) -> VolumeRecord:
        """Durably record how far formatting is. Raises NotFound, WrongState (only blank volumes are
        formatted).
        """

    # snapshots
    async def create_snapshot(self, snapshot_id: str, volume_id: str) -> SnapshotRecord:
        """Fix the volume's content at a moment during this call, crash-consistent for every mounted
        file system.

        A mounted file system is frozen, cloned, thawed; an open block device is flushed and cloned.
        Raises NotFound, AlreadyExists (of another volume).
        """

    async def find_snapshot(self, snapshot_id: str) -> SnapshotRecord | None: ...

    async def list_snapshots(self) -> Sequence[SnapshotRecord]: ...

    async def delete_snapshot(self, snapshot_id: str) -> None: ...

    async def measure_snapshot(self, snapshot_id: str) -> FileUsage: ...

    # images
    async def begin_export(
        self, key: ImageKey, volume_id: str, export_format: ImageFormat
    ) -> datetime:
        """Fix the volume's content for image `key`, durably, and return that point in time.

        From here on the volume may change or be deleted. Again for the same key: the recorded time,
        no second capture.
        """

    async def finish_export(self, key: ImageKey, report: ReportProgress) -> ImageRecord:
        """Convert what `begin_export` fixed and commit it. `checksum` is empty in the record: see
        record_checksum.
        """

    async def staging_dir(self, key: ImageKey) -> Path:
        """Return the (existing) directory in the pool where bytes of image `key` may be put
        together.
        """

    async def commit_image(self, record: ImageRecord) -> ImageRecord:
        """Commit `artifact` and `base.raw` from the staging directory as image `record.key`. Paths
        in it are ignored.
        """

    async def discard_staging(self, key: ImageKey) -> None:
        """Remove what is half made of image `key`; missing is success."""

    async def find_image(self, key: ImageKey) -> ImageRecord | None: ...

    async def list_images(self) -> Sequence[ImageRecord]: ...

    async def record_checksum(self, key: ImageKey, checksum: str) -> ImageRecord:
        """Durably add the artifact's SHA-512 to image.json."""

    async def delete_image(self, key: ImageKey) -> None:
        """Make absent, staging included; missing is success. Volumes made from it stay."""

    async def measure_image(self, key: ImageKey) -> FileUsage: ...

    async def close(self) -> None:
        """Stop background work; data, loop devices and mounts stay as they are."""


class ImageFetcher(Protocol):
    """Brings an image's bytes from elsewhere into a staging directory."""

    async def fetch(
        self,
        key: ImageKey,
        parameters: Mapping[str, str],
        expected_checksum: str,
        staging: Path,
        report: ReportProgress,
    ) -> ImageRecord:
        """Leave `artifact` and `base.raw`, complete and synced, in `staging`; resume what an
        earlier call left there.

        The record's checksum is the SHA-512 of the artifact and equals `expected_checksum` where
        one is given. Raises ChecksumMismatch, ImageRejected, ImageFailed (final: the source says
        no), Unavailable (may be tried again), NoSpace.
        State after failure: what can be resumed is kept in `staging`, anything else removed.
        """


class PeerSource(Protocol):
    """Brings data that another node's pool has, encrypted and from authenticated peers alone."""

    async def fetch_image(
        self,
        key: ImageKey,
        peers: Sequence[Peer],
        expected_checksum: str,
        staging: Path,
        report: ReportProgress,
    ) -> ImageRecord:
        """Leave `artifact` and `base.raw` of the image, complete, sparse and synced, in `staging`.

        Goes on from what an earlier call left there, also from another peer: the bytes of an image
        never change. The record is the sender's, its checksum is the SHA-512 of the bytes that
        arrived and equals `expected_checksum` where one is given.
        Raises: ChecksumMismatch. Unavailable: no peer gave it (may be tried again). NoSpace.
        """

    async def fetch_snapshot(
        self,
        snapshot_id: str,
        peers: Sequence[Peer],
        key: ImageKey,
        staging: Path,
        report: ReportProgress,
    ) -> ImageRecord:
        """Leave a snapshot's data in `staging` as the raw image `key`, as `fetch_image` does.

        Its checksum is the sender's too. Raises: NotFound: no peer has it. Else as `fetch_image`.
        """


class Checksummer(Protocol):
    """Computes an artifact's SHA-512 in the background, and looks whether its base goes with it."""

    async def sha512(self, path: Path, report: ReportProgress, *, from_disk: bool = False) -> str:
        """Return lower-case hex of the file's exact bytes. Cancelling stops it within a second.

        Args: from_disk: what of it is in memory proves nothing, and is read again.
        """

    async def base_problem(self, record: ImageRecord, report: ReportProgress) -> str:
        """Return in words how `base.raw` on the disk differs from the disk in the artifact, which
        must have been found whole; empty: not at all.

        Raises: OSError: one of them cannot be read. Unavailable: nobody can tell at this moment.
        """


class ClaimDirectory(Protocol):
    """Looks up what users call a volume."""

    async def volume_handles_of_claim(self, claim: str) -> Sequence[str]:
        """Return the volume handles of persistent volumes bound to a claim of this name, in any
        namespace.
        """


class NodeDirectory(Protocol):
    """Knows the machines of a cluster."""

    async def is_known(self, node_id: str) -> bool:
        """Return whether the cluster has a node of this name, be it up or down. Raises
        Unavailable: nobody knows at the moment.
        """
