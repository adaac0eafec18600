"""Who uses a backing image, asked of the cluster.

Owns: which objects are read for that. Must never: decide what a use is (`web.views.users` does).
Called by `show` and `rm`.
"""

from __future__ import annotations

from collections.abc import Sequence

from shorthorn.commands.image.cluster import (
    CLAIM,
    CONTENT,
    PERSISTENT_VOLUME,
    VOLUME_SNAPSHOT,
    Object,
)
from shorthorn.commands.image.cluster import Cluster as Api
from shorthorn.domain.models import BackingImage
from shorthorn.kube.resources import BACKING_IMAGE
from shorthorn.web.views.users import Cluster, Users, users_of


async def find_users(api: Api, image: BackingImage) -> Users:
    """Return who uses an image, as far as the user may see it."""
    hidden: list[str] = []

    def seen(kind: str, found: list[Object] | None) -> Sequence[Object]:
        if found is None:
            hidden.append(kind)
        return found or ()

    claims = seen("PersistentVolumeClaims", await api.everywhere(CLAIM, is_namespaced=True))
    persistent = seen(
        "PersistentVolumes", await api.everywhere(PERSISTENT_VOLUME, is_namespaced=False)
    )
    snapshots = seen("VolumeSnapshots", await api.everywhere(VOLUME_SNAPSHOT, is_namespaced=True))
    contents = seen("VolumeSnapshotContents", await api.everywhere(CONTENT, is_namespaced=False))
    volumes = await api.volumes_from(image.meta.name)
    images = [BACKING_IMAGE.from_object(obj) for obj in await api.images()]
    return users_of(
        image, volumes, images, Cluster(claims, persistent, snapshots, contents, hidden)
    )
