"""/api/v1: bytes of images for machines, as /api/openapi.json describes it.

Owns: uploads (the core of tus 1.0.0) and downloads with ranges, as HTTP. Must never: hold more of
an image than one piece. Everything but bytes is the Kubernetes API.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
from importlib import resources
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from shorthorn.domain.errors import (
    DomainError,
    InvalidArgument,
    NotFound,
    OffsetMismatch,
    Unavailable,
    WrongState,
)
from shorthorn.domain.image_bytes import (
    UPLOAD_SAMPLE,
    Artifact,
    ArtifactForm,
    Direction,
    ImageBytes,
    OpenArtifact,
    UploadState,
)
from shorthorn.kube import user_api
from shorthorn.web.byte_ranges import NotSatisfiable, find_range, is_known, is_match
from shorthorn.web.guard import read_limited
from shorthorn.web.site import image_named_in, session_of, site_of
from shorthorn.web.traffic import counted
from shorthorn.web.views.images import state_of

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from shorthorn.web.traffic import CountBytes

TUS_VERSION: Final = "1.0.0"
_TUS: Final = {"Tus-Resumable": TUS_VERSION, "Cache-Control": "no-store"}
_UPLOAD_TYPE: Final = "application/offset+octet-stream"
_DOCUMENT_BYTES_MAX: Final = 64 << 10
_TYPES: Final = {
    ArtifactForm.ARTIFACT: "application/octet-stream",
    ArtifactForm.RAW: "application/octet-stream",
    ArtifactForm.QCOW2: "application/octet-stream",
    ArtifactForm.RAW_ZST: "application/zstd",
}


async def upload_options(request: Request) -> Response:
    """Say what of tus there is."""
    image_named_in(request)
    return Response(status_code=204, headers=_TUS | {"Tus-Version": TUS_VERSION})


async def upload_state(request: Request) -> Response:
    """Say where an upload goes on."""
    bytes_, name = await _uploading(request)
    return Response(headers=_state_headers(await bytes_.upload_state(name)))


async def upload_append(request: Request) -> Response:
    """Append the body; 204 with the new offset, 409 with the true one."""
    bytes_, name = await _uploading(request)
    if request.headers.get("content-type", "").split(";")[0].strip() != _UPLOAD_TYPE:
        return _problem(415, "UnsupportedMediaType", f"send Content-Type: {_UPLOAD_TYPE}")
    offset = request.headers.get("upload-offset", "")
    if not offset.isascii() or not offset.isdecimal() or len(offset) > 18:
        return _problem(400, "InvalidArgument", "Upload-Offset: a number of bytes is needed")
    try:
        chunks = counted(request.stream(), Direction.UPLOAD, site_of(request).count_bytes)
        state = await bytes_.append(name, int(offset), chunks)
    except OffsetMismatch as exc:
        response = _problem(409, exc.reason, str(exc))
        response.headers["Upload-Offset"] = str(exc.offset_bytes)
        return response
    except ClientDisconnect:
        return Response(status_code=499)  # nobody reads it
    return Response(status_code=204, headers=_state_headers(state))


async def upload_abandon(request: Request) -> Response:
    """Give an upload up."""
    bytes_, name = await _uploading(request)
    await bytes_.abandon(name)
    return Response(status_code=204, headers=_TUS)


async def index(request: Request) -> Response:
    """Say where the API is described."""
    return JSONResponse({"description": "/api/openapi.json"})


async def download(request: Request) -> Response:
    """Send an image's bytes in one form."""
    form = ArtifactForm(request.url.path.rpartition("/")[2])
    bytes_, name = await _bytes_for(request, "get")
    try:
        return await _download(request, bytes_, name, form)
    except NotFound as exc:
        raise await _why_not(request, name, exc) from exc


