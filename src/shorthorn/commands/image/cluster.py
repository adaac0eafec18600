"""The Kubernetes objects that `shorthorn image` reads and writes.

Owns: the requests, in plain dictionaries as the server sent them, and how a command ends when one
is refused. Must never: decide what is written, or print anything but a refusal. Called by the
commands beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final, TypeVar

import httpx2
import typer
from lightkube import AsyncClient
from lightkube.core.exceptions import ApiError
from lightkube.operators import exists
from lightkube.types import PatchType

from shorthorn.commands.image.options import Place
from shorthorn.commands.serving import refuse
from shorthorn.domain import errors
from shorthorn.domain.labels import image_selector
from shorthorn.domain.models import ImageCopy, Pool, Volume
from shorthorn.kube.client import connect, domain_errors
from shorthorn.kube.generic import resource_class
from shorthorn.kube.informer import as_mapping
from shorthorn.kube.resources import BACKING_IMAGE, IMAGE_COPY, POOL, VOLUME, Kind

Object = dict[str, Any]
"""One Kubernetes object as JSON."""

T = TypeVar("T")

_SNAPSHOT_API: Final = "snapshot.storage.k8s.io/v1"
CLAIM: Any = resource_class(
    "v1", "PersistentVolumeClaim", "persistentvolumeclaims", is_namespaced=True
)
PERSISTENT_VOLUME: Any = resource_class(
    "v1", "PersistentVolume", "persistentvolumes", is_namespaced=False
)
VOLUME_SNAPSHOT: Any = resource_class(
    _SNAPSHOT_API, "VolumeSnapshot", "volumesnapshots", is_namespaced=True
)
CONTENT: Any = resource_class(
    _SNAPSHOT_API, "VolumeSnapshotContent", "volumesnapshotcontents", is_namespaced=False
)

_REFUSED = (401, 403)
_SIGPIPE_EXIT: Final = 128 + signal.SIGPIPE
_RETRY_S: Final = 0.3
_AWAY_S: Final = 60.0
"""A server that does not answer for so long will not soon (a restart takes a few seconds)."""


class Cluster:
    """One API server and the namespace of its backing images."""

    def __init__(self, client: AsyncClient, namespace: str) -> None:
        self._client: Any = client
        self.namespace = namespace

    # --- backing images

    async def find_image(self, name: str) -> Object | None:
        """Return the BackingImage, None where there is none."""
        try:
            with domain_errors("backing image", name):
                found = await self._client.get(
                    BACKING_IMAGE.resource, name, namespace=self.namespace
                )
        except errors.NotFound:
            return None
        return dict(as_mapping(found))

    async def image(self, name: str) -> Object:
        """Return the BackingImage. Raises: NotFound."""
        found = await self.find_image(name)
        if found is None:
            raise errors.NotFound("backing image", name)
        return found

    async def images(self, selector: str = "") -> list[Object]:
        """Return all BackingImages, or those that a label selector selects."""
        return await self._list(BACKING_IMAGE.resource, self.namespace, selector)

    async def create_image(self, obj: Object) -> Object:
        """Store a new BackingImage. Raises: AlreadyExists, InvalidArgument."""
        name = obj["metadata"]["name"]
        with domain_errors("backing image", name):
            body = BACKING_IMAGE.resource(obj)
            created = await self._client.create(body, namespace=self.namespace)
        return dict(as_mapping(created))

    async def annotate_image(self, name: str, annotations: Mapping[str, str]) -> Object:
        """Set annotations. Raises: NotFound."""
        patch = {"metadata": {"annotations": dict(annotations)}}
        with domain_errors("backing image", name):
            patched = await self._client.patch(
                BACKING_IMAGE.resource,
                name,
                patch,
                patch_type=PatchType.MERGE,
                namespace=self.namespace,
            )
        return dict(as_mapping(patched))

    async def delete_image(self, name: str) -> None:
        """Ask for deletion. Raises: NotFound."""
        with domain_errors("backing image", name):
            await self._client.delete(BACKING_IMAGE.resource, name, namespace=self.namespace)

    async def follow_image(self, name: str) -> AsyncGenerator[Object | None, None]:
        """Yield the BackingImage as it is now and after every change; None while there is none.

        Goes on over lost connections. Raises: Unavailable: the server is away for a minute.
        """
        async with contextlib.aclosing(self.follow(fields={"metadata.name": name})) as listings:
            async for listing in listings:
                yield listing.get(name)

    async def follow(
        self, *, selector: str = "", fields: Mapping[str, str] | None = None
    ) -> AsyncGenerator[dict[str, Object], None]:
        """Yield the BackingImages by name, as they are now and after every change."""
        loop = asyncio.get_running_loop()
        heard_at = loop.time()
        while True:
            try:
                async with contextlib.aclosing(self._follow_once(selector, fields)) as listings:
                    async for shown in listings:
                        heard_at = loop.time()
                        yield shown
                heard_at = loop.time()
            except (ApiError, httpx2.HTTPError, ValueError) as exc:
                if isinstance(exc, ApiError) and exc.status.code in _REFUSED:
                    with domain_errors("backing image", "list"):
                        raise
                if loop.time() - heard_at > _AWAY_S:
                    raise errors.Unavailable("API server", f"{type(exc).__name__} {exc}") from exc
                await asyncio.sleep(_RETRY_S)

    async def _follow_once(
        self, selector: str, fields: Mapping[str, str] | None
    ) -> AsyncGenerator[dict[str, Object], None]:
        options: dict[str, Any] = {"namespace": self.namespace}
        options |= _selection(selector) | ({"fields": dict(fields)} if fields else {})
        listing = self._client.list(BACKING_IMAGE.resource, **options)
        shown = {obj["metadata"]["name"]: dict(as_mapping(obj)) async for obj in listing}
        yield dict(shown)
        events = self._client.watch(
            BACKING_IMAGE.resource, resource_version=listing.resourceVersion, **options
        )
        async with contextlib.aclosing(events):
            async for event, obj in events:
                name = obj["metadata"]["name"]
                if event == "DELETED":
                    shown.pop(name, None)
                else:
                    shown[name] = dict(as_mapping(obj))
                yield dict(shown)

    # --- what belongs to them

    async def copies(self, image: str = "") -> list[ImageCopy]:
        """Return the ImageCopies of one image, or all; none where they may not be seen."""
        selector = ",".join(f"{k}={v}" for k, v in image_selector(image).items()) if image else ""
        copies = await self._ours(IMAGE_COPY, selector)
        return [c for c in copies if not image or c.spec.image == image]

    async def volumes_from(self, image: str) -> list[Volume]:
        """Return the Volumes that were cloned from an image."""
        return [v for v in await self._ours(VOLUME) if v.spec.source.image == image]

    async def pools(self) -> list[Pool]:
        return await self._ours(POOL)

    async def find(self, resource: Any, name: str, *, namespace: str | None = None) -> Object:
        """Return one of Kubernetes' own objects. Raises: NotFound."""
        place = {} if namespace is None else {"namespace": namespace}
        kind = str(resource._api_info.resource.kind)
        with domain_errors(kind, name):
            return dict(as_mapping(await self._client.get(resource, name, **place)))

    async def everywhere(self, resource: Any, *, is_namespaced: bool) -> list[Object] | None:
        """Return all objects of a resource; None: the user may not list it, or nobody serves it."""
        try:
            place = {"namespace": "*"} if is_namespaced else {}
            listing = self._client.list(resource, **place)
            return [dict(as_mapping(obj)) async for obj in listing]
        except ApiError as exc:
            if exc.status.code in (*_REFUSED, 404):
                return None
            with domain_errors(str(resource._api_info.resource.kind), "list"):
                raise
        except httpx2.HTTPError:
            with domain_errors("", "list"):
                raise

    async def _ours(self, kind: Kind[Any], selector: str = "") -> list[Any]:
        try:
            listing = self._client.list(
                kind.resource, namespace=self.namespace, **_selection(selector)
            )
            return [kind.from_object(as_mapping(obj)) async for obj in listing]
        except ApiError as exc:
            if exc.status.code in _REFUSED:  # users may well see the images alone
                return []
            with domain_errors(kind.name, "list"):
                raise
        except httpx2.HTTPError:
            with domain_errors(kind.name, "list"):
                raise

    async def _list(self, resource: Any, namespace: str, selector: str) -> list[Object]:
        with domain_errors("backing image", "list"):
            listing = self._client.list(resource, namespace=namespace, **_selection(selector))
            return [dict(as_mapping(obj)) async for obj in listing]


