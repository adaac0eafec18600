"""The byte endpoints of the web edge, as docs/design/0011 describes them, and as badly as told.

Real HTTP over a real socket, in the event loop of the test. Each request's body is cut or held as
the next `Trouble` says, and after the last one nothing goes wrong. `requests` holds what was asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from shorthorn.domain.upload_sample import sample_of

_BLOCK = 64 << 10


@dataclass(frozen=True)
class Trouble:
    """What happens to one request: its body is reset after so many bytes, or held there until
    `ByteEdge.go_on` (and reset then, if both are said); or it is answered with a status alone.
    """

    cut_after: int | None = None
    hold_after: int | None = None
    status: int = 0
    message: str = ""


@dataclass
class ByteEdge:
    """A running edge. `images`: what downloads give, by (name, form); `uploads`: what arrived."""

    token: str
    url: str = ""
    images: dict[tuple[str, str], bytes] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    uploads: dict[str, bytearray] = field(default_factory=dict)
    troubles: list[Trouble] = field(default_factory=list)
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    held: asyncio.Event = field(default_factory=asyncio.Event)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    find_length: Callable[[str], Awaitable[int | None]] | None = None
    completed: Callable[[str, bytes], Awaitable[None]] | None = None

    @property
    def ranges(self) -> list[str]:
        """The Range headers of the downloads, in order; empty for requests of the whole."""
        return [h.get("Range", "") for method, _, h in self.requests if method == "GET"]

    @property
    def offsets(self) -> list[int]:
        """Where each PATCH went on."""
        return [int(h["Upload-Offset"]) for method, _, h in self.requests if method == "PATCH"]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request."""
        self.requests.append((request.method, request.path, dict(request.headers)))
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.json_response({"message": "no such user"}, status=401)
        name, what = request.match_info["name"], request.match_info["what"]
        if what == "upload":
            return await self._upload(request, name)
        return await self._download(request, name, what)

    async def _upload(self, request: web.Request, name: str) -> web.StreamResponse:
        if name not in self.lengths and self.find_length is not None:
            length = await self.find_length(name)
            if length is not None:
                self.lengths[name] = length  # from the next request on it awaits bytes
                self.uploads[name] = bytearray()
            return web.json_response({"message": "awaits no bytes"}, status=404)
        if request.method == "HEAD":
            return web.Response(headers=self._offsets(name) | self._sample(name))
        if request.method == "DELETE":
            self.uploads[name] = bytearray()
            return web.Response(status=204)
        trouble = self.troubles.pop(0) if self.troubles else Trouble()
        if trouble.status:
            return web.json_response({"message": trouble.message}, status=trouble.status)
        there = self.uploads[name]
        if int(request.headers["Upload-Offset"]) != len(there):
            return web.Response(status=409, headers=self._offsets(name))
        await self._receive(request, there, trouble)
        if len(there) == self.lengths[name] and self.completed is not None:
            await self.completed(name, bytes(there))
        return web.Response(status=204, headers=self._offsets(name))

    async def _receive(self, request: web.Request, there: bytearray, trouble: Trouble) -> None:
        start = len(there)
        async for block in request.content.iter_chunked(_BLOCK):
            there += block
            received = len(there) - start
            if trouble.hold_after is not None and received >= trouble.hold_after:
                await self._hold()
            if trouble.cut_after is not None and received >= trouble.cut_after:
                del there[start + trouble.cut_after :]
                _reset(request)
                raise ConnectionResetError

    def _sample(self, name: str) -> dict[str, str]:
        there = bytes(self.uploads[name])
        sample = sample_of(lambda count, start: there[start : start + count], len(there))
        return {"Upload-Sample": sample} if sample else {}

    def _offsets(self, name: str) -> dict[str, str]:
        return {
            "Upload-Offset": str(len(self.uploads[name])),
            "Upload-Length": str(self.lengths[name]),
        }

    async def _download(self, request: web.Request, name: str, form: str) -> web.StreamResponse:
        content = self.images.get((name, form))
        if content is None:
            return web.json_response({"message": f"image {name} has no {form}"}, status=404)
        trouble = self.troubles.pop(0) if self.troubles else Trouble()
        if trouble.status:
            return web.json_response({"message": trouble.message}, status=trouble.status)
        etag = f'"{hashlib.sha512(content).hexdigest()}"'
        answer = web.StreamResponse(headers={"ETag": etag, "Accept-Ranges": "bytes"})
        start = _start(request, content, etag) if form in ("artifact", "raw") else 0
        if start > len(content):
            headers = {"Content-Range": f"bytes */{len(content)}"}
            return web.Response(status=416, headers=headers)
        if start:
            answer.set_status(206)
            answer.headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if form != "raw.zst":
            answer.content_length = len(content) - start
        await answer.prepare(request)
        await self._send(request, answer, content[start:], trouble)
        return answer

    async def _send(
        self, request: web.Request, answer: web.StreamResponse, content: bytes, trouble: Trouble
    ) -> None:
        stop = trouble.cut_after if trouble.cut_after is not None else trouble.hold_after
        for at in range(0, len(content), _BLOCK):
            if stop is not None and at + _BLOCK > stop:
                await answer.write(content[at:stop])
                if trouble.cut_after is not None:
                    await asyncio.sleep(0.05)  # what was written shall arrive before the reset
                    _reset(request)
                    raise ConnectionResetError
                await self._hold()
                await answer.write(content[stop : at + _BLOCK])
                stop = None
                continue
            await answer.write(content[at : at + _BLOCK])
        await answer.write_eof()

    async def _hold(self) -> None:
        self.held.set()
        await self.go_on.wait()


@contextlib.asynccontextmanager
async def serve(token: str, **fields: Any) -> AsyncIterator[ByteEdge]:
    """Serve until the block ends."""
    edge = ByteEdge(token, **fields)
    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/api/v1/images/{name}/{what}", edge.handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    address = runner.addresses[0]
    edge.url = f"http://{address[0]}:{address[1]}"
    try:
        yield edge
    finally:
        edge.go_on.set()
        await runner.cleanup()


def _start(request: web.Request, content: bytes, etag: str) -> int:
    """Return where a request begins: 0 unless it asks for a range of what is still the same."""
    asked = request.headers.get("Range", "")
    if not asked or request.headers.get("If-Range", etag) != etag:
        return 0
    start = int(asked.removeprefix("bytes=").removesuffix("-"))
    return start if start < len(content) else len(content) + 1


def _reset(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()
