"""Images and snapshots of other nodes' pools into a staging directory, ready for the engine's
commit.

Owns the order of things: transfer and proof, then the same base as of an imported file. It
implements domain.ports.PeerSource; everything that can go wrong below leaves it as a domain error.
Must never leave `artifact` and `base.raw` as complete before all of it held. Called by the image
copy and volume controllers.

What an image is was judged where it first arrived. Raw bytes are not judged again: they may be of
any kind, since a volume's are, and nothing here looks into them. A qcow2 is, before QEMU sees it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shorthorn.domain.errors import DomainError, NotFound, Unavailable
from shorthorn.domain.models import ImageFormat, ImageRecord
from shorthorn.host import files
from shorthorn.images.base_image import BASE_NAME, make_base
from shorthorn.images.download import RetryPolicy
from shorthorn.images.failures import discard, translated
from shorthorn.images.inspection import Inspection, inspect_file
from shorthorn.images.peer_transfer import TransferRequest, transfer
from shorthorn.images.peer_wire import image_path, snapshot_path
from shorthorn.images.refusal import NotAcceptable
from shorthorn.kit.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from shorthorn.domain.models import ImageKey, Peer
    from shorthorn.domain.ports import ReportProgress
    from shorthorn.images.peer_client import ClientTls
    from shorthorn.images.peer_transfer import Transferred


class PeerFetcher:
    """Fetches from peers over mutually authenticated TLS (domain.ports.PeerSource)."""

    def __init__(self, pool_name: str, tls: ClientTls, retry: RetryPolicy | None = None) -> None:
        """`pool_name` is for messages: where there was no space."""
        self._pool_name = pool_name
        self._tls = tls
        self._retry = retry or RetryPolicy()

    async def fetch_image(
        self,
        key: ImageKey,
        peers: Sequence[Peer],
        expected_checksum: str,
        staging: Path,
        report: ReportProgress,
    ) -> ImageRecord:
        """See ports.PeerSource. Also raises ImageRejected: the bytes are right and no disk."""
        request = TransferRequest(
            path=image_path(key),
            what=f"image {key.name}",
            name=key.name,
            peers=peers,
            expected_checksum=expected_checksum.strip().lower(),
            staging=staging,
            pool_name=self._pool_name,
            retry=self._retry,
        )
        try:
            return await self._fetch(request, key, report)
        except NotFound as exc:
            raise Unavailable("peers", f"image {key.name}: none of them has it now") from exc

    async def fetch_snapshot(
        self,
        snapshot_id: str,
        peers: Sequence[Peer],
        key: ImageKey,
        staging: Path,
        report: ReportProgress,
    ) -> ImageRecord:
        """See ports.PeerSource."""
        request = TransferRequest(
            path=snapshot_path(snapshot_id),
            what=f"snapshot {snapshot_id}",
            name=key.name,
            peers=peers,
            expected_checksum="",
            staging=staging,
            pool_name=self._pool_name,
            retry=self._retry,
        )
        try:
            return await self._fetch(request, key, report)
        except NotFound as exc:
            raise NotFound("snapshot", snapshot_id, "no peer has it") from exc

    async def _fetch(
        self, request: TransferRequest, key: ImageKey, report: ReportProgress
    ) -> ImageRecord:
        staging = request.staging
        try:
            with translated(key.name, self._pool_name, staging):
                done = await transfer(request, self._tls, report)
                inspection = await in_thread(_inspect, done)
                base = staging / BASE_NAME
                await make_base(done.path, base, inspection, report)
                await files.fsync_file(base)
                await files.fsync_dir(staging)
        except (Unavailable, NotFound):
            raise
        except DomainError:
            await discard(staging)
            raise
        return ImageRecord(
            key=key,
            format=done.description.format,
            size_bytes=done.description.size_bytes,
            virtual_size_bytes=done.description.virtual_size_bytes,
            checksum=done.checksum,
            source=done.description.source,
            created_at=done.description.created_at,
            point_in_time=done.description.point_in_time,
            artifact_path=str(done.path),
            base_path=str(base),
        )


def _inspect(done: Transferred) -> Inspection:
    """Raises: NotAcceptable: the bytes are not what the peer says of them."""
    said = done.description
    if said.format is ImageFormat.RAW:
        return Inspection(ImageFormat.RAW, said.virtual_size_bytes, said.size_bytes)
    found = inspect_file(done.path, promised=ImageFormat.QCOW2)
    if found.virtual_size_bytes != said.virtual_size_bytes:
        raise NotAcceptable(
            f"its peer says that it holds a disk of {said.virtual_size_bytes} bytes, but it holds "
            f"one of {found.virtual_size_bytes}"
        )
    return found
