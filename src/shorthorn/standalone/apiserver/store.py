"""Objects in SQLite: one writer thread, several readers, nothing answered before it is durable.

Owns the file's connections, the threads, commits and the order of changes; `transactions` has what
is stored. Must not know what an object means. Called by the handlers; `watch` is told of what was
committed.

Writes queue up while a commit is being synced and then share the next one (group commit): each runs
in a savepoint, so a failing one takes nothing else with it. Source: sqlite.org/wal.html, pragma
synchronous=FULL.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from shorthorn.standalone.apiserver.database_file import (
    APPLICATION_ID,
    SCHEMA_VERSION,
    is_unfinished,
    lock,
    refuse_foreign,
    uri,
)
from shorthorn.standalone.apiserver.spare_room import SpareRoom
from shorthorn.standalone.apiserver.transactions import (
    TABLES,
    Change,
    Row,
    Snapshot,
    Transaction,
    find_row,
    newest_version,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

#: Writes that may share one commit; bounds how long the first of them waits.
_BATCH_MAX = 64
_READERS = 2


class StoreUnavailable(Exception):
    """A write could not be made durable (disk full, I/O error, closing); nothing of it remains.

    Or the database cannot be opened at all.
    """


@dataclass(slots=True)
class _Write:
    work: Callable[[Transaction], Any]
    future: asyncio.Future[Any] | None
    dry_run: bool = False
    result: Any = None
    error: BaseException | None = None
    changes: list[Change] = field(default_factory=list)


class Store:
    """The database of one server; `open()` and `close()` once, methods for the event loop."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._spare = SpareRoom(path)
        self._queue: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._connections_lock = threading.Lock()
        self._lock_fd: int | None = None
        self._closing = False
        #: Called in the event loop with each batch of committed changes, before their callers go
        #: on.
        self.on_commit: Callable[[list[Change]], None] = lambda changes: None

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """Open or create the database and start the threads.

        Raises: StoreRefused: newer or foreign file, or another process has it; nothing was touched.
                StoreUnavailable: it cannot be opened (disk full, I/O error).
        """
        self._lock_fd = lock(self._path.with_name(self._path.name + ".lock"))
        try:
            refuse_foreign(self._path)
            self._create()
            self._loop_reader = self._connect()
        except BaseException as exc:
            self._close_connections()
            os.close(self._lock_fd)
            if isinstance(exc, sqlite3.Error):
                raise StoreUnavailable(f"{self._path} cannot be opened: {exc}") from exc
            raise
        self._loop = loop
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="api-read")
        self._writer = threading.Thread(target=self._run_writer, name="api-write", daemon=True)
        self._writer.start()

    def _create(self) -> None:
        if is_unfinished(self._path):
            self._make_tables()
        self._uri = uri(self._path)
        self._spare.lend()
        self._write_db = self._connect()
        self._spare.stock(self._write_db)

    def _make_tables(self) -> None:
        """In a connection of its own, WAL last: so the file's own header carries both numbers."""
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        with contextlib.closing(sqlite3.connect(self._path, isolation_level=None)) as db:
            if db.execute("PRAGMA user_version").fetchone()[0] == 0:
                db.executescript(
                    f"BEGIN; {TABLES} PRAGMA application_id = {APPLICATION_ID};"
                    f"PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
                )
            db.execute("PRAGMA journal_mode = WAL").fetchone()

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(
            self._uri, uri=True, isolation_level=None, check_same_thread=False, cached_statements=64
        )
        db.execute("PRAGMA synchronous = FULL")
        with self._connections_lock:
            self._connections.append(db)
        return db

    async def write(self, work: Callable[[Transaction], _T], *, dry_run: bool = False) -> _T:
        """Run `work` in the writer thread and commit; returns when it is durable and published.

        Raises: whatever `work` raises (nothing of it was written); StoreUnavailable.
        State:  a cancelled caller's write still happens, whole or not at all.
        """
        if self._closing:
            raise StoreUnavailable("the API server is shutting down")
        future: asyncio.Future[_T] = self._loop.create_future()
        self._queue.put(_Write(work, future, dry_run))
        return await future

    async def read(self, work: Callable[[Snapshot], _T]) -> _T:
        """Run `work` on a consistent snapshot in a reader thread."""
        return await self._loop.run_in_executor(self._readers, self._read, work)

    def _read(self, work: Callable[[Snapshot], _T]) -> _T:
        db: sqlite3.Connection | None = getattr(self._local, "db", None)
        if db is None:
            db = self._local.db = self._connect()
        db.execute("BEGIN")
        try:
            return work(Snapshot(db))
        finally:
            db.execute("ROLLBACK")

    def find_now(self, resource: str, namespace: str, name: str) -> Row | None:
        """Return one object at once: a point look-up takes tens of µs, a thread hop costs more."""
        return find_row(self._loop_reader, resource, namespace, name)

    def resource_version_now(self) -> int:
        """Return the newest committed resource version."""
        return newest_version(self._loop_reader)

    async def close(self) -> None:
        """Finish what is queued, stop the threads, close the file. May be called twice."""
        if self._closing or self._lock_fd is None:
            return
        self._closing = True
        self._queue.put(None)
        await asyncio.to_thread(self._writer.join)
        await asyncio.to_thread(self._readers.shutdown)
        with self._spare.kept_from_log():
            self._close_connections()
        os.close(self._lock_fd)

    def _close_connections(self) -> None:
        for connection in self._connections:
            connection.close()

    def _run_writer(self) -> None:
        while (first := self._queue.get()) is not None:
            batch, is_last = [first], False
            with contextlib.suppress(queue.Empty):
                while len(batch) < _BATCH_MAX and not is_last:
                    following = self._queue.get_nowait()
                    if following is None:
                        is_last = True
                    else:
                        batch.append(following)
            self._commit(batch)
            self._spare.keep()
            if is_last:
                return

    def _commit(self, batch: list[_Write]) -> None:
        db = self._write_db
        follow_ups: list[Callable[[Transaction], object]] = []
        try:
            db.execute("BEGIN IMMEDIATE")
            version = before = newest_version(db)
            for write in batch:
                version = self._apply(write, version, follow_ups)
            if version != before:
                db.execute("UPDATE counter SET resource_version = ?", (version,))
            db.execute("COMMIT")
        except sqlite3.Error as exc:
            _log.exception("a write to %s failed", self._path)
            with contextlib.suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            for write in batch:
                write.changes = []
                write.error = StoreUnavailable(f"the database cannot be written: {exc}")
        else:
            for work in follow_ups:
                self._queue.put(_Write(work, None))
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._settle, batch)

    def _apply(
        self,
        write: _Write,
        version: int,
        follow_ups: list[Callable[[Transaction], object]],
    ) -> int:
        db = self._write_db
        db.execute("SAVEPOINT write")
        transaction = Transaction(db, version)
        try:
            write.result = write.work(transaction)
        except sqlite3.Error:
            raise
        except Exception as exc:
            write.error = exc
        if write.error is not None or write.dry_run:
            db.execute("ROLLBACK TO write")
            db.execute("RELEASE write")
            return version
        db.execute("RELEASE write")
        write.changes = transaction.changes
        follow_ups.extend(transaction.follow_ups)
        return transaction.resource_version

    def _settle(self, batch: list[_Write]) -> None:
        changes = [change for write in batch for change in write.changes]
        if changes:
            self.on_commit(changes)
        for write in batch:
            if write.future is None:
                if write.error is not None:
                    _log.error("a follow-up write failed", exc_info=write.error)
            elif not write.future.done():
                if write.error is not None:
                    write.future.set_exception(write.error)
                else:
                    write.future.set_result(write.result)
