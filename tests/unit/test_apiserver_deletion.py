"""Garbage collection over owner graphs of any shape, and what a write drops or keeps."""

from __future__ import annotations

import sqlite3
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shorthorn.standalone.apiserver import transactions
from shorthorn.standalone.apiserver.deletion import DeleteOptions
from shorthorn.standalone.apiserver.kinds import KindSet, load_default_kinds
from shorthorn.standalone.apiserver.registry import Registry, Write
from shorthorn.standalone.apiserver.status import StatusError
from shorthorn.standalone.apiserver.transactions import Row, Transaction

KINDS: KindSet = load_default_kinds()
MAX_OBJECTS = 12


class Cluster:
    """A registry on a database in memory, every write a transaction followed by its follow-ups."""

    def __init__(self) -> None:
        self._db = sqlite3.connect(":memory:", isolation_level=None)
        self._db.executescript(transactions.TABLES)
        self.registry = Registry(KINDS)
        self.tx = Transaction(self._db, 1)
        self.create("namespaces", "default", namespace="")

    def close(self) -> None:
        self._db.close()

    def settle(self) -> None:
        """Run the follow-ups, and theirs."""
        while self.tx.follow_ups:
            work = self.tx.follow_ups.pop()
            work(self.tx)

    def create(
        self, resource: str, name: str, *, namespace: str = "default", **metadata: Any
    ) -> Row:
        kind = KINDS.find_by_resource(resource)
        assert kind is not None
        write = Write(kind, kind.storage_version, namespace)
        row = self.registry.create(self.tx, write, {"metadata": {"name": name, **metadata}})
        self.settle()
        return row

    def create_map(self, name: str, owners: list[Row], *, held: bool, blocking: bool) -> None:
        references = [
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "name": owner.name,
                "uid": owner.uid,
                "blockOwnerDeletion": blocking,
            }
            for owner in owners
        ]
        finalizers = ["example.com/hold"] if held else []
        self.create("configmaps", name, ownerReferences=references, finalizers=finalizers)

    def delete(self, row: Row, policy: str) -> None:
        orphans = self.only_children(row) if policy == "Orphan" else []
        self.registry.deletion.delete(self.tx, row, DeleteOptions(policy=policy))
        self.settle()
        for orphan in orphans:
            kept = self.tx.find_by_uid(orphan.uid)
            assert kept is not None, "an orphan was deleted"
            assert "ownerReferences" not in kept.decode()["metadata"]

    def only_children(self, owner: Row) -> list[Row]:
        """Return the dependents that have no other owner and are not being deleted."""
        found = []
        for row in self.tx.list_dependents(owner.uid):
            metadata = row.decode()["metadata"]
            owners = {reference["uid"] for reference in metadata["ownerReferences"]}
            if owners == {owner.uid} and "deletionTimestamp" not in metadata:
                found.append(row)
        return found

    def release(self, row: Row) -> None:
        """Take the test's finalizer away, as its controller would."""
        current = self.tx.find_by_uid(row.uid) or row
        finalizers = current.decode()["metadata"].get("finalizers", [])
        self.change(row, finalizers=[f for f in finalizers if f != "example.com/hold"])

    def change(self, row: Row, **metadata: Any) -> None:
        """Replace members of an object's metadata."""
        kind = KINDS.find_by_resource("configmaps")
        assert kind is not None
        write = Write(kind, "v1", "default", row.name)
        self.registry.patch(
            self.tx, write, lambda obj: obj | {"metadata": obj["metadata"] | metadata}
        )
        self.settle()

    def maps(self) -> list[Row]:
        return self.tx.list_resource("configmaps")


def check_invariants(cluster: Cluster, waiting: set[str]) -> None:
    """Check every object; `waiting` collects the uids whose deletion is in the foreground."""
    present = {row.uid for row in cluster.maps()}
    for row in cluster.maps():
        metadata = row.decode()["metadata"]
        owners = {owner["uid"] for owner in metadata.get("ownerReferences", ())}
        is_deleting = "deletionTimestamp" in metadata
        assert is_deleting or not owners or owners <= present, "an owner is gone, its child is not"
        assert not is_deleting or metadata.get("finalizers"), "nothing holds it, and yet it is here"
        if "foregroundDeletion" in metadata.get("finalizers", ()):
            dependents = cluster.tx.list_dependents(row.uid)
            assert dependents, "a foreground deletion waits for nobody"
            waiting.add(row.uid)
        blocked = {
            owner["uid"]
            for owner in metadata.get("ownerReferences", ())
            if owner["blockOwnerDeletion"]
        }
        assert blocked & waiting <= present, "a foreground deletion did not wait"


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["create", "create", "delete", "release", "disown"]),
        st.integers(0, MAX_OBJECTS - 1),
        st.lists(st.integers(0, MAX_OBJECTS - 1), max_size=3),
        st.sampled_from(["Background", "Foreground", "Orphan"]),
        st.booleans(),
        st.booleans(),
    ),
    min_size=5,
    max_size=40,
)


