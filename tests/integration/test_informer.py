"""The local picture stays true whatever happens between it and a real embedded API server."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import ssl
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from tests.integration.cluster import free_port

from shorthorn.domain.errors import AlreadyExists, Conflict, InvalidArgument, NotFound, Unavailable
from shorthorn.domain.models import Meta, Snapshot, SnapshotSpec, SnapshotStatus, VolumeState
from shorthorn.kube.client import connect
from shorthorn.kube.registry import KubeRegistry
from shorthorn.kube.resources import SNAPSHOT
from shorthorn.standalone.apiserver.credentials import ensure_tls, ensure_token
from shorthorn.standalone.apiserver.kinds import load_default_kinds
from shorthorn.standalone.apiserver.kubeconfig import write_kubeconfig
from shorthorn.standalone.apiserver.server import ApiServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from lightkube import AsyncClient

SPEC = SnapshotSpec("snapshot-1", "pvc-1", "node-a", "pool")
NAMESPACE = "longhorn-system"
#: Nothing here needs it; a loaded machine may.
PATIENCE_S = 60.0
KINDS = load_default_kinds()


class Server:
    """An API server that can go and come back on the same port, with a client that stays."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tls = ensure_tls(folder / "tls.pem")
        self.authority = self._tls.authority
        self._token = ensure_token(folder / "token")
        self._server: ApiServer | None = None
        self._port = free_port()
        self.kubeconfig = folder / "kubeconfig"

    async def start(self, **limits: int) -> None:
        self._server = ApiServer(
            database=self._folder / "state.db",
            listen=f"127.0.0.1:{self._port}",
            token=self._token,
            kinds=KINDS,
            tls=self._tls,
            **limits,  # type: ignore[arg-type]
        )
        await self._server.start()
        write_kubeconfig(
            self.kubeconfig,
            url=self._server.url,
            token=self._token,
            authority=self.authority,
        )

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop()
            self._server = None


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    made = Server(tmp_path)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


@pytest.fixture
async def client(server: Server) -> AsyncIterator[AsyncClient]:
    made = connect(server.kubeconfig, namespace=NAMESPACE)
    yield made
    await made.aclose()


@contextlib.asynccontextmanager
async def running(client: AsyncClient) -> AsyncIterator[KubeRegistry[Snapshot]]:
    registry = KubeRegistry(client, SNAPSHOT, namespace=NAMESPACE)
    task = asyncio.create_task(registry.run())
    try:
        async with asyncio.timeout(PATIENCE_S):
            await registry.wait_synced()
        yield registry
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.wait([task])


def named(name: str, *finalizers: str) -> Snapshot:
    return Snapshot(Meta(name, finalizers=finalizers), SPEC)


async def shows(registry: KubeRegistry[Snapshot], *names: str) -> None:
    """Return when the picture holds exactly these names."""
    async with asyncio.timeout(PATIENCE_S), registry.subscribe() as changed:
        while {obj.meta.name for obj in registry.cached()} != set(names):
            await anext(changed)


