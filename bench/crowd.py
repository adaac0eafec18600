"""Thousands of backing images that have no bytes.

Owns: making and removing them through the API server. Each is of a kind of source that the
controller refuses for good: such an image costs three writes and no copy, and afterwards nobody
looks at it again. So a row of theirs has a state, a message and a source, but no sizes.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

from bench.watches import Watch, watching
from bench.workspace import BenchFailed
from shorthorn.kube.client import connect
from shorthorn.kube.resources import BACKING_IMAGE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

    from lightkube import AsyncClient

    from bench.workspace import Service

NAMESPACE = "longhorn-system"
IMAGE: Any = BACKING_IMAGE.resource
#: Requests under way at once.
_PARALLEL = 16
_REST_S = 0.5
_REST_TIMEOUT_S = 60.0


@contextlib.asynccontextmanager
async def crowd(service: Service, names: list[str]) -> AsyncIterator[tuple[AsyncClient, Watch]]:
    """Make images, and yield once nothing is left to do for them; remove them at the end.

    The watch also hears of other images of the service. Raises: BenchFailed: it took too long.
    """
    client = connect(service.kubeconfig, namespace=NAMESPACE)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(client.aclose)
        images = await stack.enter_async_context(watching(client, IMAGE, _has_failed))
        await _each(names, lambda name: create(client, name))
        await images.until(lambda: images.reached.keys() >= set(names))
        await _rest(service)
        yield client, images
        await remove(client, images, names)


async def create(client: Any, name: str) -> Any:
    """Make one image; return it as it was stored."""
    image = {
        "apiVersion": BACKING_IMAGE.api_version,
        "kind": BACKING_IMAGE.name,
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "sourceType": "restore",
            "sourceParameters": {"backup-url": f"https://example.org/{name}"},
        },
    }
    return await client.create(IMAGE(image))


async def _rest(service: Service) -> None:
    """Wait until the service does next to nothing: each image's last write is looked at as well."""
    deadline = time.monotonic() + _REST_TIMEOUT_S
    while time.monotonic() < deadline:
        before = service.processor_s()
        await asyncio.sleep(_REST_S)
        if service.processor_s() - before < _REST_S / 10:
            return
    raise BenchFailed(f"the service does not come to rest within {_REST_TIMEOUT_S:.0f} s")


async def remove(client: AsyncClient, images: Watch, names: Iterable[str]) -> None:
    """Delete images and wait until they are gone."""
    gone = set(names)
    await _each(gone, lambda name: client.delete(IMAGE, name))
    await images.until(lambda: not gone & images.seen.keys())


async def _each(names: Iterable[str], do: Callable[[str], Awaitable[Any]]) -> None:
    gate = asyncio.Semaphore(_PARALLEL)

    async def one(name: str) -> None:
        async with gate:
            await do(name)

    await asyncio.gather(*map(one, names))


def _has_failed(image: Any) -> bool:
    conditions = (image.get("status") or {}).get("conditions") or ()
    return any(c["type"] == "Failed" and c["status"] == "True" for c in conditions)
