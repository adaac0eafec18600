"""Which nodes can give what this node lacks.

Owns: finding pools with a ready copy of an image, or with a snapshot, and their addresses. Must
never: transfer anything. Objects of other nodes are read from the API server, because a node
watches only its own. Used by `controllers.image_copies` and `controllers.contents`.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from shorthorn.domain.copy_scene import is_alive
from shorthorn.domain.labels import image_selector
from shorthorn.domain.models import CopyState, ImageCopy, Peer, Pool
from shorthorn.domain.ports import Registry


async def peers_with_image(
    copies: Registry[ImageCopy], pools: Registry[Pool], wanted: ImageCopy
) -> Sequence[Peer]:
    """Return the peers that have the image of `wanted`, in an order that differs from node to node
    so that not all ask the same one.
    """
    image, uuid, own = wanted.spec.image, wanted.spec.image_uuid, wanted.spec.pool_uuid
    peers = []
    for copy in await copies.list(labels=image_selector(image)):
        if (copy.spec.image, copy.spec.image_uuid) != (image, uuid) or copy.meta.deleting:
            continue
        if copy.status.state is CopyState.READY and copy.spec.pool_uuid != own:
            peer = await find_peer(pools, copy.spec.pool_uuid)
            peers += [] if peer is None else [peer]
    return sorted(peers, key=lambda peer: zlib.crc32(f"{own} {peer.pool_uuid}".encode()))


async def has_copies(copies: Registry[ImageCopy], wanted: ImageCopy) -> bool:
    """Whether the image of `wanted` has any copy that is to stay, in whatever state."""
    image = (wanted.spec.image, wanted.spec.image_uuid)
    return any(
        (copy.spec.image, copy.spec.image_uuid) == image and not copy.meta.deleting
        for copy in await copies.list(labels=image_selector(wanted.spec.image))
    )


async def find_peer(pools: Registry[Pool], pool_uuid: str) -> Peer | None:
    """Return the peer with that pool; None where it is away or gives nothing to peers."""
    pool = await pools.find(pool_uuid)
    if pool is None or not is_alive(pool) or not pool.spec.peer_address:
        return None
    return Peer(pool.spec.node_id, pool_uuid, pool.spec.peer_address)
