"""Waiting until an image is ready, has failed, or is gone.

Owns: when waiting ends and what is shown meanwhile. Must never: change an object. Called by every
command with `--wait`, and by uploads.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from shorthorn.commands.image.cluster import Cluster, Object
from shorthorn.commands.image.progress import Meter, metered
from shorthorn.domain import errors
from shorthorn.domain.models import BackingImage, CopyState
from shorthorn.kube.resources import BACKING_IMAGE

T = TypeVar("T")


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

    async def looked() -> Object:
        said = ""
        async with contextlib.aclosing(cluster.follow_image(name)) as changes:
            async for obj in changes:
                image = _existing(obj, name)
                raise_failure(image)
                if obj is not None and until(image):
                    return obj
                said = await _show(cluster, image, meter, said)
        raise AssertionError("an image is followed for ever")

    return await _in_time(looked(), name, timeout_s)


async def wait_retried(
    cluster: Cluster, before: Object, *, timeout_s: float, quiet: bool = False
) -> Object:
    """Return the image's object once it is ready and no copy has failed, after it was asked for
    anew. Raises: as `wait_ready`; the failure that was there `before` is no answer.
    """
    name, old = before["metadata"]["name"], BACKING_IMAGE.from_object(before).failure

    async def looked(meter: Meter) -> Object:
        said = ""
        async with contextlib.aclosing(cluster.follow_image(name)) as changes:
            async for obj in changes:
                image = _existing(obj, name)
                if image.failure != old:
                    raise_failure(image)
                files = image.status.disk_file_status.values()
                failed = any(file.state is CopyState.FAILED for file in files)
                if obj is not None and image.is_ready and not failed:
                    return obj
                said = await _show(cluster, image, meter, said)
        raise AssertionError("an image is followed for ever")

    with metered(name, quiet=quiet) as meter:
        return await _in_time(looked(meter), name, timeout_s)


async def wait_gone(cluster: Cluster, name: str, *, uid: str, timeout_s: float) -> None:
    """Return once the image of that UID is gone. Raises: Unavailable: not in time."""

    async def looked() -> None:
        async with contextlib.aclosing(cluster.follow_image(name)) as changes:
            async for obj in changes:
                if obj is None or obj["metadata"]["uid"] != uid:
                    return

    await _in_time(looked(), name, timeout_s)


def raise_failure(image: BackingImage) -> None:
    """Raise ImageFailed where the image cannot be made."""
    failure = image.failure
    if failure is not None and not image.is_ready:
        raise errors.ImageFailed(image.meta.name, f"{failure.reason}: {failure.message}")


async def _in_time(looked: Coroutine[Any, Any, T], name: str, timeout_s: float) -> T:
    """Wait for what is looked for. Raises: Unavailable: it does not come in time."""
    try:
        async with asyncio.timeout(timeout_s):
            return await looked
    except TimeoutError:
        raise errors.Unavailable(
            f"backing image {name}", f"not done within {timeout_s:.0f} s"
        ) from None


def _existing(obj: Object | None, name: str) -> BackingImage:
    if obj is None:
        raise errors.NotFound("backing image", name)
    return BACKING_IMAGE.from_object(obj)


async def _show(cluster: Cluster, image: BackingImage, meter: Meter, said: str) -> str:
    """Show how far the copy is that is farthest; return what was said of it."""
    try:
        copies = [c.status for c in await cluster.copies(image.meta.name)]
    except errors.Unavailable:  # whoever follows the image goes on, or gives up
        return said
    best = max(copies, key=lambda c: (c.progress_percent, c.bytes_done), default=None)
    ready = next((c for c in image.status.conditions if c.type == "Ready"), None)
    if best is not None and best.bytes_done:
        meter.moved(best.bytes_done, best.bytes_total or None)
    text = (ready.message or ready.reason) if ready else "waiting for the controller"
    if text != said and (best is None or not best.bytes_done):
        meter.say(text)
    return text
