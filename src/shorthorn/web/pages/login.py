"""Signing in and out.

Owns: the login page (a one-time link on one host, a token in a cluster) and the session's cookie.
Must never: say whether a link was used or is wrong in a way that helps to guess one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from shorthorn.web.guard import is_by_tls, own_path
from shorthorn.web.sessions import LINK_S, SESSION_S, TokenTooLong
from shorthorn.web.site import page, read_form, see_other, site_of, text_of

if TYPE_CHECKING:
    from starlette.requests import Request

    from shorthorn.web.site import Site

_BAD_LINK = "This link was used already, or is older than ten minutes."
_BAD_TOKEN = "The API server does not know this token; it may have expired."
_LONG_TOKEN = "The token is too long for a browser's cookie. Use one with fewer group claims."


async def show(request: Request) -> Response:
    """The login page, or the use of a one-time link: by GET alone, since programs that look what is
    behind a link ask by HEAD.
    """
    site = site_of(request)
    once = request.query_params.get("once", "")
    is_signed_in = request.state.session is not None
    if once and site.links is not None and request.method == "GET":
        user = await site.access.api.find_user(site.links_token) or "admin"
        if site.links.use(once):
            return _enter(request, site, user, site.links_token)
        if not is_signed_in:
            return _form(request, _BAD_LINK, 403)
    if is_signed_in and not request.query_params.get("ended"):
        return see_other(_next(request))
    return _form(request, "", is_ended=bool(request.query_params.get("ended")))


async def sign_in(request: Request) -> Response:
    """A token was typed."""
    site = site_of(request)
    token = text_of(await read_form(request), "token")
    if not token:
        return _form(request, "Paste a token.", 422)
    user = await site.access.api.find_user(token)
    if user is None:
        return _form(request, _BAD_TOKEN, 403)
    return _enter(request, site, user, token)


async def sign_out(request: Request) -> Response:
    """End the session: its cookie is no good to anybody who kept it."""
    site_of(request).sessions.end(request.state.session)
    response = see_other("/login")
    response.delete_cookie(site_of(request).cookie, path="/")
    return response


async def session(request: Request) -> Response:
    """Whether there is a session: scripts ask when a stream broke. The guard answers 401."""
    return JSONResponse({"user": request.state.session.user})


routes = [
    Route("/login", show, methods=["GET"]),
    Route("/login", sign_in, methods=["POST"]),
    Route("/logout", sign_out, methods=["POST"]),
    Route("/session", session),
]


def _enter(request: Request, site: Site, user: str, token: str) -> Response:
    """Set the cookie. The page that follows is asked for by ours, not by whatever held the link:
    a redirect would not carry a SameSite=Strict cookie then.
    """
    try:
        _, cookie = site.sessions.begin(user, token)
    except TokenTooLong:
        return _form(request, _LONG_TOKEN, 422)
    response = page(request, "entered.html", next=_next(request))
    response.delete_cookie(_next_cookie(site), path="/login")
    response.set_cookie(
        site.cookie,
        cookie,
        max_age=SESSION_S,
        path="/",
        httponly=True,
        samesite="strict",
        secure=is_by_tls(request),
    )
    return response


def _next(request: Request) -> str:
    """Return where to go on: what the address says, or else the login page's cookie."""
    told = request.query_params.get("next", "")
    return own_path(told or unquote(request.cookies.get(_next_cookie(site_of(request)), "")))


def _next_cookie(site: Site) -> str:
    """Return the name of the cookie by which a one-time link leads on: whoever printed it does not
    know where its user was. It may be anybody's, so it is looked at as an address is.
    """
    return f"{site.cookie}_next"


def _form(request: Request, problem: str, status: int = 200, *, is_ended: bool = False) -> Response:
    back = own_path(request.query_params.get("next", ""))
    values = {"problem": problem, "next": back, "is_ended": is_ended}
    response = page(request, "login.html", status=status, **values)
    if back != "/":
        response.set_cookie(
            _next_cookie(site_of(request)),
            quote(back, safe=""),
            max_age=LINK_S,
            path="/login",
            httponly=True,
            samesite="lax",  # links are followed from elsewhere
            secure=is_by_tls(request),
        )
    return response
