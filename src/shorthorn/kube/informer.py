"""A local picture of one resource: list, then watch, for ever.

Owns: keeping the picture true through lost connections, server restarts and expired resource
versions, and telling subscribers which keys changed. Must never: interpret an object. Called by
registries and by the standalone roles.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx2
from lightkube import AsyncClient
from lightkube.core.exceptions import ApiError, ConfigError

log = logging.getLogger(__name__)

_RETRY_S = 0.2
_RETRY_S_MAX = 5.0
_GONE = 410


class Subscription:
    """Keys that changed, each once however often it changed since it was last taken."""

    def __init__(self) -> None:
        self._pending: dict[str, None] = {}
        self._wake = asyncio.Event()

    def put(self, key: str) -> None:
        self._pending[key] = None
        self._wake.set()

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        while not self._pending:
            self._wake.clear()
            await self._wake.wait()
        key = next(iter(self._pending))
        del self._pending[key]
        return key


class Informer:
    """The objects of `resource` in `namespace` (`*`: all), by key `name` or `namespace/name`;
    of them only those that carry all `labels`.
    """

    def __init__(
        self,
        client: AsyncClient,
        resource: Any,
        *,
        namespace: str | None,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        self._client: Any = client
        self._resource = resource
        self._namespace = namespace
        self._options: dict[str, Any] = {} if namespace is None else {"namespace": namespace}
        if labels:
            self._options["labels"] = dict(labels)
        self._problem = ""
        self._objects: dict[str, Mapping[str, Any]] = {}
        self._subscriptions: set[Subscription] = set()
        self._synced = asyncio.Event()

    @property
    def objects(self) -> Mapping[str, Mapping[str, Any]]:
        """The picture as last seen. Callers must not change what they get."""
        return self._objects

    @property
    def problem(self) -> str:
        """What the last list or watch met, in words; empty while all is well."""
        return self._problem

    async def wait_synced(self) -> None:
        """Return once the first list has been read."""
        await self._synced.wait()

    @contextlib.asynccontextmanager
    async def subscribe(self) -> AsyncIterator[Subscription]:
        """Yield a subscription that begins with every key known now."""
        subscription = Subscription()
        self._subscriptions.add(subscription)
        for key in self._objects:
            subscription.put(key)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)

    async def run(self) -> None:
        """Keep the picture until cancelled."""
        delay_s = _RETRY_S
        while True:
            try:
                version = await self._relist()
                delay_s, self._problem = _RETRY_S, ""
                await self._watch(version)
            except (ApiError, httpx2.HTTPError, ConfigError, ValueError) as exc:
                # ValueError: a line that was cut off, or is no JSON. ConfigError: no credentials,
                # as while a token is being replaced.
                if not _is_gone(exc):
                    self._problem = f"{self._resource.__name__}: {exc or type(exc).__name__}"
                    log.warning(
                        "watch of %s broken, again in %.1f s: %r",
                        self._resource.__name__,
                        delay_s,
                        exc,
                    )
                # Also after 410, which a server under load may answer again and again.
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, _RETRY_S_MAX)

    async def _relist(self) -> str:
        listing = self._client.list(self._resource, **self._options)
        objects = {}
        async for obj in listing:
            data = as_mapping(obj)
            objects[self._key(data)] = data
        changed = [key for key, data in objects.items() if self._objects.get(key) != data]
        gone = [key for key in self._objects if key not in objects]
        self._objects = objects
        self._synced.set()
        for key in (*changed, *gone):
            self._notify(key)
        return str(listing.resourceVersion)

    async def _watch(self, version: str) -> None:
        """Follow changes until the server closes the stream in an orderly way."""
        events = self._client.watch(self._resource, resource_version=version, **self._options)
        async with contextlib.aclosing(events):
            async for event, obj in events:
                if event not in ("ADDED", "MODIFIED", "DELETED"):
                    continue
                data = as_mapping(obj)
                key = self._key(data)
                if event == "DELETED":
                    self._objects.pop(key, None)
                else:
                    self._objects[key] = data
                self._notify(key)

    def _key(self, data: Mapping[str, Any]) -> str:
        meta = data["metadata"]
        if self._namespace == "*":
            return f"{meta.get('namespace', '')}/{meta['name']}"
        return str(meta["name"])

    def _notify(self, key: str) -> None:
        for subscription in self._subscriptions:
            subscription.put(key)


def _is_gone(exc: Exception) -> bool:
    """Whether the server says that it has forgotten where the watch was; a new list mends that."""
    return isinstance(exc, ApiError) and exc.status.code == _GONE


def as_mapping(obj: Any) -> Mapping[str, Any]:
    """Return an object of lightkube as plain data: generic resources are mappings already."""
    return obj if isinstance(obj, Mapping) else obj.to_dict()
