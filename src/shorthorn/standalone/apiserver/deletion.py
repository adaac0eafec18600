"""Deletion: finalizers, owner references, namespaces; all inside one transaction.

Owns what a real cluster's garbage collector and namespace controller do: dependents go with their
last owner (background), before it (foreground) or stay (orphan), and a namespace goes when it is
empty. It must not validate objects. Called by `registry` and by follow-up writes.

A cascade is one transaction: after a crash either nothing of it happened or all of it.
Source: kubernetes.io "Garbage collection"; apiserver `registry/rest/delete.go`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shorthorn.standalone.apiserver import meta, status

if TYPE_CHECKING:
    from shorthorn.standalone.apiserver.kinds import KindSet
    from shorthorn.standalone.apiserver.transactions import Row, Transaction

FOREGROUND_FINALIZER = "foregroundDeletion"
#: Made at start and never deleted: those of a real API server, and the one whose objects stand for
#: the data of every volume and image on this host. One word must not delete all of it.
IMMORTAL_NAMESPACES = ("default", "kube-system", "longhorn-system")


@dataclass(frozen=True, slots=True)
class DeleteOptions:
    """What a caller asks of a deletion; blank members ask nothing."""

    policy: str = "Background"  # Background, Foreground or Orphan
    uid: str = ""
    resource_version: str = ""


@dataclass(frozen=True, slots=True)
class Deleted:
    """The object after the request: gone, or waiting for its finalizers."""

    row: Row
    is_gone: bool


class Deletion:
    """Deletes objects of the given kinds."""

    def __init__(self, kinds: KindSet) -> None:
        self._kinds = kinds

    def delete(self, tx: Transaction, row: Row, options: DeleteOptions) -> Deleted:
        """Delete one object, or mark it for deletion while finalizers hold it.

        Raises: StatusError 409: a precondition does not hold; 403: an immortal namespace.
        """
        target = self._target(row)
        obj = row.decode()
        _check_preconditions(row, obj["kind"], options)
        if row.resource == "namespaces":
            return self._delete_namespace(tx, row, obj, target)
        metadata = obj["metadata"]
        if options.policy == "Orphan":
            for dependent in tx.list_dependents(row.uid):
                self._drop_owners(tx, dependent, {row.uid})
            finalizers = metadata.get("finalizers", [])
            metadata["finalizers"] = [f for f in finalizers if f != FOREGROUND_FINALIZER]
        elif options.policy == "Foreground" and _blocking(tx, row.uid):
            finalizers = metadata.setdefault("finalizers", [])
            if FOREGROUND_FINALIZER not in finalizers:
                finalizers.append(FOREGROUND_FINALIZER)
        if not metadata.get("finalizers"):
            return Deleted(self._remove(tx, row, obj), is_gone=True)
        marked = self._mark(tx, row, obj)
        if FOREGROUND_FINALIZER in metadata["finalizers"]:
            return self._delete_dependents(tx, marked)
        return Deleted(marked, is_gone=False)

    def settle(self, tx: Transaction, row: Row, obj: dict[str, Any]) -> Row:
        """Remove an object whose last finalizer has gone; `obj` is its last state."""
        return self._remove(tx, row, obj)

    def collect_if_orphaned(self, tx: Transaction, uid: str) -> None:
        """Delete an object none of whose owners exists; drop the owners that do not."""
        row = tx.find_by_uid(uid)
        if row is None:
            return
        owners = row.decode()["metadata"].get("ownerReferences", ())
        absent = {o["uid"] for o in owners if not self._is_present(tx, row, o)}
        if absent and len(absent) == len({o["uid"] for o in owners}):
            self.delete(tx, row, DeleteOptions())
        elif absent:
            self._drop_owners(tx, row, absent)

    def release_waiting(self, tx: Transaction, uid: str) -> None:
        """Finish a foreground deletion whose last blocking dependent has changed its owners."""
        row = tx.find_by_uid(uid)
        if row is not None:
            self._finish_foreground(tx, row)

    def _target(self, row: Row) -> status.Target:
        plural, _, group = row.resource.partition(".")
        return status.Target(group, plural, row.name)

    def _mark(self, tx: Transaction, row: Row, obj: dict[str, Any]) -> Row:
        metadata = obj["metadata"]
        if "deletionTimestamp" not in metadata:
            metadata["deletionTimestamp"] = meta.now_rfc3339()
            metadata["deletionGracePeriodSeconds"] = 0
            if "generation" in metadata:
                metadata["generation"] += 1
        elif obj == row.decode():
            return row
        return tx.put(row.resource, obj, row)

    def _remove(self, tx: Transaction, row: Row, obj: dict[str, Any]) -> Row:
        removed = tx.remove(row, obj)
        for dependent in tx.list_dependents(row.uid):
            self.collect_if_orphaned(tx, dependent.uid)
        for owner in obj["metadata"].get("ownerReferences", ()):
            waiting = tx.find_by_uid(owner["uid"])
            if waiting is not None:
                self._finish_foreground(tx, waiting)
        if row.namespace:
            self._finish_namespace(tx, row.namespace)
        return removed

    def _is_present(self, tx: Transaction, row: Row, owner: dict[str, Any]) -> bool:
        kind = self._kinds.find_by_type(owner["apiVersion"], owner["kind"])
        if kind is None:
            return True  # not ours to judge
        found = tx.find_by_uid(owner["uid"])
        return (
            found is not None
            and found.resource == kind.resource
            and found.name == owner["name"]
            and found.namespace in ("", row.namespace)
        )

    def _drop_owners(self, tx: Transaction, row: Row, uids: set[str]) -> None:
        obj = row.decode()
        metadata = obj["metadata"]
        kept = [o for o in metadata.get("ownerReferences", ()) if o["uid"] not in uids]
        if kept:
            metadata["ownerReferences"] = kept
        else:
            metadata.pop("ownerReferences", None)
        tx.put(row.resource, obj, row)

    def _delete_dependents(self, tx: Transaction, owner: Row) -> Deleted:
        for dependent in tx.list_dependents(owner.uid):
            current = tx.find_by_uid(dependent.uid)
            if current is not None:
                self.delete(tx, current, DeleteOptions())
        left = tx.find_by_uid(owner.uid)
        return Deleted(left or owner, is_gone=left is None)

    def _finish_foreground(self, tx: Transaction, owner: Row) -> None:
        obj = owner.decode()
        finalizers = obj["metadata"].get("finalizers", [])
        if FOREGROUND_FINALIZER not in finalizers or _blocking(tx, owner.uid):
            return
        finalizers.remove(FOREGROUND_FINALIZER)
        if finalizers:
            tx.put(owner.resource, obj, owner)
        else:
            del obj["metadata"]["finalizers"]
            self._remove(tx, owner, obj)

    def _delete_namespace(
        self, tx: Transaction, row: Row, obj: dict[str, Any], target: status.Target
    ) -> Deleted:
        if row.name in IMMORTAL_NAMESPACES:
            raise status.forbidden(target, "this namespace may not be deleted")
        obj["status"] = {**obj.get("status", {}), "phase": "Terminating"}
        marked = self._mark(tx, row, obj)
        for found in tx.list_namespace(row.name):
            current = tx.find_by_uid(found.uid)
            if current is not None:
                self.delete(tx, current, DeleteOptions())
        self._finish_namespace(tx, row.name)
        left = tx.find_by_uid(row.uid)
        return Deleted(left or marked, is_gone=left is None)

    def _finish_namespace(self, tx: Transaction, name: str) -> None:
        row = tx.find("namespaces", "", name)
        if row is None or not tx.is_namespace_empty(name):
            return
        obj = row.decode()
        metadata = obj["metadata"]
        if "deletionTimestamp" in metadata and not metadata.get("finalizers"):
            obj.get("spec", {}).pop("finalizers", None)
            tx.remove(row, obj)


def _blocking(tx: Transaction, owner_uid: str) -> bool:
    """Whether a dependent is there that its owner must wait for."""
    for dependent in tx.list_dependents(owner_uid):
        for owner in dependent.decode()["metadata"].get("ownerReferences", ()):
            if owner["uid"] == owner_uid and owner.get("blockOwnerDeletion"):
                return True
    return False


def _check_preconditions(row: Row, kind: str, options: DeleteOptions) -> None:
    group = row.resource.partition(".")[2]
    if options.uid and options.uid != row.uid:
        raise status.another_uid(group, kind, row.name, wanted=options.uid, found=row.uid)
    found = str(row.resource_version)
    if options.resource_version and options.resource_version != found:
        wanted = options.resource_version
        raise status.another_version(group, kind, row.name, wanted=wanted, found=found)
