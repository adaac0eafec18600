"""The web application: routes, files, errors.

Owns: which paths there are and what is around them all. Must never: know what a page says. Made by
`daemon`, served by `kit.guest_server`.
"""

from __future__ import annotations

import contextlib
import mimetypes
from importlib import resources
from typing import TYPE_CHECKING, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from shorthorn.web import api, live
from shorthorn.web.guard import Guard
from shorthorn.web.pages import create, handle, image, images, login, overview, restore, volumes
from shorthorn.web.site import (
    KNOWN_ERRORS,
    Site,
    answer_problem,
    on_bug,
    on_http_error,
    on_known_error,
    site_of,
)

if TYPE_CHECKING:
    from collections.abc import Collection

    from starlette.requests import Request
    from starlette.types import ASGIApp, Receive, Scope, Send

    from shorthorn.web.errors import Problem

_FOR_GOOD: Final = "public, max-age=31536000, immutable"
_METRICS: Final = "text/plain; version=1.0.0; charset=utf-8"


def make_app(site: Site, *, hosts: Collection[str] | None) -> ASGIApp:
    """Return the application. `hosts`: what the Host header may be; None: anything."""
    routes = [
        Route("/static/{path:path}", _static),
        Route("/favicon.ico", _icon),
        Route("/healthz", _healthz),
        Route("/readyz", _readyz),
        *([Route("/metrics", _metrics)] if site.metrics else []),
        *api.routes,
        *live.routes,
        *login.routes,
        *overview.routes,
        *images.routes,
        *create.routes,
        *image.routes,
        *volumes.routes,
        *restore.routes,
        *handle.routes,
    ]
    handlers = {HTTPException: on_http_error, Exception: on_bug}
    handlers |= dict.fromkeys(KNOWN_ERRORS, on_known_error)
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.state.site = site

    def refuse(request: Request, problem: Problem) -> Response:
        request.scope["app"] = app  # as Starlette does: the guard is in front of it
        return answer_problem(request, problem)

    guarded = Guard(app, sessions=site.sessions, cookie=site.cookie, hosts=hosts, refuse=refuse)

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        # Starlette raises a bug once more after `on_bug` has logged and answered it.
        with contextlib.suppress(Exception):
            await guarded(scope, receive, send)

    return answer


async def _static(request: Request) -> Response:
    file = resources.files("shorthorn.web") / "static"
    for part in str(request.path_params["path"]).split("/"):
        if part in ("", ".", ".."):
            raise HTTPException(404)
        file = file / part
    if not file.is_file():
        raise HTTPException(404)
    kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
    caching = _FOR_GOOD if "v" in request.query_params else "no-cache"
    return Response(file.read_bytes(), media_type=kind, headers={"Cache-Control": caching})


async def _icon(request: Request) -> Response:
    data = (resources.files("shorthorn.web") / "static" / "icon.svg").read_bytes()
    return Response(data, media_type="image/svg+xml", headers={"Cache-Control": "max-age=86400"})


async def _healthz(request: Request) -> Response:
    return PlainTextResponse("ok\n")


async def _readyz(request: Request) -> Response:
    obstacles = site_of(request).obstacles()
    text = "\n".join(obstacles or ("ok",)) + "\n"
    return PlainTextResponse(text, 503 if obstacles else 200)


async def _metrics(request: Request) -> Response:
    metrics = site_of(request).metrics
    assert metrics is not None, "there is a route only with it"
    return Response(await metrics(), headers={"Content-Type": _METRICS})
