"""What every request passes before a page sees it.

Owns: the security headers, the check of Host and Origin, finding the session, and refusing unsafe
requests that do not carry the session's form token. Must never: know a page. An ASGI middleware;
wired by `web.app`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs, quote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response

from shorthorn.web.sessions import Session, Sessions

if TYPE_CHECKING:
    from collections.abc import Collection

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS: Final = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
#: Forms are small; what is larger comes with the header.
FORM_BYTES_MAX: Final = 256 << 10
_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_OPEN: Final = frozenset(
    {"/login", "/healthz", "/readyz", "/metrics", "/api/openapi.json", "/favicon.ico"}
)
_FORM: Final = "application/x-www-form-urlencoded"


class Guard:
    """`hosts`: what the Host header may be; None: anything (a proxy in front decides)."""

    def __init__(
        self, app: ASGIApp, *, sessions: Sessions, cookie: str, hosts: Collection[str] | None
    ) -> None:
        self._app = app
        self._sessions = sessions
        self._cookie = cookie
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            raise RuntimeError(f"{scope['type']} is not served")
        guarded = _with_headers(scope, send)
        request = Request(scope, receive)
        refusal = self._refuse_strangers(request) or self._refuse_the_unknown(request)
        if refusal is None:
            try:
                refusal, receive = await self._refuse_forged(request, receive)
            except ClientDisconnect:
                return
        await (refusal or self._app)(scope, receive, guarded)

    def _refuse_strangers(self, request: Request) -> Response | None:
        """Refuse names that are not ours: another site's, resolved to this address."""
        host = request.headers.get("host", "")
        if self._hosts is not None and host.lower() not in self._hosts:
            return PlainTextResponse("this host name is not served here\n", 421)
        return None

    def _refuse_the_unknown(self, request: Request) -> Response | None:
        """Put the session into the request's state; without one only some paths are open."""
        state = request.state
        state.session = self._session(request)
        state.form_token = ""
        if state.session is not None:
            if state.session.id:
                state.form_token = self._sessions.form_token(state.session)
            return None
        path = request.url.path
        if path in _OPEN or path.startswith("/static/"):
            return None
        return self._to_login(request)

    def _session(self, request: Request) -> Session | None:
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and token.strip():
            return Session("the token's user", token.strip())
        cookie = request.cookies.get(self._cookie, "")
        return self._sessions.find(cookie) if cookie else None

    def _to_login(self, request: Request) -> Response:
        path = request.url.path
        if path.startswith(("/api/", "/events", "/session")):
            problem = {"reason": "Unauthorized", "message": "sign in, or send a bearer token"}
            return JSONResponse(problem, 401, {"WWW-Authenticate": "Bearer"})
        back = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        login = "/login" if request.method != "GET" or back == "/" else f"/login?next={quote(back)}"
        if request.headers.get("hx-request"):
            return Response(status_code=401, headers={"HX-Redirect": "/login"})
        return RedirectResponse(login, 303)

    async def _refuse_forged(
        self, request: Request, receive: Receive
    ) -> tuple[Response | None, Receive]:
        """Refuse an unsafe request that another site's page could have sent."""
        session = request.state.session
        if request.method in _SAFE or (session is not None and not session.id):
            return None, receive
        if not is_own_origin(request.headers):
            return _forged("another site's page sent this request"), receive
        if session is None:  # signing in: nothing is there yet that could be misused
            return None, receive
        presented = request.headers.get("x-csrf-token", "")
        if not presented and request.headers.get("content-type", "").startswith(_FORM):
            body = await read_limited(request, FORM_BYTES_MAX)
            if body is None:
                return PlainTextResponse("the form is too large\n", 413), receive
            fields = parse_qs(body.decode("utf-8", "replace"))
            presented = fields.get("csrf_token", [""])[0]
            receive = _replayed(body, receive)
        if not self._sessions.is_form_token(session, presented):
            return _forged("this page is too old; load it again and repeat"), receive
        return None, receive


def is_own_origin(headers: Headers) -> bool:
    """Whether a browser says that the request comes from one of our pages, or says nothing."""
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return False
    origin = headers.get("origin")
    return origin is None or urlsplit(origin).netloc.lower() == headers.get("host", "").lower()


def is_by_tls(request: Request) -> bool:
    """Whether the browser came by TLS, as far as a proxy in front says so. Only for `Secure`."""
    forwarded = request.headers.get("x-forwarded-proto", "")
    return request.url.scheme == "https" or forwarded.split(",")[0].strip() == "https"


def _forged(message: str) -> Response:
    return PlainTextResponse(f"refused: {message}\n", 403)


async def read_limited(request: Request, limit: int) -> bytes | None:
    """Return a request's body, None where it is longer than `limit`."""
    parts, size_bytes = [], 0
    async for part in request.stream():
        size_bytes += len(part)
        if size_bytes > limit:
            return None
        parts.append(part)
    return b"".join(parts)


def _replayed(body: bytes, receive: Receive) -> Receive:
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return replay


def _with_headers(scope: Scope, send: Send) -> Send:
    is_static = scope["path"].startswith("/static/")

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
            if not is_static:
                headers.setdefault("Cache-Control", "no-store")
        await send(message)

    return sending
