"""Waiting until an image's copies have been hashed again.

Owns: how it is seen that a verification was carried out, and what came of it. Must never: hash
anything. Called by `verify --wait`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from shorthorn.commands.image.cluster import Cluster
from shorthorn.commands.image.progress import metered
from shorthorn.commands.image.waiting import raise_failure
from shorthorn.domain import errors
from shorthorn.domain.models import BackingImage, CopyState, ImageCopy
from shorthorn.kube.resources import BACKING_IMAGE

_LOOK_EVERY_S = 0.5
"""What a copy's node reports need not change the image itself, so its copies are looked at."""


async def wait_verified(
    cluster: Cluster, name: str, at: str, *, timeout_s: float, quiet: bool = False
) -> str:
    """Return the checksum once every ready copy was found to have it, since `at` was asked for.

    Raises: ImageFailed: a copy is not what it should be. NotFound. Unavailable: not in time.
    """
    with metered(name, quiet=quiet) as meter:
        meter.say("being verified")
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    # Over a restart of the API server it goes on.
                    with contextlib.suppress(errors.Unavailable):
                        image = BACKING_IMAGE.from_object(await cluster.image(name))
                        copies = await cluster.copies(name)
                        _raise_corrupt(image, copies)
                        if _is_done(image, copies, at):
                            return image.status.checksum
                    await asyncio.sleep(_LOOK_EVERY_S)
        except TimeoutError:
            raise errors.Unavailable(
                f"backing image {name}", f"not verified within {timeout_s:.0f} s"
            ) from None


def _is_done(image: BackingImage, copies: Sequence[ImageCopy], at: str) -> bool:
    """Whether every ready copy says that it has carried out the request of that time."""
    ready = [copy for copy in copies if copy.status.state is CopyState.READY]
    verified = any(c.type == "ChecksumVerified" and c.is_true for c in image.status.conditions)
    return bool(ready) and verified and all(copy.status.verify_at == at for copy in ready)


def _raise_corrupt(image: BackingImage, copies: Sequence[ImageCopy]) -> None:
    """Raise where the image, or a copy of it, was found to be wrong."""
    raise_failure(image)
    for copy in copies:
        if copy.status.state is CopyState.FAILED:
            told = f"its copy on node {copy.spec.node_id}: {copy.status.message}"
            raise errors.ImageFailed(image.meta.name, told)
    for condition in image.status.conditions:
        if condition.type == "ChecksumVerified" and condition.reason == "ChecksumMismatch":
            raise errors.ImageFailed(image.meta.name, condition.message)
