"""What every request passes before a page sees it.

Owns: the security headers, the check of Host and Origin, finding the session, and refusing unsafe
requests that do not carry the session's form token. Must never: know a page. An ASGI middleware;
wired by `web.app`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final
from urllib.parse import SplitResult, parse_qs, quote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response

from shorthorn.web.errors import Problem
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
    # Not no-referrer: browsers then send `Origin: null` with our own forms.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
#: Forms are small; what is larger comes with the header.
FORM_BYTES_MAX: Final = 256 << 10
_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_OPEN: Final = frozenset(
    {"/login", "/healthz", "/readyz", "/metrics", "/api/v1", "/api/openapi.json", "/favicon.ico"}
)
_FORM: Final = "application/x-www-form-urlencoded"
#: The longest address that is come back to after signing in.
_BACK_CHARS_MAX: Final = 2000

#: The reason of a refused form that may be sent again once it was opened anew.
PAGE_TOO_OLD: Final = "PageTooOld"


class Guard:
    """`hosts`: what the Host header may be; None: anything (a proxy in front decides). `refuse`
    answers a problem as the page, or the API, does.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        sessions: Sessions,
        cookie: str,
        hosts: Collection[str] | None,
        refuse: Callable[[Request, Problem], Response],
    ) -> None:
        self._app = app
        self._sessions = sessions
        self._cookie = cookie
        self._hosts = hosts
        self._refuse = refuse

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
        return to_login(request, is_ended=self._cookie in request.cookies)

    def _session(self, request: Request) -> Session | None:
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and token.strip():
            return Session("the token's user", token.strip())
        cookie = request.cookies.get(self._cookie, "")
        return self._sessions.find(cookie) if cookie else None

    async def _refuse_forged(
        self, request: Request, receive: Receive
    ) -> tuple[Response | None, Receive]:
        """Refuse an unsafe request that another site's page could have sent."""
        session = request.state.session
        if request.method in _SAFE or (session is not None and not session.id):
            return None, receive
        if not is_own_origin(request.headers):
            foreign = Problem(403, "ForeignPage", "another site's page sent this request")
            return self._refuse(request, foreign), receive
        if session is None:  # signing in: nothing is there yet that could be misused
            return None, receive
        presented = request.headers.get("x-csrf-token", "")
        if not presented and request.headers.get("content-type", "").startswith(_FORM):
            body = await read_limited(request, FORM_BYTES_MAX)
            if body is None:
                large = Problem(413, "FormTooLarge", f"at most {FORM_BYTES_MAX} bytes are read")
                return self._refuse(request, large), receive
            fields = parse_qs(body.decode("utf-8", "replace"))
            presented = fields.get("csrf_token", [""])[0]
            receive = _replayed(body, receive)
        if not self._sessions.is_form_token(session, presented):
            told = "this page is more than a day old, or somebody else is signed in by now"
            return self._refuse(request, Problem(403, PAGE_TOO_OLD, told)), receive
        return None, receive


def is_own_origin(headers: Headers) -> bool:
    """Whether a browser says that the request comes from one of our pages, or says nothing."""
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return False
    origin = headers.get("origin")
    return origin is None or _split(origin).netloc.lower() == headers.get("host", "").lower()


def is_by_tls(request: Request) -> bool:
    """Whether the browser came by TLS, as far as a proxy in front says so. Only for `Secure`."""
    forwarded = request.headers.get("x-forwarded-proto", "")
    return request.url.scheme == "https" or forwarded.split(",")[0].strip() == "https"


def to_login(request: Request, *, is_ended: bool) -> Response:
    """Answer a request without a session: scripts by 401, people by the way to the login page.

    What htmx asked for is a piece of a page, on which somebody may be typing: the page stays, and
    its script says that the session has ended. `is_ended`: there was one; a form tells that too.
    """
    if request.url.path.startswith("/api/") or is_for_script(request):
        told = {"reason": "Unauthorized", "message": "sign in, or send a bearer token"}
        return JSONResponse(told, 401, {"WWW-Authenticate": "Bearer"})
    if request.headers.get("hx-request"):
        return PlainTextResponse("your session has ended\n", 401)
    fields = {"ended": "1"} if is_ended or request.method not in _SAFE else {}
    back = page_of(request)
    if back != "/":
        fields["next"] = back
    query = "&".join(f"{key}={quote(value)}" for key, value in fields.items())
    return RedirectResponse("/login" + (f"?{query}" if query else ""), 303)


def is_for_script(request: Request) -> bool:
    """Whether the answer is read by a script, which can do nothing with a page."""
    is_json = request.headers.get("accept", "").startswith("application/json")
    return is_json or request.url.path in ("/events", "/session")


def page_of(request: Request) -> str:
    """Return the page that somebody is on: the one asked for, or that of the form that was sent."""
    here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    if request.method in _SAFE:
        return own_path(here)
    referrer = _split(request.headers.get("referer", ""))
    if referrer.netloc.lower() != request.headers.get("host", "").lower():
        return own_path(here)
    return own_path(referrer.path + (f"?{referrer.query}" if referrer.query else ""))


def own_path(path: str) -> str:
    """Return where to go on; `/` for what is no page of ours, another site above all."""
    is_plain = path.isascii() and path.isprintable() and "\\" not in path  # which browsers mend
    parts = _split(path) if is_plain and len(path) <= _BACK_CHARS_MAX else None
    if parts is None or parts.scheme or parts.netloc or not path.startswith("/"):
        return "/"
    return "/" if path.startswith("//") or parts.path in ("/login", "/logout") else path


def _split(url: str) -> SplitResult:
    """Return the parts of what a stranger calls a URL; all are empty where it is none (`//[`)."""
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")


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
