"""Create, update, patch: what a write does to an object, inside its transaction.

Owns the rules common to all kinds: who may change what (main endpoint or status), optimistic
concurrency, generation, strictness. It must not know HTTP and must not do I/O besides its
`Transaction`. Called by `handlers` in the writer thread; deletions are in `deletion`. Source:
apiserver `registry/rest/{create,update}.go`, apiextensions-apiserver
`registry/customresource/strategy.go`.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from shorthorn.domain.names import is_label
from shorthorn.standalone.apiserver import admission, meta, status
from shorthorn.standalone.apiserver.deletion import Deletion
from shorthorn.standalone.apiserver.field_errors import (
    FieldError,
    InvalidObject,
    UnknownFields,
    forbidden,
    invalid,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from shorthorn.standalone.apiserver.kinds import Kind, KindSet
    from shorthorn.standalone.apiserver.transactions import Row, Transaction

NO_HOMES: Mapping[str, str] = MappingProxyType({})


@dataclass(slots=True)
class Write:
    """One write request: the kind and version it was addressed to, and what to be strict about."""

    kind: Kind
    version: str
    namespace: str
    name: str = ""
    subresource: str = ""
    field_validation: str = "Strict"
    warnings: list[str] = field(default_factory=list)

    @property
    def target(self) -> status.Target:
        """The object as error messages name it."""
        return status.Target(self.kind.group, self.kind.plural, self.name)


class Registry:
    """Writes objects of the given kinds; every method runs in the writer thread."""

    def __init__(self, kinds: KindSet, homes: Mapping[str, str] = NO_HOMES) -> None:
        """`homes`: the one namespace in which objects of a group are seen to, by group."""
        self._kinds = kinds
        self._homes = homes
        self.deletion = Deletion(kinds)

    def create(self, tx: Transaction, write: Write, body: Mapping[str, Any]) -> Row:
        """Add a new object. Raises: StatusError 400, 403, 404 (namespace), 409, 422."""
        kind = write.kind
        obj = self._converted(write, body)
        obj["metadata"] = meta.for_create(obj["metadata"])
        write.name = obj["metadata"].get("name", "")
        self._place(write, obj["metadata"])
        self._check_home(write)
        if kind.has_status:
            obj.pop("status", None)
        admission.prepare_create(kind, obj, tx)
        obj = self._admit(write, obj, None)
        if not kind.is_core:
            obj["metadata"]["generation"] = 1
        self._check_namespace(tx, write)
        if tx.find(kind.resource, write.namespace, write.name) is not None:
            raise status.already_exists(write.target)
        row = tx.put(kind.resource, obj, None)
        self._collect_later(tx, obj)
        return row

    def _check_home(self, write: Write) -> None:
        """Refuse an object that nobody would ever look at."""
        home = self._homes.get(write.kind.group)
        if home not in (None, write.namespace):
            problem = (
                f"{write.kind.kind} objects are seen to in namespace {home} only; write "
                f"namespace: {home} into its metadata"
            )
            raise status.forbidden(write.target, problem)

    def update(self, tx: Transaction, write: Write, body: Mapping[str, Any]) -> Row:
        """Replace an object, or its status. Raises: StatusError 400, 404, 409, 422."""
        row = self._get(tx, write)
        obj = self._converted(write, body)
        if not obj["metadata"].get("resourceVersion") and not write.kind.is_core:
            error = invalid("metadata.resourceVersion", 0, "must be specified for an update")
            raise status.invalid(write.kind.group, write.kind.kind, write.name, [error])
        return self._replace(tx, write, row, obj)

    def patch(
        self,
        tx: Transaction,
        write: Write,
        apply: Callable[[dict[str, Any]], Any],
    ) -> Row:
        """Apply a patch to the object as the requested version shows it.

        Raises: StatusError 400, 404, 409, 422; whatever `apply` raises.
        """
        row = self._get(tx, write)
        current = row.decode()
        current["apiVersion"] = write.kind.api_version(write.version)
        patched = apply(current)
        if not isinstance(patched, dict):
            raise status.bad_request("the patch does not leave an object")
        return self._replace(tx, write, row, self._converted(write, patched))

    def _get(self, tx: Transaction, write: Write) -> Row:
        row = tx.find(write.kind.resource, write.namespace, write.name)
        if row is None:
            raise status.not_found(write.target)
        return row

    def _converted(self, write: Write, body: Mapping[str, Any]) -> dict[str, Any]:
        """Check type and identity of what a caller sent; return a copy in the stored version."""
        kind, expected = write.kind, write.kind.api_version(write.version)
        _check_type(kind, body, write.version, expected)
        # `metadata:` with nothing below it is null; what follows is the schema's to judge.
        metadata = body.get("metadata") if body.get("metadata") is not None else {}
        problem = meta.find_malformed(metadata)
        if problem is not None:
            raise status.bad_request(
                f'{kind.kind} in version "{write.version}" cannot be handled as a {kind.kind}: '
                f"{problem}"
            )
        obj = copy.deepcopy({**body, "metadata": metadata})
        obj["apiVersion"], obj["kind"] = kind.api_version(), kind.kind
        name = obj["metadata"].get("name")
        if write.name and name and name != write.name:
            raise status.bad_request(
                f"the name of the object ({name}) does not match the name on the URL ({write.name})"
            )
        return obj

    def _place(self, write: Write, metadata: dict[str, Any]) -> None:
        stated = metadata.get("namespace", "")
        if not write.kind.namespaced:
            if stated:
                error = forbidden("metadata.namespace", "not allowed on this type")
                raise status.invalid(write.kind.group, write.kind.kind, write.name, [error])
        elif stated and stated != write.namespace:
            raise status.bad_request(
                "the namespace of the provided object does not match the namespace sent on the "
                "request"
            )
        else:
            metadata["namespace"] = write.namespace
        if write.kind.resource == "namespaces" and not is_label(write.name):
            detail = (
                "a lowercase RFC 1123 label must consist of at most 63 lower case alphanumeric "
                "characters or '-', and must start and end with an alphanumeric character"
            )
            error = invalid("metadata.name", write.name, detail)
            raise status.invalid("", "Namespace", write.name, [error])

    def _check_namespace(self, tx: Transaction, write: Write) -> None:
        if not write.kind.namespaced:
            return
        row = tx.find("namespaces", "", write.namespace)
        if row is None:
            raise status.not_found(status.Target("", "namespaces", write.namespace))
        if "deletionTimestamp" in row.decode()["metadata"]:
            problem = (
                f"unable to create new content in namespace {write.namespace} because it is "
                "being terminated"
            )
            cause = FieldError(
                "metadata.namespace",
                "NamespaceTerminating",
                f"namespace {write.namespace} is being terminated",
            )
            raise status.forbidden(write.target, problem, [cause])

    def _replace(self, tx: Transaction, write: Write, row: Row, sent: dict[str, Any]) -> Row:
        old = row.decode()
        self._check_identity(write, row, sent["metadata"])
        new = self._merged(write, sent, old)
        errors = meta.find_new_finalizers(new["metadata"], old["metadata"])
        if errors:
            raise status.invalid(write.kind.group, write.kind.kind, write.name, errors)
        admission.prepare_update(write.kind, new, old)
        new = self._admit(write, new, old)
        if new == old:
            return row
        metadata = new["metadata"]
        if not write.kind.is_core and _desired(write.kind, new) != _desired(write.kind, old):
            metadata["generation"] = metadata.get("generation", 0) + 1
        is_released = "deletionTimestamp" in metadata and not metadata.get("finalizers")
        if is_released and (
            write.kind.resource != "namespaces" or tx.is_namespace_empty(write.name)
        ):
            return self.deletion.settle(tx, row, new)
        replaced = tx.put(write.kind.resource, new, row)
        if metadata.get("ownerReferences") != old["metadata"].get("ownerReferences"):
            self._collect_later(tx, new)
            for owner in old["metadata"].get("ownerReferences", ()):
                self._release_later(tx, owner["uid"])
        return replaced

    def _check_identity(self, write: Write, row: Row, metadata: dict[str, Any]) -> None:
        uid, version = metadata.get("uid"), metadata.get("resourceVersion")
        if uid and uid != row.uid:
            raise status.conflict(
                write.target,
                f"Precondition failed: UID in precondition: {uid}, UID in object meta: {row.uid}",
            )
        if version and version != str(row.resource_version):
            raise status.modified(write.target)
        namespace = metadata.get("namespace")
        if namespace and namespace != write.namespace:
            raise status.bad_request(
                "the namespace of the provided object does not match the namespace sent on the "
                "request"
            )

    def _merged(self, write: Write, sent: dict[str, Any], old: dict[str, Any]) -> dict[str, Any]:
        """Take from `sent` what this endpoint may change, the rest from `old`."""
        if write.subresource == "status":
            new = copy.deepcopy(old)
            new.pop("status", None)
            if sent.get("status") is not None:
                new["status"] = sent["status"]
            return new
        new = sent
        new["metadata"] = meta.for_update(sent["metadata"], old["metadata"])
        if write.kind.has_status:
            new.pop("status", None)
            if "status" in old:
                new["status"] = old["status"]
        return new

    def _admit(
        self, write: Write, obj: dict[str, Any], old: dict[str, Any] | None
    ) -> dict[str, Any]:
        kind = write.kind
        try:
            return kind.schema.admit(obj, old)
        except UnknownFields as exc:
            if write.field_validation == "Strict":
                raise status.unknown_fields(kind.kind, write.version, exc.paths) from exc
            if write.field_validation == "Warn":
                write.warnings.extend(f'unknown field "{path}"' for path in exc.paths)
            for path in exc.paths:
                _drop(obj, path)
            write.field_validation = "Strict"  # a field that cannot be dropped is refused
            return self._admit(write, obj, old)
        except InvalidObject as exc:
            raise status.invalid(kind.group, kind.kind, write.name, exc.errors) from exc

    def _collect_later(self, tx: Transaction, obj: dict[str, Any]) -> None:
        """Look after the commit whether the owners exist: a racing deletion may have won."""
        if obj["metadata"].get("ownerReferences"):
            uid = obj["metadata"]["uid"]
            tx.run_later(lambda later: self.deletion.collect_if_orphaned(later, uid))

    def _release_later(self, tx: Transaction, owner_uid: str) -> None:
        """Look after the commit whether an owner has waited for this object only."""
        tx.run_later(lambda later: self.deletion.release_waiting(later, owner_uid))


def _check_type(kind: Kind, body: Mapping[str, Any], version: str, expected: str) -> None:
    """Refuse an object of another type. Core objects need not say theirs, custom resources must."""
    found = body.get("kind") or (kind.kind if kind.is_core else None)
    if found is None:
        raise status.bad_request(
            f"the object provided is unrecognized (must be of type {kind.kind}): "
            "Object 'Kind' is missing"
        )
    api_version = body.get("apiVersion") or (expected if kind.is_core else "")
    if api_version != expected:
        raise status.bad_request(
            f"the API version in the data ({api_version}) does not match the expected "
            f"API version ({expected})"
        )
    if found == kind.kind:
        return
    if kind.is_core:
        problem = f'{found} in version "{version}" cannot be handled as a {kind.kind}'
        raise status.bad_request(problem)
    error = invalid("kind", found, f"must be {kind.kind}")
    metadata = body.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    raise status.invalid(kind.group, str(found), str(name or ""), [error])


def _desired(kind: Kind, obj: dict[str, Any]) -> dict[str, Any]:
    """Return what generation counts: everything but metadata and observed state."""
    left_out = {"metadata", "status"} if kind.has_status else {"metadata"}
    return {key: value for key, value in obj.items() if key not in left_out}


def _drop(obj: Any, path: str) -> None:
    """Remove the member at a path such as `spec.items[0].name`; keys may contain dots."""
    if isinstance(obj, dict):
        if path in obj:
            del obj[path]
            return
        for key in obj:
            if path.startswith((f"{key}.", f"{key}[")):
                _drop(obj[key], path[len(key) :].removeprefix("."))
                return
    elif isinstance(obj, list):
        matched = re.match(r"\[(\d+)\]\.?", path)
        if matched is not None:
            _drop(obj[int(matched[1])], path[matched.end() :])
