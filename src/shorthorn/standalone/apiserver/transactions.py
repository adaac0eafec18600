"""The tables of the store, and the transactions in which they are written and read.

Owns every SQL statement about objects, and the form of a stored object and of a change. It stores
bytes by resource, namespace and name and must not know what an object means, nor begin or end a
transaction (`store` does). `registry`, `deletion` and the handlers work through `Transaction` and
`Snapshot`; `watch` passes on `Change`s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterator

TABLES = """
CREATE TABLE counter (id INTEGER PRIMARY KEY CHECK (id = 1), resource_version INTEGER NOT NULL);
INSERT INTO counter VALUES (1, 1);
CREATE TABLE objects (
  resource TEXT NOT NULL,
  namespace TEXT NOT NULL,
  name TEXT NOT NULL,
  uid TEXT NOT NULL UNIQUE,
  resource_version INTEGER NOT NULL,
  data BLOB NOT NULL,
  UNIQUE (resource, namespace, name)
);
CREATE INDEX objects_by_namespace ON objects (namespace);
CREATE TABLE owners (
  owner_uid TEXT NOT NULL,
  dependent_uid TEXT NOT NULL,
  PRIMARY KEY (owner_uid, dependent_uid)
) WITHOUT ROWID;
CREATE INDEX owners_by_dependent ON owners (dependent_uid);
"""
_COLUMNS = "resource, namespace, name, uid, resource_version, data"


@dataclass(frozen=True, slots=True)
class Row:
    """One stored object; `data` is its JSON, `apiVersion` and `kind` first."""

    resource: str
    namespace: str
    name: str
    uid: str
    resource_version: int
    data: bytes

    def decode(self) -> dict[str, Any]:
        """Return the object; the caller may change it."""
        decoded: dict[str, Any] = msgspec.json.decode(self.data)
        return decoded


@dataclass(frozen=True, slots=True)
class Change:
    """One committed change; for a removal `data` is the last state with the removal's version."""

    resource_version: int
    type: str  # ADDED, MODIFIED or DELETED
    resource: str
    namespace: str
    name: str
    data: bytes
    previous: bytes | None


def encode(obj: dict[str, Any]) -> bytes:
    """Write an object with `apiVersion` and `kind` first, so that a version is a byte prefix."""
    head = {"apiVersion": obj["apiVersion"], "kind": obj["kind"]}
    return msgspec.json.encode(head | obj)