@settings(max_examples=300)
@given(OPERATIONS)
def test_no_dependent_outlives_its_owners_and_no_deletion_hangs(
    operations: list[tuple[str, int, list[int], str, bool, bool]],
):
    cluster, waiting = Cluster(), set[str]()
    try:
        for number, (verb, at, owners, policy, held, blocking) in enumerate(operations):
            rows = cluster.maps()
            if verb == "create":
                chosen = [rows[index % len(rows)] for index in owners if rows]
                cluster.create_map(f"m{number}", chosen, held=held, blocking=blocking)
            elif rows and verb == "delete":
                cluster.delete(rows[at % len(rows)], policy)
            elif rows and verb == "disown":
                cluster.change(rows[at % len(rows)], ownerReferences=[])
            elif rows:
                cluster.release(rows[at % len(rows)])
            check_invariants(cluster, waiting)
        for row in cluster.maps():
            if cluster.tx.find_by_uid(row.uid) is not None:
                cluster.delete(cluster.tx.find_by_uid(row.uid) or row, "Background")
        for row in cluster.maps():
            if cluster.tx.find_by_uid(row.uid) is not None:
                cluster.release(row)
        assert cluster.maps() == [], "everything was deleted and released"
    finally:
        cluster.close()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("labels", {"a": 5}),
        ("annotations", ["x"]),
        ("finalizers", "hold"),
        ("ownerReferences", [5]),
        ("ownerReferences", [{"uid": 5}]),
        ("name", 5),
        ("namespace", ["default"]),
        ("resourceVersion", 5),
    ],
)
def test_malformed_metadata_is_refused_and_never_a_bug(path: str, value: Any):
    cluster = Cluster()
    try:
        kind = KINDS.find_by_resource("configmaps")
        assert kind is not None
        body = {"metadata": {"name": "m", path: value}}
        with pytest.raises(StatusError) as caught:
            cluster.registry.create(cluster.tx, Write(kind, "v1", "default"), body)
        assert caught.value.code in (400, 422)
    finally:
        cluster.close()


@pytest.mark.parametrize("policy", ["Warn", "Ignore"])
def test_unknown_fields_are_dropped_wherever_they_are(policy: str):
    cluster = Cluster()
    try:
        kind = KINDS.find_by_resource("persistentvolumeclaims")
        assert kind is not None
        write = Write(kind, "v1", "default", field_validation=policy)
        body = {
            "metadata": {"name": "c", "colour": 1},
            "spec": {
                "accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": "1Gi"}, "claims.x": 1},
                "dataSource": {"kind": "PersistentVolumeClaim", "name": "x", "more": {"a": 1}},
            },
            "extra": [1],
        }
        stored = cluster.registry.create(cluster.tx, write, body).decode()
        assert "extra" not in stored
        assert "colour" not in stored["metadata"]
        assert stored["spec"]["resources"] == {"requests": {"storage": "1Gi"}}
        assert "more" not in stored["spec"]["dataSource"]
        assert len(write.warnings) == (4 if policy == "Warn" else 0)
    finally:
        cluster.close()


def test_a_foreground_deletion_waits_for_the_last_blocking_dependent():
    cluster = Cluster()
    try:
        cluster.create_map("owner", [], held=False, blocking=False)
        (owner,) = cluster.maps()
        for name in ("one", "two"):
            cluster.create_map(name, [owner], held=True, blocking=True)
        cluster.delete(owner, "Foreground")
        for released in ("one", "two"):
            present = {row.name: row for row in cluster.maps()}
            assert "owner" in present
            cluster.release(present[released])
        assert cluster.maps() == []
    finally:
        cluster.close()
