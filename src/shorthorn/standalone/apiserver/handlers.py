"""Requests to kinds: from a parsed path to a response.

Owns the dispatch of verbs and the reading of bodies and options. What a write means is in
`registry`, what a list means in `lists`. Called by `app` for every path below /api and /apis that
names a resource.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from starlette.responses import Response

from shorthorn.standalone.apiserver import lists, patch, requests, status
from shorthorn.standalone.apiserver.deletion import Deleted, DeleteOptions
from shorthorn.standalone.apiserver.negotiation import (
    JSON_PATCH,
    MERGE_PATCH,
    STRATEGIC_MERGE_PATCH,
    Form,
    choose_form,
    decode_json,
    decode_object,
    media_type_of,
    unsupported_patch,
)
from shorthorn.standalone.apiserver.registry import Registry, Write
from shorthorn.standalone.apiserver.rendering import ListMetadata, Renderers
from shorthorn.standalone.apiserver.selectors import parse_selection
from shorthorn.standalone.apiserver.watch_stream import WatchRequest, WatchResponse

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from starlette.requests import Request

    from shorthorn.standalone.apiserver.kinds import Kind, KindSet
    from shorthorn.standalone.apiserver.rendering import Renderer
    from shorthorn.standalone.apiserver.requests import ResourcePath
    from shorthorn.standalone.apiserver.store import Store
    from shorthorn.standalone.apiserver.transactions import Row, Transaction
    from shorthorn.standalone.apiserver.watch import WatchHub

    _Verb = Callable[[Kind, ResourcePath, Request, "Warnings"], Awaitable[Response]]

#: A real API server's limit for a request body.
BODY_MAX_BYTES = 3 * 1024 * 1024
_POLICIES = ("Background", "Foreground", "Orphan")


class Handlers:
    """Serves the resources of a set of kinds."""

    def __init__(
        self,
        kinds: KindSet,
        store: Store,
        hub: WatchHub,
        registry: Registry,
        *,
        bookmark_interval_s: float,
    ) -> None:
        self._kinds = kinds
        self._store = store
        self._hub = hub
        self._bookmark_interval_s = bookmark_interval_s
        self._registry = registry
        self._renderers = Renderers()

    async def serve(self, path: ResourcePath, request: Request) -> Response:
        """Answer one request. Raises: StatusError."""
        kind = self._kinds.find_by_path(path.group, path.version, path.plural)
        if kind is None or (path.namespace and not kind.namespaced):
            raise status.no_such_resource()
        if path.subresource and not (path.subresource == "status" and kind.has_status):
            raise status.no_such_resource()
        target = status.Target(kind.group, kind.plural, path.name)
        if path.name:
            if kind.namespaced and not path.namespace:
                raise status.no_such_resource()
            verbs = self._item_verbs(path)
        else:
            verbs = self._collection_verbs(kind, path)
        serve = verbs.get(request.method)
        if serve is None:
            if not (kind.is_core or path.name or path.namespace) and kind.namespaced:
                raise status.no_such_resource()  # a custom resource over all namespaces
            raise status.method_not_allowed(target)
        warning = kind.versions[path.version].warning
        headers = Warnings([warning] if warning else [])
        return await serve(kind, path, request, headers)

    def _item_verbs(self, path: ResourcePath) -> Mapping[str, _Verb]:
        verbs = {"GET": self._get, "PUT": self._update, "PATCH": self._patch}
        return verbs if path.subresource else verbs | {"DELETE": self._delete}

    def _collection_verbs(self, kind: Kind, path: ResourcePath) -> Mapping[str, _Verb]:
        if kind.namespaced and not path.namespace:
            return {"GET": self._list_or_watch}
        return {
            "GET": self._list_or_watch,
            "POST": self._create,
            "DELETE": self._delete_collection,
        }

    def _renderer(self, kind: Kind, path: ResourcePath, request: Request) -> Renderer:
        form = choose_form(request.headers.get("accept", ""))
        include_object = request.query_params.get("includeObject", "Metadata")
        return self._renderers.get(kind, path.version, form, include_object)

    async def _get(
        self, kind: Kind, path: ResourcePath, request: Request, warnings: Warnings
    ) -> Response:
        renderer = self._renderer(kind, path, request)
        row = self._store.find_now(kind.resource, path.namespace, path.name)
        if row is None:
            raise status.not_found(status.Target(kind.group, kind.plural, path.name))
        return _answer(renderer.object(row.data), warnings)

    async def _list_or_watch(
        self, kind: Kind, path: ResourcePath, request: Request, warnings: Warnings
    ) -> Response:
        options = requests.list_options(request.query_params)
        renderer = self._renderer(kind, path, request)
        selection = parse_selection(kind, options.label_selector, options.field_selector)
        scope = lists.Scope(kind, path.namespace or None, selection)
        if options.is_watch:
            requests.parse_version(options.resource_version)
            watch = WatchRequest(scope, options, renderer, path.version, self._bookmark_interval_s)
            return WatchResponse(self._store, self._hub, watch, warnings.headers())
        body = await self._store.read(
            lambda snapshot: lists.read_list(snapshot, scope, options, renderer)
        )
        return _answer(body, warnings)

    async def _create(
        self, kind: Kind, path: ResourcePath, request: Request, warnings: Warnings
    ) -> Response:
        write = self._write(kind, path, request, warnings)
        body = await _read_object(request)
        return await self._store_and_answer(
            request, write, warnings, lambda tx: self._registry.create(tx, write, body), code=201
        )

    async def _update(
        self, kind: Kind, path: ResourcePath, request: Request, warnings: Warnings
    ) -> Response:
        write = self._write(kind, path, request, warnings)
        body = await _read_object(request)
        return await self._store_and_answer(
            request, write, warnings, lambda tx: self._registry.update(tx, write, body)
        )

    async def _patch(
        self, kind: Kind, path: ResourcePath, request: Request, warnings: Warnings
    ) -> Response:
        write = self._write(kind, path, request, warnings)
        apply = _patch_function(kind, request, await _read_body(request))

        def work(tx: Transaction) -> Row:
            try:
                return self._registry.patch(tx, write, apply)
            except patch.PatchError as exc:
                message = f"the server rejected our request due to an error in our request: {exc}"
                raise status.StatusError(422, "Invalid", message) from exc

        return await self._store_and_answer(request, write, warnings, work)

    def _write(self, kind: Kind, path: ResourcePath, request: Request, warnings: Warnings) -> Write:
        return Write(
            kind=kind,
            version=path.version,
            namespace=path.namespace,
            name=path.name,
            subresource=path.subresource,
            field_validation=requests.field_validation(request.query_params),
            warnings=warnings.texts,
        )

    async def _store_and_answer(
        self,
        request: Request,
        write: Write,
        warnings: Warnings,
        work: Callable[[Transaction], Row],
        *,
        code: int = 200,
    ) -> Response:
        choose_form(request.headers.get("accept", ""))
        dry_run = requests.is_dry_run(request.query_params)
        row = await self._store.write(work, dry_run=dry_run)
        renderer = self._renderers.get(write.kind, write.version, Form.JSON, "Metadata")
        return _answer(renderer.object(row.data), warnings, code)

    async def _delete(
        self, kind: Kind, path: ResourcePath, request: Request, warnings: Warnings
    ) -> Response:
        options, dry_run = await _delete_options(request)
        target = status.Target(kind.group, kind.plural, path.name)

        def work(tx: Transaction) -> Deleted:
            row = tx.find(kind.resource, path.namespace, path.name)
            if row is None:
                raise status.not_found(target)
            return self._registry.deletion.delete(tx, row, options)

        deleted = await self._store.write(work, dry_run=dry_run)
        if deleted.is_gone:
            body = msgspec.json.encode(status.success(target, deleted.row.uid))
            return _answer(body, warnings)
        renderer = self._renderers.get(kind, path.version, Form.JSON, "Metadata")
        return _answer(renderer.object(deleted.row.data), warnings)

    async def _delete_collection(
        self, kind: Kind, path: ResourcePath, request: Request, warnings: Warnings
    ) -> Response:
        asked = requests.list_options(request.query_params)
        selection = parse_selection(kind, asked.label_selector, asked.field_selector)
        options, dry_run = await _delete_options(request)

        def work(tx: Transaction) -> list[Row]:
            deleted = []
            for row in tx.list_resource(kind.resource):
                is_in_scope = not path.namespace or row.namespace == path.namespace
                if not is_in_scope or not selection.matches(row.namespace, row.name, row.data):
                    continue
                current = tx.find_by_uid(row.uid)  # a cascade may have taken or changed it
                if current is not None:
                    deleted.append(self._registry.deletion.delete(tx, current, options).row)
            return deleted

        rows = await self._store.write(work, dry_run=dry_run)
        renderer = self._renderers.get(kind, path.version, Form.JSON, "Metadata")
        metadata = ListMetadata(self._store.resource_version_now())
        return _answer(renderer.list((row.data for row in rows), metadata), warnings)


class Warnings:
    """Texts for the `Warning` header, which kubectl prints to its user."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    def headers(self) -> dict[str, str]:
        """Return the header; several texts share one (RFC 7234 section 5.5)."""
        if not self.texts:
            return {}
        quoted = (text.replace("\\", "\\\\").replace('"', '\\"') for text in self.texts)
        return {"Warning": ", ".join(f'299 - "{text}"' for text in quoted)}