@contextlib.asynccontextmanager
async def open_cluster(place: Place) -> AsyncIterator[Cluster]:
    """Yield the cluster of a place. Raises: InvalidArgument: there is no usable kubeconfig."""
    if not place.kubeconfig.exists():
        raise errors.InvalidArgument(
            "kubeconfig",
            f"there is no {place.kubeconfig}; give --kubeconfig or --data-dir, or start a host of "
            "your own with `shorthorn up`",
        )
    client = connect(place.kubeconfig, namespace=place.namespace)
    try:
        yield Cluster(client, place.namespace)
    finally:
        await client.aclose()


def run(
    place: Place, work: Callable[[Cluster], Awaitable[T]], *, interrupted: str = "interrupted"
) -> T:
    """Do the work of a command. What is refused ends it with exit code 1 and one line; a standard
    output that nobody reads any more (`| head -1`) without a word, as if by SIGPIPE.

    Args: interrupted: what a user is told who presses Ctrl-C.
    """

    async def working() -> T:
        async with open_cluster(place) as cluster:
            return await work(cluster)

    try:
        return asyncio.run(working())
    except errors.DomainError as exc:
        refuse(str(exc))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        raise typer.Exit(_SIGPIPE_EXIT) from None
    except PermissionError as exc:
        refuse(f"{exc.strerror}: {exc.filename}; run it as root, or give --kubeconfig")
    except OSError as exc:
        refuse(f"{exc.filename}: {exc.strerror}" if exc.filename else str(exc))
    except KeyboardInterrupt:
        typer.echo(f"\nshorthorn: {interrupted}", err=True)
        raise typer.Exit(130) from None


def _selection(selector: str) -> dict[str, Any]:
    """Return lightkube's `labels` for a selector as kubectl takes it, passed on verbatim."""
    return {"labels": {selector: exists()}} if selector else {}
