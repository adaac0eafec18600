"""A small real web server on loopback, from which images are downloaded.

Owns: one aiohttp server that offers chosen files with ranges, validators and HEAD. Must never:
listen on another address, or offer what it was not given.
"""

from __future__ import annotations

from pathlib import Path

from aiohttp import web

_STOP_TIMEOUT_S = 1.0


class ImageServer:
    """`async with` starts and stops it. Files may be offered and replaced while it runs."""

    def __init__(self) -> None:
        self._files: dict[str, Path] = {}
        self._runner: web.AppRunner | None = None
        self._port = 0

    async def __aenter__(self) -> ImageServer:
        app = web.Application()
        app.router.add_get("/{name}", self._get)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=_STOP_TIMEOUT_S)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self._port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    def offer(self, name: str, path: Path) -> str:
        """Offer a file under a name and return its URL."""
        self._files[name] = path
        return f"http://127.0.0.1:{self._port}/{name}"

    async def _get(self, request: web.Request) -> web.StreamResponse:
        path = self._files.get(request.match_info["name"])
        if path is None:
            raise web.HTTPNotFound
        return web.FileResponse(path)
