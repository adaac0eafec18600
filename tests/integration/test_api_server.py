"""The embedded API server and its file: durability, restarts, refusals, odd clients."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sqlite3
import stat
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from tests.integration.api_writer import TOKEN

from shorthorn.standalone.apiserver import server as api_server
from shorthorn.standalone.apiserver import store
from shorthorn.standalone.apiserver.credentials import ensure_tls, ensure_token
from shorthorn.standalone.apiserver.database_file import SCHEMA_VERSION, StoreRefused
from shorthorn.standalone.apiserver.kinds import load_default_kinds
from shorthorn.standalone.apiserver.kubeconfig import write_kubeconfig
from shorthorn.standalone.apiserver.listening import ListenRefused
from shorthorn.standalone.apiserver.server import ApiServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

DEADLINE_S = 60.0
MAPS = "/api/v1/namespaces/default/configmaps"
KINDS = load_default_kinds()


@dataclass
class Served:
    """A running server and a client of its socket."""

    server: ApiServer
    http: httpx2.AsyncClient

    async def create(self, name: str, **members: Any) -> dict[str, Any]:
        answer = await self.http.post(MAPS, json={"metadata": {"name": name}, **members})
        assert answer.status_code == 201, answer.text
        made: dict[str, Any] = answer.json()
        return made

    async def names(self) -> list[str]:
        items = (await self.http.get(MAPS)).json()["items"]
        return [item["metadata"]["name"] for item in items]

    async def version(self) -> str:
        """Return the current resource version."""
        listed = (await self.http.get(MAPS)).json()
        return str(listed["metadata"]["resourceVersion"])


@contextlib.asynccontextmanager
async def serving(folder: Path, **options: Any) -> AsyncIterator[Served]:
    """Run a server on the database in `folder`."""
    socket = folder / "api.sock"
    server = ApiServer(
        database=folder / "state.db", listen=f"unix:{socket}", token=TOKEN, kinds=KINDS, **options
    )
    await server.start()
    http = httpx2.AsyncClient(
        transport=httpx2.AsyncHTTPTransport(uds=str(socket)),
        base_url=server.url,
        headers={"Authorization": f"Bearer {TOKEN}"},
        timeout=DEADLINE_S,
    )
    try:
        yield Served(server, http)
    finally:
        await http.aclose()
        await server.stop()


@contextlib.asynccontextmanager
async def watch(served: Served, **query: str) -> AsyncIterator[AsyncIterator[str]]:
    """Watch ConfigMaps."""
    query = {"watch": "true", "timeoutSeconds": "60", **query}
    async with served.http.stream("GET", MAPS, params=query) as response:
        yield aiter(response.aiter_lines())


async def next_event(lines: AsyncIterator[str]) -> dict[str, Any]:
    async with asyncio.timeout(DEADLINE_S):
        event: dict[str, Any] = json.loads(await anext(lines))
        return event


async def eventually(holds: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            if holds():
                return
            await asyncio.sleep(0.01)


# ---- Restarts -----------------------------------------------------------------------------------

#: Objects in one list: a table of them takes some 30 ms, other requests 1 ms.
LISTED = 1000


async def test_a_restart_keeps_objects_and_versions_go_on_upward(tmp_path: Path):
    async with serving(tmp_path) as served:
        first = await served.create("first")
        await served.http.delete(f"{MAPS}/first")
        kept = await served.create("kept", data={"a": "b"})
        newest = int(kept["metadata"]["resourceVersion"])
    async with serving(tmp_path) as served:
        assert await served.names() == ["kept"]
        assert (await served.http.get(f"{MAPS}/kept")).json() == kept
        again = await served.create("first")
        assert int(again["metadata"]["resourceVersion"]) > newest
        assert again["metadata"]["uid"] != first["metadata"]["uid"]


async def test_a_watch_from_the_last_version_goes_on_after_a_restart(tmp_path: Path):
    async with serving(tmp_path) as served:
        await served.create("before")
        version = await served.version()
    async with serving(tmp_path) as served, watch(served, resourceVersion=version) as lines:
        await served.create("after")
        event = await next_event(lines)
        assert (event["type"], event["object"]["metadata"]["name"]) == ("ADDED", "after")


async def test_a_watch_from_before_a_restart_is_told_to_list_again(tmp_path: Path):
    async with serving(tmp_path) as served:
        version = await served.version()
        await served.create("missed")
    async with serving(tmp_path) as served, watch(served, resourceVersion=version) as lines:
        event = await next_event(lines)
        assert event["type"] == "ERROR"
        assert (event["object"]["code"], event["object"]["reason"]) == (410, "Expired")
        with pytest.raises(StopAsyncIteration):
            await next_event(lines)


async def test_what_was_acknowledged_survives_kill_9(tmp_path: Path):
    acknowledged: list[str] = []
    for _ in range(2):
        writer = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.integration.api_writer", str(tmp_path)),
            stdout=asyncio.subprocess.PIPE,
        )
        assert writer.stdout is not None
        try:
            async with asyncio.timeout(DEADLINE_S):
                printed = [await writer.stdout.readline() for _ in range(100)]
        finally:
            writer.kill()
            rest, _ = await writer.communicate()
        lines = (b"".join(printed) + rest).decode().split("\n")
        acknowledged += lines[:-1]
        async with serving(tmp_path) as served:
            stored = await served.names()
            assert set(acknowledged) <= set(stored)
            answer = await served.http.request("DELETE", MAPS)
            assert answer.status_code == 200
            acknowledged.clear()


async def test_a_foreground_deletion_cut_off_by_a_crash_ends_at_the_next_start(tmp_path: Path):
    async with serving(tmp_path) as served:
        await served.create("owner")
    with contextlib.closing(sqlite3.connect(tmp_path / "state.db")) as db:
        ((data,),) = db.execute("SELECT data FROM objects WHERE name = 'owner'").fetchall()
        owner = json.loads(data)
        owner["metadata"] |= {
            "deletionTimestamp": "2026-01-01T00:00:00Z",
            "finalizers": ["foregroundDeletion"],
        }
        changed = json.dumps(owner, separators=(",", ":")).encode()
        db.execute("UPDATE objects SET data = ? WHERE name = 'owner'", (changed,))
        db.commit()
    async with serving(tmp_path) as served:
        assert await served.names() == []


async def test_a_dependent_left_by_a_crash_is_collected_at_the_next_start(tmp_path: Path):
    async with serving(tmp_path) as served:
        owner = await served.create("owner")
        reference = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "name": "owner",
            "uid": owner["metadata"]["uid"],
        }
        answer = await served.http.post(
            MAPS, json={"metadata": {"name": "child", "ownerReferences": [reference]}}
        )
        assert answer.status_code == 201
    with contextlib.closing(sqlite3.connect(tmp_path / "state.db")) as db:
        db.execute("DELETE FROM objects WHERE name = 'owner'")
        db.commit()
    async with serving(tmp_path) as served:
        assert await served.names() == []


# ---- The file -----------------------------------------------------------------------------------


async def test_the_database_and_the_socket_are_private(tmp_path: Path):
    async with serving(tmp_path) as served:
        await served.create("one")
        for name in ("state.db", "state.db-wal", "state.db-shm", "api.sock"):
            mode = stat.S_IMODE((tmp_path / name).stat().st_mode)
            assert mode == 0o600, name
    assert not (tmp_path / "api.sock").exists()


async def test_commits_are_synchronous_and_in_wal_mode(tmp_path: Path):
    async with serving(tmp_path):
        pass
    data = store.Store(tmp_path / "state.db")
    data.open(asyncio.get_running_loop())
    try:
        pragmas = await data.write(
            lambda tx: [
                tx._db.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("synchronous", "journal_mode")
            ]
        )
        assert pragmas == [2, "wal"]
    finally:
        await data.close()


@pytest.mark.parametrize("in_log_only", [False, True])
async def test_a_newer_database_is_refused_and_left_untouched(tmp_path: Path, in_log_only: bool):
    async with serving(tmp_path) as served:
        await served.create("one")
    path, wal = tmp_path / "state.db", tmp_path / "state.db-wal"
    newer = sqlite3.connect(path)
    try:
        newer.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
        if in_log_only:
            assert wal.stat().st_size > 0
        else:
            newer.close()
        before = (path.read_bytes(), wal.read_bytes() if wal.exists() else b"")
        with pytest.raises(StoreRefused, match="written by a newer version"):
            async with serving(tmp_path):
                pass
        assert (path.read_bytes(), wal.read_bytes() if wal.exists() else b"") == before
    finally:
        newer.close()


@pytest.mark.parametrize(
    "content",
    [pytest.param(b"not a database", id="text"), pytest.param(None, id="another program's")],
)
async def test_a_foreign_file_is_refused_and_left_untouched(tmp_path: Path, content: bytes | None):
    path = tmp_path / "state.db"
    if content is None:
        with contextlib.closing(sqlite3.connect(path)) as db:
            db.execute("CREATE TABLE objects (a)")
        content = path.read_bytes()
    else:
        path.write_bytes(content)
    with pytest.raises(StoreRefused, match="is not"):
        async with serving(tmp_path):
            pass
    assert path.read_bytes() == content


async def test_a_second_server_on_the_same_database_is_refused(tmp_path: Path):
    async with serving(tmp_path) as served:
        with pytest.raises(StoreRefused, match="another API server"):
            async with serving(tmp_path):
                pass
        await served.create("still-alive")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.root
async def test_a_full_disk_refuses_writes_and_keeps_everything_before(small_disk: Path):
    async with serving(small_disk) as served:
        stored = []
        for number in range(200):
            name = f"m{number:03}"
            body = {"metadata": {"name": name}, "data": {"pad": "x" * 20_000}}
            answer = await served.http.post(MAPS, json=body)
            if answer.status_code != 201:
                break
            stored.append(name)
        assert (answer.status_code, answer.json()["reason"]) == (503, "ServiceUnavailable")
        assert "cannot be written" in answer.json()["message"]
        assert await served.names() == stored
        (small_disk / "api.sock").stat()
    async with serving(small_disk) as served:
        assert await served.names() == stored


# ---- Where it listens ---------------------------------------------------------------------------


async def test_a_taken_port_is_refused_and_leaves_the_database_free(tmp_path: Path):
    tls = ensure_tls(tmp_path / "tls.pem")

    def server(listen: str, name: str) -> ApiServer:
        return ApiServer(database=tmp_path / name, listen=listen, token=TOKEN, kinds=KINDS, tls=tls)

    first = server("127.0.0.1:0", "first.db")
    await first.start()
    try:
        taken = first.url.removeprefix("https://")
        with pytest.raises(ListenRefused, match="cannot listen"):
            await server(taken, "second.db").start()
        second = server("127.0.0.1:0", "second.db")
        await second.start()
        await second.stop()
    finally:
        await first.stop()
        await first.stop()


def test_tcp_without_a_certificate_is_a_mistake(tmp_path: Path):
    with pytest.raises(ValueError, match="certificate"):
        ApiServer(database=tmp_path / "a.db", listen="127.0.0.1:0", token=TOKEN, kinds=KINDS)


def test_a_short_token_is_a_mistake(tmp_path: Path):
    with pytest.raises(ValueError, match="16 characters"):
        ApiServer(
            database=tmp_path / "a.db", listen=f"unix:{tmp_path}/s", token="short", kinds=KINDS
        )


def test_credentials_and_kubeconfig_are_private_and_made_once(tmp_path: Path):
    tls, token = ensure_tls(tmp_path / "tls.pem"), ensure_token(tmp_path / "token")
    assert len(token) >= 32
    assert ensure_tls(tmp_path / "tls.pem") == tls
    assert ensure_token(tmp_path / "token") == token
    previous = os.umask(0)
    try:
        write_kubeconfig(
            tmp_path / "kubeconfig", url="https://h:1", token=token, authority=tls.authority
        )
    finally:
        os.umask(previous)
    for name in ("tls.pem", "token", "kubeconfig"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    config = json.loads((tmp_path / "kubeconfig").read_text())
    assert config["users"][0]["user"]["token"] == token
    assert config["contexts"][0]["context"]["namespace"] == "default"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kubeconfig", "tls.pem", "token"]


@pytest.mark.parametrize("damage", ["", "garbage", "Valid until: 2020-01-01T00:00:00+00:00\n"])
def test_an_unusable_certificate_is_replaced(tmp_path: Path, damage: str):
    path = tmp_path / "tls.pem"
    tls = ensure_tls(path)
    path.write_text(damage + "".join(path.read_text().splitlines(keepends=True)[1:]))
    replaced = ensure_tls(path)
    assert replaced.authority != tls.authority
    replaced.context()


# ---- Clients ------------------------------------------------------------------------------------


async def test_history_is_bounded_by_count(tmp_path: Path):
    async with serving(tmp_path, history_max=5) as served:
        version = await served.version()
        for number in range(8):
            await served.create(f"m{number}")
        async with watch(served, resourceVersion=version) as lines:
            event = await next_event(lines)
            assert (event["type"], event["object"]["code"]) == ("ERROR", 410)


async def test_a_watcher_that_does_not_read_is_cut_off_and_others_are_served(tmp_path: Path):
    async with serving(tmp_path, backlog_max=20) as served:
        hub = served.server._hub
        async with watch(served) as slow, watch(served) as quick:
            await eventually(lambda: hub.watcher_count == 2)
            seen = 0
            pad = "x" * 500_000
            for number in range(40):
                await served.create(f"m{number}", data={"pad": pad})
                await next_event(quick)
                seen += 1
            await eventually(lambda: hub.watcher_count == 1)
            late = [json.loads(line)["object"]["metadata"]["name"] async for line in slow]
            assert late == [f"m{number}" for number in range(len(late))]
            assert len(late) < seen == 40


async def test_watchers_of_vanished_clients_are_forgotten(tmp_path: Path):
    async with serving(tmp_path) as served:
        hub = served.server._hub
        async with watch(served):
            await eventually(lambda: hub.watcher_count == 1)
        await eventually(lambda: hub.watcher_count == 0)


async def test_stopping_ends_open_watches_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(api_server, "_GRACE_S", 240)  # not by its end
    async with serving(tmp_path) as served, watch(served) as lines:
        hub = served.server._hub
        await eventually(lambda: hub.watcher_count == 1)
        async with asyncio.timeout(DEADLINE_S):
            await served.server.stop()
        with pytest.raises(StopAsyncIteration):
            await anext(lines)


async def test_a_hundred_watchers_each_see_every_change(tmp_path: Path):
    async with serving(tmp_path) as served, contextlib.AsyncExitStack() as stack:
        limits = httpx2.Limits(max_connections=200)
        transport = httpx2.AsyncHTTPTransport(uds=str(tmp_path / "api.sock"), limits=limits)
        http = httpx2.AsyncClient(
            transport=transport,
            base_url=served.server.url,
            headers=dict(served.http.headers),
            timeout=DEADLINE_S,
        )
        await stack.enter_async_context(http)
        many = Served(served.server, http)
        watches = [await stack.enter_async_context(watch(many)) for _ in range(100)]
        for number in range(5):
            await served.create(f"m{number}")
        for lines in watches:
            names = [(await next_event(lines))["object"]["metadata"]["name"] for _ in range(5)]
            assert names == [f"m{number}" for number in range(5)]


async def test_long_lists_do_not_hold_up_other_requests(tmp_path: Path):
    async with serving(tmp_path) as served:
        clients = asyncio.Semaphore(16)

        async def create(number: int) -> None:
            async with clients:
                await served.create(f"m{number:04}", data={"pad": "x" * 1000})

        await asyncio.gather(*(create(number) for number in range(LISTED)))
        accept = "application/json;as=Table;v=v1;g=meta.k8s.io"
        listing = asyncio.ensure_future(served.http.get(MAPS, headers={"Accept": accept}))
        answered = 0
        while not listing.done():
            assert (await served.http.get(f"{MAPS}/m0000")).status_code == 200
            answered += 1
        assert len(listing.result().json()["rows"]) == LISTED
        assert answered >= 3, "others are served while the table is being made"