async def _download(
    request: Request, bytes_: ImageBytes, name: str, form: ArtifactForm
) -> Response:
    artifact = await bytes_.describe(name, form)
    headers = _headers_of(artifact, form)
    etag = headers.get("ETag", "")
    if not is_match(request.headers, etag):
        told = f"{form} of backing image {name} is {etag or 'not named yet'}, and not what is asked"
        problem = {"reason": "PreconditionFailed", "message": told}
        return JSONResponse(problem, 412, headers={"ETag": etag} if etag else {})
    if is_known(request.headers, etag):
        return Response(status_code=304, headers=headers)
    if request.method == "HEAD":  # of which no range is asked (RFC 9110 section 14.2)
        return _Head(200, headers, artifact.size_bytes, _TYPES[form])
    span, status = None, 200
    if form.has_ranges and artifact.size_bytes is not None:
        try:
            span = find_range(request.headers, artifact.size_bytes, etag)
        except NotSatisfiable:
            headers["Content-Range"] = f"bytes */{artifact.size_bytes}"
            return Response(status_code=416, headers=headers)
    if span is not None:
        status = 206
        headers["Content-Range"] = f"bytes {span.start}-{span.stop - 1}/{artifact.size_bytes}"
    start, stop = (span.start, span.stop) if span is not None else (0, None)
    opened = bytes_.read(name, form, start=start, stop=stop)
    async with contextlib.AsyncExitStack() as stack:
        source = await stack.enter_async_context(opened)
        if artifact.etag and source.artifact.etag not in ("", artifact.etag):
            raise Unavailable(f"backing image {name}", "another one came in its place just now")
        stack = stack.pop_all()
    size_bytes = source.artifact.size_bytes
    if size_bytes is not None:
        headers["Content-Length"] = str((size_bytes if stop is None else stop) - start)
    count = site_of(request).count_bytes
    return _Sending(source, stack, status, headers | {"Content-Type": _TYPES[form]}, count)


def _headers_of(artifact: Artifact, form: ArtifactForm) -> dict[str, str]:
    """Return what is told of a form, whether any of it is sent or not."""
    headers = {
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(artifact.file_name)}",
        "Cache-Control": "private, no-cache",
    }
    if artifact.etag:
        headers["ETag"] = f'"{artifact.etag}"'
    if form.has_ranges:
        headers["Accept-Ranges"] = "bytes"
    return headers


async def _why_not(request: Request, name: str, error: NotFound) -> DomainError:
    """Return why an image has no bytes: it is gone by now, is not so far, or just moves."""
    images = site_of(request).watched.images
    image = images.find_cached(name) or await images.find(name)
    if image is None:
        return error
    if image.is_ready:
        return Unavailable(f"backing image {name}", str(error))
    state, message = state_of(image)
    told = f"{state} ({message})" if message else str(state)
    return WrongState("backing image", name, told, "a ready one")


async def check_url(request: Request) -> Response:
    """Say whether there is an image at a URL."""
    site = site_of(request)
    await site.access.require(session_of(request), "create", user_api.IMAGES)
    url = (await _document(request)).get("url")
    if not isinstance(url, str) or not url.strip():
        raise InvalidArgument("url", "write the URL as text")
    module = await asyncio.to_thread(importlib.import_module, "shorthorn.web.url_check")
    checked = await module.check_url(url)
    answer: dict[str, Any] = {"reachable": checked.is_good}
    if checked.problem:
        answer["problem"] = checked.problem
    if checked.format:
        answer |= {"format": checked.format, "size": checked.size_bytes or None}
        answer |= {"virtualSize": checked.virtual_size_bytes or None}
    return JSONResponse(answer)


async def description(request: Request) -> Response:
    """The OpenAPI document."""
    data = (resources.files("shorthorn.web") / "openapi.json").read_bytes()
    return Response(data, media_type="application/json")


