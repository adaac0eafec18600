"""Registries of our kinds over a Kubernetes API: the implementation of `domain.ports.Registry`.

Owns: create, read, update, delete and wait for one kind in one namespace. Must never: decide
anything about an object. Wired by `daemon`; used by services and controllers through the port.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Generic

from lightkube import AsyncClient
from lightkube.core.exceptions import ApiError

from shorthorn.domain import errors
from shorthorn.domain.names import is_object_name
from shorthorn.kube.client import delete_exactly, domain_errors
from shorthorn.kube.informer import Informer, as_mapping
from shorthorn.kube.resources import Domain, Kind

_CONFLICT = 409


class KubeRegistry(Generic[Domain]):
    """One kind in one namespace. `run` must be running for `cached`, `wait` and `subscribe`, which
    show only objects that carry all labels of `watched`.
    """

    def __init__(
        self,
        client: AsyncClient,
        kind: Kind[Domain],
        *,
        namespace: str,
        watched: Mapping[str, str] | None = None,
    ) -> None:
        self._client: Any = client
        self._kind = kind
        self._namespace = namespace
        self._resource = kind.resource
        self._informer = Informer(client, self._resource, namespace=namespace, labels=watched)
        self._decoded: dict[str, tuple[Mapping[str, Any], Domain]] = {}

    async def run(self) -> None:
        """Keep the cache true until cancelled."""
        await self._informer.run()

    @property
    def problem(self) -> str:
        """Why the cache is not true at the moment, in words; empty while it is."""
        return self._informer.problem

    async def wait_synced(self) -> None:
        await self._informer.wait_synced()

    async def find(self, name: str) -> Domain | None:
        if not is_object_name(name):  # it would be a part of a URL
            return None
        try:
            with domain_errors(self._kind.name, name):
                found = await self._client.get(self._resource, name, namespace=self._namespace)
        except errors.NotFound:
            return None
        return self._kind.from_object(as_mapping(found))

    async def list(self, *, labels: Mapping[str, str] | None = None) -> Sequence[Domain]:
        selection = {"labels": dict(labels)} if labels else {}
        with domain_errors(self._kind.name, "list"):
            listing = self._client.list(self._resource, namespace=self._namespace, **selection)
            return [self._kind.from_object(as_mapping(obj)) async for obj in listing]

    def cached(self) -> Sequence[Domain]:
        shown = self._informer.objects
        for name in self._decoded.keys() - shown.keys():
            del self._decoded[name]
        return [self._decode_once(name, data) for name, data in shown.items()]

    def find_cached(self, name: str) -> Domain | None:
        data = self._informer.objects.get(name)
        return None if data is None else self._decode_once(name, data)

    def _decode_once(self, name: str, data: Mapping[str, Any]) -> Domain:
        """Decode an object when it changed, not whenever all are asked for."""
        known = self._decoded.get(name)
        if known is None or known[0] is not data:
            known = self._decoded[name] = (data, self._kind.from_object(data))
        return known[1]

    async def create(self, obj: Domain) -> Domain:
        body = self._resource(self._kind.to_object(obj))
        body.pop("status", None)
        with domain_errors(self._kind.name, obj.meta.name):
            created = await self._client.create(body, namespace=self._namespace)
        return self._kind.from_object(as_mapping(created))

    async def update(self, obj: Domain) -> Domain:
        body = self._resource(self._kind.to_object(obj))
        with domain_errors(self._kind.name, obj.meta.name):
            updated = await self._client.replace(body, obj.meta.name, namespace=self._namespace)
        return self._kind.from_object(as_mapping(updated))

    async def update_status(self, obj: Domain) -> Domain:
        body = self._resource.Status(self._kind.to_object(obj))
        with domain_errors(self._kind.name, obj.meta.name):
            updated = await self._client.replace(body, obj.meta.name, namespace=self._namespace)
        return self._kind.from_object(as_mapping(updated))

    async def delete(self, name: str, *, uid: str | None = None) -> None:
        with contextlib.suppress(errors.NotFound), domain_errors(self._kind.name, name):
            if uid is None:
                await self._client.delete(self._resource, name, namespace=self._namespace)
            else:
                await self._delete_exactly(name, uid)

    async def _delete_exactly(self, name: str, uid: str) -> None:
        try:
            await delete_exactly(
                self._client, self._resource, name, namespace=self._namespace, uid=uid
            )
        except ApiError as exc:
            # The number alone may also mean that somebody wrote at the same moment.
            if exc.status.code != _CONFLICT or "UID" not in (exc.status.message or ""):
                raise

    async def wait(
        self, name: str, until: Callable[[Domain | None], bool], *, timeout_s: float
    ) -> Domain | None:
        async with asyncio.timeout(timeout_s), self._informer.subscribe() as keys:
            current = await self.find(name)
            while not until(current):
                async for key in keys:
                    if key == name:
                        break
                current = await self._newer(name, current)
            return current

    async def _newer(self, name: str, seen: Domain | None) -> Domain | None:
        """Return what the watch shows, unless it lags behind what was read directly: it may not
        know yet that a predecessor of the same name has gone, or only just hear of that.

        Resource versions are compared as numbers, which etcd's and ours are, over all objects of a
        kind; others are taken as they come.
        """
        data = self._informer.objects.get(name)
        if data is None:
            return await self.find(name)
        shown = self._kind.from_object(data)
        if seen is None:
            return shown
        versions = (seen.meta.resource_version, shown.meta.resource_version)
        if all(version.isdecimal() for version in versions) and int(versions[0]) > int(versions[1]):
            return seen
        return shown

    @contextlib.asynccontextmanager
    async def subscribe(self) -> AsyncIterator[AsyncIterator[str]]:
        async with self._informer.subscribe() as keys:
            yield keys