class Transaction:
    """What one write sees and does; lives in the writer thread for the length of one call."""

    def __init__(self, connection: sqlite3.Connection, resource_version: int) -> None:
        self._db = connection
        self.resource_version = resource_version
        self.changes: list[Change] = []
        self.follow_ups: list[Callable[[Transaction], object]] = []

    def find(self, resource: str, namespace: str, name: str) -> Row | None:
        """Return the object or None."""
        return find_row(self._db, resource, namespace, name)

    def find_by_uid(self, uid: str) -> Row | None:
        """Return the object with that uid or None."""
        return _one(self._db, f"SELECT {_COLUMNS} FROM objects WHERE uid = ?", (uid,))

    def list_resource(self, resource: str) -> list[Row]:
        """Return all objects of one resource."""
        sql = f"SELECT {_COLUMNS} FROM objects WHERE resource = ? ORDER BY namespace, name"
        return [Row(*row) for row in self._db.execute(sql, (resource,))]

    def list_namespace(self, namespace: str) -> list[Row]:
        """Return everything that lives in `namespace`."""
        sql = f"SELECT {_COLUMNS} FROM objects WHERE namespace = ?"
        return [Row(*row) for row in self._db.execute(sql, (namespace,))]

    def is_namespace_empty(self, namespace: str) -> bool:
        """Whether nothing lives in `namespace`."""
        sql = "SELECT 1 FROM objects WHERE namespace = ? LIMIT 1"
        return self._db.execute(sql, (namespace,)).fetchone() is None

    def list_dependents(self, uid: str) -> list[Row]:
        """Return the objects that name `uid` among their owners."""
        sql = (
            f"SELECT {_COLUMNS} FROM objects WHERE uid IN "
            "(SELECT dependent_uid FROM owners WHERE owner_uid = ?)"
        )
        return [Row(*row) for row in self._db.execute(sql, (uid,))]

    def list_orphans(self) -> list[str]:
        """Return the uids of objects that name an owner which is not there."""
        sql = (
            "SELECT DISTINCT dependent_uid FROM owners "
            "WHERE owner_uid NOT IN (SELECT uid FROM objects)"
        )
        return [uid for (uid,) in self._db.execute(sql)]

    def list_mentioning(self, text: str) -> list[str]:
        """Return the uids of objects whose JSON has this text; reads everything."""
        sql = "SELECT uid FROM objects WHERE instr(data, CAST(? AS BLOB))"
        return [uid for (uid,) in self._db.execute(sql, (text,))]

    def put(self, resource: str, obj: dict[str, Any], previous: Row | None) -> Row:
        """Insert or replace an object; gives it the next resource version (in `obj` too)."""
        metadata = obj["metadata"]
        self.resource_version += 1
        metadata["resourceVersion"] = str(self.resource_version)
        data = encode(obj)
        key = (resource, metadata.get("namespace", ""), metadata["name"])
        row = Row(*key, metadata["uid"], self.resource_version, data)
        if previous is None:
            sql = f"INSERT INTO objects ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)"
            self._db.execute(sql, (*key, row.uid, row.resource_version, data))
        else:
            sql = "UPDATE objects SET resource_version = ?, data = ? WHERE uid = ?"
            self._db.execute(sql, (row.resource_version, data, row.uid))
        self._index_owners(row.uid, metadata.get("ownerReferences", ()), previous)
        kind = "ADDED" if previous is None else "MODIFIED"
        old = None if previous is None else previous.data
        self.changes.append(Change(self.resource_version, kind, *key, data, old))
        return row

    def _index_owners(self, uid: str, owners: Any, previous: Row | None) -> None:
        if previous is not None:
            self._db.execute("DELETE FROM owners WHERE dependent_uid = ?", (uid,))
        for owner in owners:
            self._db.execute("INSERT OR IGNORE INTO owners VALUES (?, ?)", (owner["uid"], uid))

    def remove(self, row: Row, obj: dict[str, Any]) -> Row:
        """Remove an object; returns its last state, with the version of the removal."""
        self.resource_version += 1
        obj["metadata"]["resourceVersion"] = str(self.resource_version)
        data = encode(obj)
        self._db.execute("DELETE FROM objects WHERE uid = ?", (row.uid,))
        self._db.execute("DELETE FROM owners WHERE dependent_uid = ?", (row.uid,))
        key = (row.resource, row.namespace, row.name)
        self.changes.append(Change(self.resource_version, "DELETED", *key, data, row.data))
        return Row(*key, row.uid, self.resource_version, data)

    def run_later(self, work: Callable[[Transaction], object]) -> None:
        """Queue `work` as a write of its own, after this one is committed."""
        self.follow_ups.append(work)


class Snapshot:
    """A consistent read: every query sees the same resource version."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection
        self.resource_version = newest_version(connection)

    def find(self, resource: str, namespace: str, name: str) -> Row | None:
        """Return the object or None."""
        return find_row(self._db, resource, namespace, name)

    def iterate(
        self, resource: str, namespace: str | None, after: tuple[str, str] | None = None
    ) -> Iterator[Row]:
        """Yield rows in (namespace, name) order, all namespaces or one, beyond `after`."""
        sql = f"SELECT {_COLUMNS} FROM objects WHERE resource = ?"
        values: list[Any] = [resource]
        if namespace is not None:
            sql += " AND namespace = ?"
            values.append(namespace)
        if after is not None:
            sql += " AND (namespace, name) > (?, ?)"
            values.extend(after)
        for row in self._db.execute(f"{sql} ORDER BY namespace, name", values):
            yield Row(*row)

    def count(self, resource: str, namespace: str | None, after: tuple[str, str]) -> int:
        """Return how many objects lie beyond `after`."""
        sql = "SELECT count(*) FROM objects WHERE resource = ? AND (namespace, name) > (?, ?)"
        values: list[Any] = [resource, *after]
        if namespace is not None:
            sql += " AND namespace = ?"
            values.append(namespace)
        counted: int = self._db.execute(sql, values).fetchone()[0]
        return counted


def _one(db: sqlite3.Connection, sql: str, values: tuple[Any, ...]) -> Row | None:
    found = db.execute(sql, values).fetchone()
    return None if found is None else Row(*found)


def find_row(db: sqlite3.Connection, resource: str, namespace: str, name: str) -> Row | None:
    """Return the object or None."""
    sql = f"SELECT {_COLUMNS} FROM objects WHERE resource = ? AND namespace = ? AND name = ?"
    return _one(db, sql, (resource, namespace, name))


def newest_version(db: sqlite3.Connection) -> int:
    """Return the newest resource version that was given."""
    version: int = db.execute("SELECT resource_version FROM counter").fetchone()[0]
    return version