_IMAGE: Final = "/api/v1/images/{name}"
routes = [
    Route("/api/openapi.json", description),
    Route("/api/v1", index),
    Route(f"{_IMAGE}/upload", upload_options, methods=["OPTIONS"]),
    Route(f"{_IMAGE}/upload", upload_state, methods=["HEAD"]),
    Route(f"{_IMAGE}/upload", upload_append, methods=["PATCH"]),
    Route(f"{_IMAGE}/upload", upload_abandon, methods=["DELETE"]),
    *(Route(f"{_IMAGE}/{form.value}", download, methods=["GET"]) for form in ArtifactForm),
    Route("/api/v1/check-url", check_url, methods=["POST"]),
]


class _Head(Response):
    """The answer to HEAD: the length of what would be sent, and nothing of it."""

    def __init__(
        self, status: int, headers: dict[str, str], length: int | None, media_type: str
    ) -> None:
        super().__init__(status_code=status, headers=headers, media_type=media_type)
        self.raw_headers = [h for h in self.raw_headers if h[0] != b"content-length"]
        if length is not None:
            self.raw_headers.append((b"content-length", str(length).encode()))


class _Sending(Response):
    """Sends pieces as they are read; the network's pace is the reader's. Frees all at its end."""

    def __init__(
        self,
        source: OpenArtifact,
        stack: contextlib.AsyncExitStack,
        status: int,
        headers: dict[str, str],
        count: CountBytes,
    ) -> None:
        super().__init__(status_code=status, headers=headers)
        if "Content-Length" not in headers:
            self.raw_headers = [h for h in self.raw_headers if h[0] != b"content-length"]
        self._source = source
        self._stack = stack
        self._count = count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI. A client that goes away ends it at the next piece."""
        sending = asyncio.ensure_future(self._send(send))
        watching = asyncio.ensure_future(_until_gone(receive))
        try:
            await asyncio.wait({sending, watching}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            for task in (sending, watching):
                task.cancel()
            await asyncio.gather(sending, watching, return_exceptions=True)
            await self._stack.aclose()

    async def _send(self, send: Send) -> None:
        await send(
            {
                "type": "http.response.start",
                "status": self.status_code,
                "headers": self.raw_headers,
            }
        )
        async for chunk in counted(self._source.chunks, Direction.DOWNLOAD, self._count):
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _uploading(request: Request) -> tuple[ImageBytes, str]:
    """Return who takes the bytes of this version of tus, once the user may send them."""
    if request.headers.get("tus-resumable", TUS_VERSION) != TUS_VERSION:
        raise HTTPException(412, f"only tus {TUS_VERSION} is spoken", {"Tus-Version": TUS_VERSION})
    return await _bytes_for(request, "update")


async def _bytes_for(request: Request, verb: str) -> tuple[ImageBytes, str]:
    """Return who moves the bytes, once the user may."""
    site, name = site_of(request), image_named_in(request)
    await site.access.require(session_of(request), verb, user_api.IMAGES, name)
    if site.image_bytes is None:
        raise Unavailable("image bytes", "this program cannot reach them")
    if await _is_missing(site.watched.images, name):
        raise NotFound("backing image", name)
    return site.image_bytes, name


async def _is_missing(images: Any, name: str) -> bool:
    """Whether there is no such image, also not one that was made a moment ago."""
    return images.find_cached(name) is None and await images.find(name) is None


async def _document(request: Request) -> dict[str, Any]:
    body = await read_limited(request, _DOCUMENT_BYTES_MAX)
    if body is None:
        raise InvalidArgument("body", f"at most {_DOCUMENT_BYTES_MAX} bytes are read")
    try:
        document = json.loads(body)
    except ValueError:
        raise InvalidArgument("body", 'write JSON, as in {"url": "https://…"}') from None
    if not isinstance(document, dict):
        raise InvalidArgument("body", "write a JSON object")
    return document


def _state_headers(state: UploadState) -> dict[str, str]:
    headers = _TUS | {
        "Upload-Offset": str(state.offset_bytes),
        "Upload-Length": str(state.length_bytes),
    }
    return headers | ({UPLOAD_SAMPLE: state.sample} if state.sample else {})


def _problem(status: int, reason: str, message: str) -> JSONResponse:
    return JSONResponse({"reason": reason, "message": message}, status, _TUS)
