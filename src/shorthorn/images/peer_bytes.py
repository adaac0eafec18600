"""Bytes of a cluster's images for people and machines, wherever their nodes are.

Owns the choice of the node: by ImageCopy and its Pool's address. It implements
domain.image_bytes.ImageBytes through the nodes' peer servers. Must never keep bytes, nor decide who
may have them. Called by `web` in the controller.

It needs the registries of ImageCopies and Pools, and a running `kube.peer_identity.PeerIdentity`;
`close` it at the end.
"""

from __future__ import annotations

import contextlib
import importlib
from typing import TYPE_CHECKING

from shorthorn.domain import errors
from shorthorn.domain.copy_scene import is_alive
from shorthorn.domain.labels import image_selector
from shorthorn.domain.models import CopyState, ImageCopy, ImageKey, Peer, Pool, SourceType
from shorthorn.kit.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from shorthorn.domain.image_bytes import Artifact, ArtifactForm, OpenArtifact, UploadState
    from shorthorn.domain.ports import Registry
    from shorthorn.images.peer_bytes_client import PeerBytesClient
    from shorthorn.images.peer_client import ClientTls


class PeerBytes:
    """`domain.image_bytes.ImageBytes` of a cluster."""

    def __init__(self, copies: Registry[ImageCopy], pools: Registry[Pool], tls: ClientTls) -> None:
        self._copies = copies
        self._pools = pools
        self._tls = tls
        self._client: PeerBytesClient | None = None

    async def close(self) -> None:
        """End all requests."""
        if self._client is not None:
            await self._client.close()

    async def upload_state(self, image: str) -> UploadState:
        client, (peer, key) = await self._asking(), await self._receiver(image)
        return await client.upload_state(peer, key)

    async def append(
        self, image: str, offset_bytes: int, chunks: AsyncIterator[bytes]
    ) -> UploadState:
        client, (peer, key) = await self._asking(), await self._receiver(image)
        return await client.append(peer, key, offset_bytes, chunks)

    async def abandon(self, image: str) -> None:
        client, (peer, key) = await self._asking(), await self._receiver(image)
        await client.abandon(peer, key)

    async def describe(self, image: str, form: ArtifactForm) -> Artifact:
        client = await self._asking()
        failure: errors.DomainError | None = None
        for peer, key in await self._givers(image):
            try:
                return await client.describe(peer, key, form)
            except (errors.Unavailable, errors.NotFound) as exc:
                failure = exc
        raise failure or _away(image)

    @contextlib.asynccontextmanager
    async def read(
        self, image: str, form: ArtifactForm, *, start: int = 0, stop: int | None = None
    ) -> AsyncIterator[OpenArtifact]:
        client = await self._asking()
        async with contextlib.AsyncExitStack() as stack:
            opened: OpenArtifact | None = None
            failure: errors.DomainError | None = None
            for peer, key in await self._givers(image):
                reading = client.read(peer, key, form, start=start, stop=stop)
                try:
                    opened = await stack.enter_async_context(reading)
                    break
                except (errors.Unavailable, errors.NotFound) as exc:
                    failure = exc
            if opened is None:
                raise failure or _away(image)
            yield opened

    # --- which node

    async def _receiver(self, image: str) -> tuple[Peer, ImageKey]:
        """Return whom to ask about an upload: the node of the copy that bytes are sent to or, where
        that copy has gone, any that is ready, since it knows that it was sent.

        Raises: NotFound: there is neither. Unavailable: its node is away.
        """

        def fits(copy: ImageCopy) -> bool:
            is_upload = copy.spec.source_type == SourceType.UPLOAD
            return is_upload or copy.status.state is CopyState.READY

        found = await self._find(image, fits)
        if not found:
            raise errors.NotFound("upload", image, "nothing awaits bytes")
        copy = min(found, key=lambda c: c.spec.source_type != SourceType.UPLOAD)
        peer = self._peer_of(copy)
        if peer is None:
            raise _away(image)
        return peer, _key(copy)

    async def _givers(self, image: str) -> Sequence[tuple[Peer, ImageKey]]:
        """Return who has the image and is there. Raises NotFound: no copy is ready."""
        found = await self._find(image, lambda copy: copy.status.state is CopyState.READY)
        if not found:
            raise errors.NotFound("image", image, "it is not ready")
        reached = [(self._peer_of(copy), _key(copy)) for copy in found]
        return [(peer, key) for peer, key in reached if peer is not None]

    async def _find(self, image: str, fits: Callable[[ImageCopy], bool]) -> Sequence[ImageCopy]:
        """Return the copies of an image that fit, as the watch shows them; where it shows none, the
        API server is asked, since somebody may have read there what the watch does not know yet.
        """

        def chosen(copies: Sequence[ImageCopy]) -> list[ImageCopy]:
            mine = [c for c in copies if c.spec.image == image and not c.meta.deleting]
            return sorted(filter(fits, mine), key=lambda c: c.meta.name)

        listed = chosen(self._copies.cached())
        return listed or chosen(await self._copies.list(labels=image_selector(image)))

    def _peer_of(self, copy: ImageCopy) -> Peer | None:
        uuid = copy.spec.pool_uuid
        pool = self._pools.find_cached(uuid)
        if pool is None or not is_alive(pool) or not pool.spec.peer_address:
            return None
        return Peer(pool.spec.node_id, uuid, pool.spec.peer_address)

    async def _asking(self) -> PeerBytesClient:
        """Return the client; with its libraries it is loaded when it is first needed."""
        if self._client is None:
            await in_thread(importlib.import_module, "shorthorn.images.peer_bytes_client")
            from shorthorn.images.peer_bytes_client import PeerBytesClient

            self._client = self._client or PeerBytesClient(self._tls)
        return self._client


def _key(copy: ImageCopy) -> ImageKey:
    return ImageKey(copy.spec.image, copy.spec.image_uuid)


def _away(image: str) -> errors.Unavailable:
    return errors.Unavailable(f"image {image}", "the nodes of its copies do not report")