def _answer(body: bytes, warnings: Warnings, code: int = 200) -> Response:
    return Response(body, code, warnings.headers(), media_type="application/json")


async def _read_body(request: Request) -> bytes:
    chunks: list[bytes] = []
    size_bytes = 0
    async for chunk in request.stream():
        size_bytes += len(chunk)
        if size_bytes > BODY_MAX_BYTES:
            raise status.too_large(BODY_MAX_BYTES)
        chunks.append(chunk)
    return b"".join(chunks)


async def _read_object(request: Request) -> dict[str, Any]:
    return decode_object(await _read_body(request), request.headers.get("content-type", ""))


def _patch_function(kind: Kind, request: Request, body: bytes) -> Callable[[dict[str, Any]], Any]:
    media_type = media_type_of(request.headers.get("content-type", ""))
    if media_type == MERGE_PATCH:
        changes = decode_json(body)
        if not isinstance(changes, dict):
            raise status.bad_request("a merge patch must be an object")
        return lambda document: patch.apply_merge_patch(document, changes)
    if media_type == JSON_PATCH:
        operations = decode_json(body)
        return lambda document: patch.apply_json_patch(document, operations)
    if media_type == STRATEGIC_MERGE_PATCH and kind.is_core:
        changes = decode_json(body)
        return lambda document: patch.apply_strategic_merge_patch(document, changes, kind.openapi)
    accepted = (JSON_PATCH, MERGE_PATCH, *((STRATEGIC_MERGE_PATCH,) if kind.is_core else ()))
    raise unsupported_patch(media_type, accepted)


async def _delete_options(request: Request) -> tuple[DeleteOptions, bool]:
    """Read DeleteOptions from the body, or else from the query. Raises: StatusError 400, 422."""
    query, body = request.query_params, {}
    content = await _read_body(request)
    if content.strip():
        body = decode_object(content, request.headers.get("content-type", ""))
        if body.get("kind", "DeleteOptions") != "DeleteOptions":
            raise status.bad_request(f"{body['kind']} is not DeleteOptions")
    policy = body.get("propagationPolicy") or query.get("propagationPolicy") or "Background"
    orphan = body.get("orphanDependents", query.get("orphanDependents"))
    if orphan in (True, "true"):
        policy = "Orphan"
    if policy not in _POLICIES:
        raise status.bad_request(f'propagationPolicy: Unsupported value: "{policy}"')
    preconditions = body.get("preconditions") or {}
    if not isinstance(preconditions, dict):
        raise status.bad_request("preconditions must be an object")
    options = DeleteOptions(
        policy,
        str(preconditions.get("uid") or ""),
        str(preconditions.get("resourceVersion") or ""),
    )
    return options, requests.is_dry_run(query, body)
