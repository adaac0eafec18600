"""Registries in memory: `domain.ports.Registry` with the semantics of a Kubernetes API.

Verified by tests/unit/test_services_fakes.py. Objects are stored as given; metadata, generations,
resource versions and finalizers behave as an API server's.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from shorthorn.domain.errors import AlreadyExists, Conflict, NotFound

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

Stored = TypeVar("Stored", bound=Any)


class MemoryRegistry(Generic[Stored]):
    """One kind. `writes` are the calls that changed something, in order, `lists` the selectors of
    all lists. `clock` tells when objects are created.
    """

    def __init__(
        self, kind: type[Stored], *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._kind = kind
        self._clock = clock
        self.lists: list[dict[str, str]] = []
        self._objects: dict[str, Stored] = {}
        self._versions = itertools.count(1)
        self._subscribers: set[_Names] = set()
        self.writes: list[tuple[str, str]] = []

    async def find(self, name: str) -> Stored | None:
        await asyncio.sleep(0)
        return self._objects.get(name)

    async def list(self, *, labels: Mapping[str, str] | None = None) -> Sequence[Stored]:
        await asyncio.sleep(0)
        self.lists.append(dict(labels or {}))
        wanted = (labels or {}).items()
        return [obj for obj in self._objects.values() if wanted <= obj.meta.labels.items()]

    def cached(self) -> Sequence[Stored]:
        return list(self._objects.values())

    def find_cached(self, name: str) -> Stored | None:
        return self._objects.get(name)

    async def create(self, obj: Stored) -> Stored:
        await asyncio.sleep(0)
        name = obj.meta.name
        if name in self._objects:
            raise AlreadyExists(self._kind.__name__, name, "it was there first")
        version = next(self._versions)
        meta = dataclasses.replace(
            obj.meta,
            uid=f"uid-{version}",
            resource_version=str(version),
            generation=1,
            created_at=self._clock(),
        )
        empty = self._kind(meta=meta, spec=obj.spec)
        return self._store("create", empty)

    async def update(self, obj: Stored) -> Stored:
        await asyncio.sleep(0)
        old = self._current(obj)
        changed = old.spec != obj.spec
        meta = dataclasses.replace(
            old.meta,
            resource_version=str(next(self._versions)),
            generation=old.meta.generation + changed,
            finalizers=obj.meta.finalizers,
            labels=obj.meta.labels,
            annotations=obj.meta.annotations,
        )
        new = dataclasses.replace(old, meta=meta, spec=obj.spec)
        if meta.deleting and not meta.finalizers:
            self._remove(meta.name)
            return new
        return self._store("update", new)

    async def update_status(self, obj: Stored) -> Stored:
        await asyncio.sleep(0)
        old = self._current(obj)
        meta = dataclasses.replace(old.meta, resource_version=str(next(self._versions)))
        return self._store("status", dataclasses.replace(old, meta=meta, status=obj.status))

    async def delete(self, name: str, *, uid: str | None = None) -> None:
        await asyncio.sleep(0)
        old = self._objects.get(name)
        if old is None or uid not in (None, old.meta.uid) or old.meta.deleting:
            return
        if not old.meta.finalizers:
            self._remove(name)
            return
        version = str(next(self._versions))
        meta = dataclasses.replace(old.meta, deleting=True, resource_version=version)
        self._store("delete", dataclasses.replace(old, meta=meta))

    async def wait(
        self, name: str, until: Callable[[Stored | None], bool], *, timeout_s: float
    ) -> Stored | None:
        async with asyncio.timeout(timeout_s), self.subscribe() as names:
            if until(self._objects.get(name)):
                return self._objects.get(name)
            async for changed in names:
                if changed == name and until(self._objects.get(name)):
                    break
            return self._objects.get(name)

    @contextlib.asynccontextmanager
    async def subscribe(self) -> AsyncIterator[AsyncIterator[str]]:
        names = _Names(self._objects)
        self._subscribers.add(names)
        try:
            yield names
        finally:
            self._subscribers.discard(names)

    def _current(self, obj: Stored) -> Stored:
        name = obj.meta.name
        old = self._objects.get(name)
        if old is None:
            raise NotFound(self._kind.__name__, name)
        if obj.meta.resource_version != old.meta.resource_version:
            raise Conflict(self._kind.__name__, name)
        return old

    def _store(self, verb: str, obj: Stored) -> Stored:
        self._objects[obj.meta.name] = obj
        self._tell(verb, obj.meta.name)
        return obj

    def _remove(self, name: str) -> None:
        del self._objects[name]
        self._tell("remove", name)

    def _tell(self, verb: str, name: str) -> None:
        self.writes.append((verb, name))
        for names in self._subscribers:
            names.add(name)


class _Names:
    """Names to look at, each at most once at a time."""

    def __init__(self, initial: dict[str, Any]) -> None:
        self._waiting = dict.fromkeys(initial)
        self._some = asyncio.Event()
        self._some.set()

    def add(self, name: str) -> None:
        self._waiting[name] = None
        self._some.set()

    def __aiter__(self) -> _Names:
        return self

    async def __anext__(self) -> str:
        while not self._waiting:
            self._some.clear()
            await self._some.wait()
        name = next(iter(self._waiting))
        del self._waiting[name]
        return name
