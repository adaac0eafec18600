"""Stored bytes in, response bytes out: versions, forms, lists.

Owns the wire form of objects and lists. A plain object is never decoded on its way out: its version
is a byte prefix, which is replaced when a client asked for another. Called by `handlers` and by
watches, also in reader threads; holds no state but compiled printers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from shorthorn.standalone.apiserver.negotiation import Form
from shorthorn.standalone.apiserver.table import TablePrinter, partial_metadata, table_printer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shorthorn.standalone.apiserver.kinds import Kind

_encode = msgspec.json.encode


@dataclass(frozen=True, slots=True)
class ListMetadata:
    """`metadata` of a list; `remaining` is None when it is not known."""

    resource_version: int
    continue_token: str = ""
    remaining: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the wire form."""
        metadata: dict[str, Any] = {"resourceVersion": str(self.resource_version)}
        if self.continue_token:
            metadata["continue"] = self.continue_token
            if self.remaining is not None:
                metadata["remainingItemCount"] = self.remaining
        return metadata


class Renderer:
    """Writes objects of one version of one kind in one form. Compiling it parses the columns."""

    def __init__(self, kind: Kind, version: str, form: Form, include_object: str) -> None:
        #: What distinguishes the output of renderers of one kind; caches are keyed by it.
        self.key = (version, form, include_object)
        self._form = form
        self._include_object = include_object
        self._list_type = (kind.api_version(version), kind.list_kind)
        self._stored_prefix = _prefix(kind.api_version())
        self._wanted_prefix = _prefix(kind.api_version(version))
        self._printer: TablePrinter | None = None
        if form in (Form.TABLE_V1, Form.TABLE_V1BETA1):
            self._printer = table_printer(kind, version)

    def convert(self, data: bytes) -> bytes:
        """Return a stored object in the wanted version."""
        assert data.startswith(self._stored_prefix), "stored objects begin with their version"
        return self._wanted_prefix + data[len(self._stored_prefix) :]

    def object(self, data: bytes) -> bytes:
        """Return one object in the wanted form."""
        if self._printer is not None:
            resource_version = msgspec.json.decode(data)["metadata"]["resourceVersion"]
            return self._table([data], {"resourceVersion": resource_version})
        if self._form is Form.METADATA:
            return _encode(partial_metadata(msgspec.json.decode(data)))
        return self.convert(data)

    def list(self, items: Iterable[bytes], metadata: ListMetadata) -> bytes:
        """Return a list in the wanted form."""
        members = metadata.as_dict()
        if self._printer is not None:
            return self._table(items, members)
        api_version, kind = self._list_type
        if self._form is Form.METADATA:
            api_version, kind = "meta.k8s.io/v1", "PartialObjectMetadataList"
            items = [_encode(partial_metadata(msgspec.json.decode(data))) for data in items]
        else:
            items = [self.convert(data) for data in items]
        head = _encode({"kind": kind, "apiVersion": api_version, "metadata": members})
        return b'%s,"items":[%s]}' % (head[:-1], b",".join(items))

    def bookmark(self, data: dict[str, Any]) -> bytes:
        """Return the object of a bookmark: only a version, as the kind itself or as a table."""
        if self._printer is not None:
            return _encode(self._table_head(data["metadata"]) | {"rows": []})
        return _encode(data)

    def _table(self, items: Iterable[bytes], metadata: dict[str, Any]) -> bytes:
        assert self._printer is not None
        decoded = (msgspec.json.decode(self.convert(data)) for data in items)
        rows = [self._printer.row(obj, self._include_object) for obj in decoded]
        return _encode(self._table_head(metadata) | {"rows": rows})

    def _table_head(self, metadata: dict[str, Any]) -> dict[str, Any]:
        assert self._printer is not None
        return {
            "kind": "Table",
            "apiVersion": self._form.value,
            "metadata": metadata,
            "columnDefinitions": self._printer.columns,
        }


class Renderers:
    """Renderers by kind, version and form, each compiled once."""

    def __init__(self) -> None:
        self._compiled: dict[tuple[str, str, Form, str], Renderer] = {}

    def get(self, kind: Kind, version: str, form: Form, include_object: str) -> Renderer:
        """Return the renderer for these; `include_object` matters to tables only."""
        if include_object not in ("None", "Object"):
            include_object = "Metadata"
        key = (kind.resource, version, form, include_object)
        if key not in self._compiled:
            self._compiled[key] = Renderer(kind, version, form, include_object)
        return self._compiled[key]


def _prefix(api_version: str) -> bytes:
    return b'{"apiVersion":%s,' % _encode(api_version)
