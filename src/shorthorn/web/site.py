"""What all pages share: the parts behind them, and how a page is answered.

Owns: the one object that requests find everything through, and turning errors into pages. Must
never: know a page. Made by `daemon` through `web.app`; used by pages, event streams and /api/v1.
"""

from __future__ import annotations

import logging
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import parse_qs

from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from shorthorn.domain.errors import DomainError, InvalidArgument, NotFound
from shorthorn.domain.image_bytes import ImageBytes
from shorthorn.domain.names import is_object_name
from shorthorn.kube.user_api import Refused
from shorthorn.web import rendering
from shorthorn.web.access import Access
from shorthorn.web.errors import Problem, problem_of
from shorthorn.web.guard import FORM_BYTES_MAX, read_limited
from shorthorn.web.rates import Rates
from shorthorn.web.sessions import LoginLinks, Session, Sessions
from shorthorn.web.traffic import CountBytes, uncounted
from shorthorn.web.watched import Watched

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from jinja2 import Environment
    from starlette.requests import Request

log = logging.getLogger(__name__)

THEMES = ("light", "dark")


@dataclass(frozen=True)
class Site:
    """Everything behind the pages.

    `image_bytes`: None where nobody can move them. `links`: None where nobody signs in by a link (a
    cluster); `links_token` is the Kubernetes token of who does. `streams`: open event streams; each
    is told of a stop by its event. `count_bytes`: is told of bytes of images that pass.
    `obstacles`: what keeps the program from being ready, in words.
    """

    namespace: str
    driver_name: str
    watched: Watched
    rates: Rates
    access: Access
    image_bytes: ImageBytes | None
    sessions: Sessions
    cookie: str
    links: LoginLinks | None = None
    links_token: str = field(default="", repr=False)
    metrics: Callable[[], Awaitable[bytes]] | None = None
    count_bytes: CountBytes = uncounted
    obstacles: Callable[[], Sequence[str]] = lambda: ()
    templates: Environment = field(default_factory=rendering.make_environment)
    streams: set[asyncio.Event] = field(default_factory=set)

    @property
    def is_one_host(self) -> bool:
        return self.links is not None


def site_of(request: Request) -> Site:
    """Return what the application was made with."""
    return cast("Site", request.app.state.site)


def session_of(request: Request) -> Session:
    """Return who asks; `web.guard` has let nobody else through."""
    session = request.state.session
    assert isinstance(session, Session), "paths without a session look for themselves"
    return session


def image_named_in(request: Request) -> str:
    """Return the image that the path names. Raises NotFound: nothing can have such a name."""
    name = str(request.path_params["name"])
    if not is_object_name(name):
        raise NotFound("backing image", name)
    return name


def page(request: Request, template: str, *, status: int = 200, **values: Any) -> Response:
    """Render a page."""
    text = render(request, template, **values)
    return HTMLResponse(text, status)


def render(request: Request, template: str, **values: Any) -> str:
    """Return a template's text, with what every template may use."""
    site = site_of(request)
    theme = request.cookies.get("theme", "")
    shared = {
        "session": request.state.session,
        "form_token": request.state.form_token,
        "theme": theme if theme in THEMES else "",
        "path": request.url.path,
        "is_one_host": site.is_one_host,
        "namespace": site.namespace,
    }
    return site.templates.get_template(template).render(rendering.context(**shared, **values))


def see_other(path: str) -> Response:
    """Answer a form that did its work."""
    return RedirectResponse(path, 303)


def problem_or_raise(error: Exception) -> Problem:
    """Return how an error is told at a form; raises it where it is a bug."""
    problem = problem_of(error)
    if problem is None:
        raise error
    return problem


async def on_known_error(request: Request, error: Exception) -> Response:
    """Answer an error that was written for callers (a Starlette exception handler)."""
    problem = problem_of(error)
    if problem is None:
        return await on_bug(request, error)
    return _answer(request, problem)


async def on_bug(request: Request, error: Exception) -> Response:
    """Answer what was not foreseen: the text stays in the log."""
    error_id = secrets.token_hex(6)
    log.error("%s %s failed (%s)", request.method, request.url.path, error_id, exc_info=error)
    message = f"something went wrong that was not foreseen; the log has it as {error_id}"
    return _answer(request, Problem(500, "InternalError", message))


async def on_http_error(request: Request, error: Exception) -> Response:
    """Answer what Starlette itself refuses: no such page, no such method."""
    code = getattr(error, "status_code", 500)
    message = "there is no such page" if code == 404 else str(getattr(error, "detail", error))
    response = _answer(request, Problem(code, "NotFound" if code == 404 else "Refused", message))
    response.headers.update(getattr(error, "headers", None) or {})
    return response


KNOWN_ERRORS: tuple[type[Exception], ...] = (DomainError, Refused)


def _answer(request: Request, problem: Problem) -> Response:
    headers = {"Retry-After": str(problem.retry_after_s)} if problem.retry_after_s else {}
    if request.url.path.startswith("/api/"):
        body = {"reason": problem.reason, "message": problem.message}
        return JSONResponse(body, problem.status, headers)
    if request.state.session is not None and problem.status == 401:
        response: Response = RedirectResponse("/login?ended=1", 303)
        response.delete_cookie(site_of(request).cookie)
        return response
    text = render(request, "problem.html", problem=problem)
    return HTMLResponse(text, problem.status, headers)


async def read_form(request: Request) -> Mapping[str, str]:
    """Return the fields of a form, the first of each name. Raises: InvalidArgument.

    Files come another way (/api/v1), so forms are of one kind only and need no parser of parts.
    """
    body = await read_limited(request, FORM_BYTES_MAX)
    if body is None:
        raise InvalidArgument("form", f"at most {FORM_BYTES_MAX} bytes are read")
    try:
        fields = parse_qs(body.decode(), keep_blank_values=True, max_num_fields=100)
    except ValueError as exc:
        raise InvalidArgument("form", f"it cannot be read: {exc}") from exc
    return {key: values[0] for key, values in fields.items()}


def text_of(form: Mapping[str, Any], key: str, default: str = "") -> str:
    """Return a field of a form as text, without blanks around it."""
    value = form.get(key, default)
    return value.strip() if isinstance(value, str) else default