async def eventually(holds: Callable[[], bool]) -> None:
    """Return when a condition holds."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            if holds():
                return
            await asyncio.sleep(0.01)


async def test_the_picture_follows_what_others_do(client: AsyncClient) -> None:
    await KubeRegistry(client, SNAPSHOT, namespace=NAMESPACE).create(named("early"))
    async with running(client) as registry:
        await shows(registry, "early")
        await registry.create(named("late"))
        await shows(registry, "early", "late")
        await registry.delete("early")
        await shows(registry, "late")


async def test_a_deletion_by_uid_spares_what_was_made_under_the_name_meanwhile(
    client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = KubeRegistry(client, SNAPSHOT, namespace=NAMESPACE)
    old = await registry.create(named("golden"))
    await registry.delete("golden", uid=old.meta.uid)
    new = await registry.create(named("golden"))
    # Who looks first sees what was there a moment ago.
    monkeypatch.setattr(registry, "find", lambda name: asyncio.sleep(0, old))
    await registry.delete("golden", uid=old.meta.uid)
    monkeypatch.undo()
    assert await registry.find("golden") == new
    await registry.delete("golden", uid=new.meta.uid)
    assert await registry.find("golden") is None
    await registry.delete("golden", uid=new.meta.uid)


async def test_only_what_carries_the_labels_is_watched_and_all_can_be_listed(
    client: AsyncClient,
) -> None:
    registry = KubeRegistry(client, SNAPSHOT, namespace=NAMESPACE, watched={"node": "a"})
    task = asyncio.create_task(registry.run())
    try:
        for name, node in (("mine", "a"), ("others", "b"), ("late", "a")):
            await registry.create(Snapshot(Meta(name, labels={"node": node}), SPEC))
        await shows(registry, "mine", "late")
        assert len(await registry.list()) == 3
        assert [obj.meta.name for obj in await registry.list(labels={"node": "b"})] == ["others"]
        assert registry.problem == ""
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_a_watch_says_what_it_meets(server: Server, client: AsyncClient) -> None:
    async with running(client) as registry:
        await server.stop()
        await eventually(lambda: "Snapshot: " in registry.problem)
        await server.start()
        await eventually(lambda: not registry.problem)


async def test_a_subscriber_hears_of_what_is_there_and_of_bursts_once(client: AsyncClient) -> None:
    async with running(client) as registry:
        made = await registry.create(named("a"))
        await shows(registry, "a")
        async with registry.subscribe() as changed:
            assert await anext(changed) == "a"
            for number in range(5):
                status = SnapshotStatus(message=str(number))
                made = await registry.update_status(dataclasses.replace(made, status=status))
            await registry.create(named("b"))
            await shows(registry, "a", "b")
            assert [await anext(changed), await anext(changed)] == ["a", "b"]
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await anext(changed)


async def test_a_restart_of_the_server_is_survived(server: Server, client: AsyncClient) -> None:
    async with running(client) as registry:
        await registry.create(named("a"))
        await registry.create(named("b"))
        await shows(registry, "a", "b")
        await server.stop()
        with pytest.raises(Unavailable):
            await registry.find("a")
        assert len(registry.cached()) == 2
        await server.start()
        await registry.delete("a")
        await registry.create(named("c"))
        await shows(registry, "b", "c")


async def test_what_happened_while_nobody_watched_is_heard_of(
    server: Server, client: AsyncClient
) -> None:
    """The restarted server has forgotten the versions in between and answers 410."""
    async with running(client) as registry:
        await registry.create(named("goes"))
        await registry.create(named("stays"))
        await shows(registry, "goes", "stays")
        async with registry.subscribe() as changed:
            assert {await anext(changed), await anext(changed)} == {"goes", "stays"}
            await server.stop()
            await server.start()
            other = connect(server.kubeconfig, namespace=NAMESPACE)
            try:
                elsewhere = KubeRegistry(other, SNAPSHOT, namespace=NAMESPACE)
                await elsewhere.delete("goes")
                await elsewhere.create(named("comes"))
            finally:
                await other.aclose()
            await shows(registry, "stays", "comes")
            async with asyncio.timeout(PATIENCE_S):
                assert {await anext(changed), await anext(changed)} == {"goes", "comes"}


async def test_a_picture_that_fell_behind_catches_up(tmp_path: Path) -> None:
    server = Server(tmp_path)
    await server.start(history_max=4, backlog_max=2)
    client = connect(server.kubeconfig, namespace=NAMESPACE)
    try:
        async with running(client) as registry:
            names = [f"n{number}" for number in range(60)]
            await asyncio.gather(*(registry.create(named(name)) for name in names))
            await shows(registry, *names)
    finally:
        await client.aclose()
        await server.stop()


class Unruly(httpx2.AsyncBaseTransport):
    """A way to the server on which the first watches come to a bad end."""

    def __init__(self, real: httpx2.AsyncBaseTransport, *ends: httpx2.Response) -> None:
        self._real = real
        self._ends = list(ends)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if "watch" in request.url.params and self._ends:
            return self._ends.pop(0)
        return await self._real.handle_async_request(request)

    async def aclose(self) -> None:
        await self._real.aclose()


@pytest.mark.parametrize(
    "end",
    [
        pytest.param(lambda: httpx2.Response(200, content=b'{"type":"ADDED","obj'), id="cut off"),
        pytest.param(lambda: httpx2.Response(200, content=b"<html>\n"), id="no JSON"),
        pytest.param(lambda: httpx2.Response(200, content=error(410)), id="expired"),
        pytest.param(lambda: httpx2.Response(200, content=error(500)), id="error"),
        pytest.param(lambda: httpx2.Response(503), id="unavailable"),
    ],
)
async def test_a_watch_that_ends_badly_is_begun_again(
    server: Server, end: Callable[[], httpx2.Response]
) -> None:
    context = ssl.create_default_context(cadata=server.authority)
    unruly = Unruly(httpx2.AsyncHTTPTransport(verify=context), end(), end())
    client = connect(server.kubeconfig, namespace=NAMESPACE, transport=unruly)
    try:
        async with running(client) as registry:
            await registry.create(named("a"))
            await shows(registry, "a")
    finally:
        await client.aclose()


def error(code: int) -> bytes:
    status: dict[str, Any] = {"kind": "Status", "apiVersion": "v1", "code": code, "message": "no"}
    return json.dumps({"type": "ERROR", "object": status}).encode() + b"\n"


async def test_waiting_sees_the_present_state_and_every_change(client: AsyncClient) -> None:
    async with running(client) as registry:
        made = await registry.create(named("a", "shorthorn.io/data"))
        found = await registry.wait("a", lambda obj: obj is not None, timeout_s=PATIENCE_S)
        assert found == made
        waiting = asyncio.create_task(
            registry.wait(
                "a",
                lambda obj: obj is not None and obj.status.state is VolumeState.READY,
                timeout_s=PATIENCE_S,
            )
        )
        await asyncio.sleep(0)
        ready = SnapshotStatus(VolumeState.READY)
        await registry.update_status(dataclasses.replace(made, status=ready))
        found = await waiting
        assert found is not None
        assert found.status == ready
        gone = asyncio.create_task(
            registry.wait("a", lambda obj: obj is None, timeout_s=PATIENCE_S)
        )
        await registry.delete("a")
        marked = await registry.find("a")
        assert marked is not None
        assert marked.meta.deleting
        released = dataclasses.replace(marked.meta, finalizers=())
        await registry.update(dataclasses.replace(marked, meta=released))
        assert await gone is None
        with pytest.raises(TimeoutError):
            await registry.wait("a", lambda obj: obj is not None, timeout_s=0.05)


async def test_a_watch_that_lags_does_not_bring_back_the_past(client: AsyncClient) -> None:
    """Neither a predecessor of the same name nor its deletion is taken for the new object."""
    async with running(client) as registry:
        old = await registry.create(named("a"))
        await shows(registry, "a")
    other = KubeRegistry(client, SNAPSHOT, namespace=NAMESPACE)
    await other.delete("a")
    new = await other.create(named("a"))
    assert [obj.meta.uid for obj in registry.cached()] == [old.meta.uid]
    seen: list[str | None] = []
    looked = asyncio.Event()

    def until(obj: Snapshot | None) -> bool:
        seen.append(obj.meta.uid if obj else None)
        looked.set()
        return False

    waiting = asyncio.create_task(registry.wait("a", until, timeout_s=PATIENCE_S))
    await asyncio.wait_for(looked.wait(), PATIENCE_S)
    waiting.cancel()
    assert set(seen) == {new.meta.uid}
    registry._informer._objects.clear()  # the deletion arrives
    seen.clear()
    looked.clear()
    waiting = asyncio.create_task(registry.wait("a", until, timeout_s=PATIENCE_S))
    await asyncio.wait_for(looked.wait(), PATIENCE_S)
    looked.clear()
    registry._informer._notify("a")
    await asyncio.wait_for(looked.wait(), PATIENCE_S)
    waiting.cancel()
    assert len(seen) >= 2
    assert set(seen) == {new.meta.uid}


async def test_refusals_become_domain_errors(client: AsyncClient) -> None:
    registry = KubeRegistry(client, SNAPSHOT, namespace=NAMESPACE)
    made = await registry.create(named("a"))
    with pytest.raises(AlreadyExists):
        await registry.create(named("a"))
    await registry.update_status(
        dataclasses.replace(made, status=SnapshotStatus(VolumeState.READY))
    )
    with pytest.raises(Conflict):
        await registry.update_status(dataclasses.replace(made, status=SnapshotStatus()))
    with pytest.raises(NotFound):
        await registry.update_status(dataclasses.replace(made, meta=Meta("b", uid=made.meta.uid)))
    with pytest.raises(InvalidArgument):
        await registry.create(named("Not a name"))
    assert await registry.find("b") is None
    await registry.delete("b")
    await registry.delete("a", uid="another")
    assert await registry.find("a") is not None
    await registry.delete("a", uid=made.meta.uid)
    assert await registry.find("a") is None
