"""The ASGI application: authentication, discovery, errors; resources go to `handlers`.

Owns what every request passes: the bearer token, and the one place where an exception becomes a
response. Called by uvicorn; built by `server`.
"""

from __future__ import annotations

import hmac
import logging
import uuid
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response

from shorthorn.standalone.apiserver import discovery, requests, reviews, status
from shorthorn.standalone.apiserver.negotiation import decode_object
from shorthorn.standalone.apiserver.openapi import OpenApi
from shorthorn.standalone.apiserver.openapi_v2 import openapi_v2
from shorthorn.standalone.apiserver.store import StoreUnavailable

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from shorthorn.standalone.apiserver.handlers import Handlers
    from shorthorn.standalone.apiserver.kinds import KindSet

_log = logging.getLogger(__name__)
_HEALTH = frozenset({"/healthz", "/readyz", "/livez"})


class App:
    """Serves one API; `token` is what every caller must present."""

    def __init__(self, kinds: KindSet, handlers: Handlers, token: str) -> None:
        if len(token) < 16:
            raise ValueError("the bearer token needs at least 16 characters")
        self._kinds = kinds
        self._handlers = handlers
        self._token = token
        self._authorization = f"Bearer {token}".encode()
        self._openapi = OpenApi(kinds)
        #: host:port or socket path, told to clients in discovery.
        self.address = ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request; websockets are not spoken."""
        if scope["type"] != "http":
            raise RuntimeError(f"{scope['type']} is not served")
        request = Request(scope, receive)
        try:
            response = await self._respond(request)
        except status.StatusError as exc:
            response = _failure(exc)
        except StoreUnavailable as exc:
            response = _failure(status.unavailable(str(exc)))
        except RecursionError:
            response = _failure(status.bad_request("the object is nested too deeply"))
        except ClientDisconnect:
            return
        except Exception:
            error_id = uuid.uuid4().hex[:12]
            _log.exception("%s %s failed (%s)", request.method, request.url.path, error_id)
            response = _failure(status.internal_error(f"a bug; the log has it as {error_id}"))
        await response(scope, receive, send)

    async def _respond(self, request: Request) -> Response:
        path = request.url.path
        if path in _HEALTH:
            return PlainTextResponse("ok")
        presented = request.headers.get("authorization", "").encode()
        if not hmac.compare_digest(presented, self._authorization):
            raise status.unauthorized()
        if path.startswith("/openapi/"):
            return self._openapi_document(path)
        review = reviews.find_kind(path)
        if review is not None:
            return await self._review(review, request)
        resource = requests.parse_path(path)
        if resource is not None:
            return await self._handlers.serve(resource, request)
        document = self._discovery(path)
        if document is None:
            raise status.no_such_resource()
        if request.method != "GET":
            raise status.method_not_allowed()
        return _json(document)

    async def _review(self, kind: str, request: Request) -> Response:
        if request.method != "POST":
            raise status.method_not_allowed()
        body = decode_object(await request.body(), request.headers.get("content-type", ""))
        return _json(reviews.review(kind, body, token=self._token), 201)

    def _discovery(self, path: str) -> dict[str, Any] | None:
        parts = path.strip("/").split("/")
        match parts:
            case ["version"]:
                return discovery.version_info()
            case ["api"]:
                return discovery.core_versions(self.address)
            case ["apis"]:
                return discovery.group_list(self._kinds)
            case ["api", version]:
                return discovery.find_resources(self._kinds, "", version)
            case ["apis", group]:
                return discovery.find_group(self._kinds, group) or reviews.find_document(path)
            case ["apis", group, version]:
                found = discovery.find_resources(self._kinds, group, version)
                return found or reviews.find_document(path)
        return None

    def _openapi_document(self, path: str) -> Response:
        document: bytes | None = None
        media_type = "application/json"
        match path.strip("/").split("/")[1:]:
            case ["v2"]:
                document, media_type = openapi_v2(self._kinds), "application/octet-stream"
            case ["v3"]:
                document = self._openapi.index()
            case ["v3", "api", version]:
                document = self._openapi.document("", version)
            case ["v3", "apis", group, version]:
                document = self._openapi.document(group, version)
        if document is None:
            raise status.no_such_resource()
        return Response(document, media_type=media_type)


def _json(document: dict[str, Any], code: int = 200) -> Response:
    return Response(msgspec.json.encode(document), code, media_type="application/json")


def _failure(error: status.StatusError) -> Response:
    response = _json(error.as_dict(), error.code)
    if error.retry_after_s is not None:
        response.headers["Retry-After"] = str(error.retry_after_s)
    if error.code == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response
