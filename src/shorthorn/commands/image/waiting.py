"""Waiting until an image is ready, has failed, or is gone.

Owns: when waiting ends and what is shown meanwhile. Must never: change an object. Called by every
command with `--wait`, and by uploads.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable

from shorthorn.commands.image.cluster import Cluster, Object
from shorthorn.commands.image.progress import Meter, metered
from shorthorn.domain import errors
from shorthorn.domain.models import BackingImage, CopyState
from shorthorn.kube.resources import BACKING_IMAGE


async def wait_ready(
    cluster: Cluster, name: str, *, timeout_s: float, quiet: bool = False
) -> Object:
    """Return the image's object once it is ready.

    Raises: ImageFailed: it cannot be made. NotFound: it was deleted. Unavailable: not in time.
    """
    with metered(name, quiet=quiet) as meter:
        return await wait_until(
            cluster, name, lambda image: image.is_ready, timeout_s=timeout_s, meter=meter
        )


async def wait_until(
    cluster: Cluster,
    name: str,
    until: Callable[[BackingImage], bool],
    *,
    timeout_s: float,
    meter: Meter,
) -> Object:
    """Return the image's object once `until` holds. Raises: as `wait_ready`."""
    said = ""
    async for obj in _followed(cluster, name, timeout_s):
        if obj is None:
            raise errors.NotFound("backing image", name)
        image = BACKING_IMAGE.from_object(obj)
        raise_failure(image)
        if until(image):
            return obj
        said = await _show(cluster, image, meter, said)
    raise errors.Unavailable(
        f"backing image {name}", f"not done within {timeout_s:.0f} s ({said or 'nothing began'})"
    )


async def wait_retried(
    cluster: Cluster, before: Object, *, timeout_s: float, quiet: bool = False
) -> Object:
    """Return the image's object once it is ready and no copy has failed, after it was asked for
    anew. Raises: as `wait_ready`; the failure that was there `before` is no answer.
    """
    name, old = before["metadata"]["name"], BACKING_IMAGE.from_object(before).failure
    with metered(name, quiet=quiet) as meter:
        async for obj in _followed(cluster, name, timeout_s):
            if obj is None:
                raise errors.NotFound("backing image", name)
            image = BACKING_IMAGE.from_object(obj)
            if image.failure != old:
                raise_failure(image)
            files = image.status.disk_file_status.values()
            if image.is_ready and not any(file.state is CopyState.FAILED for file in files):
                return obj
            await _show(cluster, image, meter, "")
    raise errors.Unavailable(f"backing image {name}", f"not ready within {timeout_s:.0f} s")


async def wait_gone(cluster: Cluster, name: str, *, uid: str, timeout_s: float) -> None:
    """Return once the image of that UID is gone. Raises: Unavailable: not in time."""
    async for obj in _followed(cluster, name, timeout_s):
        if obj is None or obj["metadata"]["uid"] != uid:
            return
    raise errors.Unavailable(f"backing image {name}", f"not gone within {timeout_s:.0f} s")


def raise_failure(image: BackingImage) -> None:
    """Raise ImageFailed where the image cannot be made."""
    failure = image.failure
    if failure is not None and not image.is_ready:
        raise errors.ImageFailed(image.meta.name, f"{failure.reason}: {failure.message}")


async def _followed(
    cluster: Cluster, name: str, timeout_s: float
) -> AsyncGenerator[Object | None, None]:
    """Yield the image and its changes until the time is up."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            async with contextlib.aclosing(cluster.follow_image(name)) as changes:
                async for obj in changes:
                    yield obj


async def _show(cluster: Cluster, image: BackingImage, meter: Meter, said: str) -> str:
    """Show how far the copy is that is farthest; return what was said of it."""
    copies = [c.status for c in await cluster.copies(image.meta.name)]
    best = max(copies, key=lambda c: (c.progress_percent, c.bytes_done), default=None)
    ready = next((c for c in image.status.conditions if c.type == "Ready"), None)
    if best is not None and best.bytes_done:
        meter.moved(best.bytes_done, best.bytes_total or None)
    text = (ready.message or ready.reason) if ready else "waiting for the controller"
    if text != said and (best is None or not best.bytes_done):
        meter.say(text)
    return text
