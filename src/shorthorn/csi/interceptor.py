"""What surrounds every RPC: errors become codes, each call is logged once, time is bounded.

Owns the only place where a status is set. Must never log a request's fields other than the names of
what it is about (others are secrets, or URLs with credentials), nor show a caller the text of an
unexpected error.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from typing import TYPE_CHECKING, Any, Final

import grpc
from grpc import StatusCode, aio

from shorthorn.csi.errors import code_of, is_expected
from shorthorn.domain.handles import find_backing_image

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_log = logging.getLogger(__name__)

#: Longest wait in one call, below the sidecars' --timeout=110s.
BUDGET_S_MAX: Final = 100.0
#: Kept for the answer's way back, at most; of a short deadline only a fifth.
_MARGIN_S = 1.0
#: What a call is about. Everything else in a request may be secret.
_LOGGED_FIELDS = ("name", "volume_id", "snapshot_id", "source_volume_id", "target_path")
#: Codes that tell of a normal course of things.
_QUIET = frozenset({StatusCode.ABORTED, StatusCode.NOT_FOUND, StatusCode.UNIMPLEMENTED})
_CONTROLLER = "/csi.v1.Controller/"
#: Sidecars ask it once when they start, and end where it is refused; it is the same for ever.
_NEVER_REFUSED = f"{_CONTROLLER}ControllerGetCapabilities"


def budget_s(context: aio.ServicerContext[Any, Any]) -> float:
    """Return how long a call may wait: its deadline less a margin, never more than 100 s."""
    remaining_s = context.time_remaining()
    if remaining_s is None:
        return BUDGET_S_MAX
    return max(0.0, min(remaining_s - min(_MARGIN_S, remaining_s / 5), BUDGET_S_MAX))


class CallInterceptor(aio.ServerInterceptor):
    """Wraps every unary call. `check` may refuse those of the Controller service, by raising; but
    not the question what that service can do.
    """

    def __init__(self, check: Callable[[], None] = lambda: None) -> None:
        self._check = check

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Return the handler with its behaviour wrapped; all of CSI's calls here are unary."""
        handler = await continuation(handler_call_details)
        if handler is None or handler.unary_unary is None:
            return handler
        method = str(handler_call_details.method)
        behaviour: Any = handler.unary_unary

        async def checked(request: Any, context: Any) -> Any:
            if method.startswith(_CONTROLLER) and method != _NEVER_REFUSED:
                self._check()
            return await behaviour(request, context)

        async def call(request: Any, context: Any) -> Any:
            return await _call(method.rpartition("/")[2], checked, request, context)

        return grpc.unary_unary_rpc_method_handler(
            call,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )


async def _call(rpc: str, behaviour: Any, request: Any, context: Any) -> Any:
    started = time.monotonic()
    try:
        response = await behaviour(request, context)
    except asyncio.CancelledError:
        _log.info("%s %s: caller left after %.0f ms", rpc, _subject(request), _elapsed_ms(started))
        raise
    except aio.AbortError:
        raise
    except Exception as error:
        code = code_of(error, rpc)
        text = _log_failure(rpc, request, error, code, started)
        await context.abort(code, text)
        raise AssertionError("abort raises") from error
    _log.debug("%s %s: OK in %.0f ms", rpc, _subject(request), _elapsed_ms(started))
    return response


def _log_failure(rpc: str, request: Any, error: Exception, code: StatusCode, started: float) -> str:
    """Log once; return the text that the caller may see."""
    subject, elapsed_ms = _subject(request), _elapsed_ms(started)
    if not is_expected(error):
        error_id = uuid.uuid4().hex[:12]
        _log.error(
            "%s %s: unexpected error %s after %.0f ms",
            *(rpc, subject, error_id, elapsed_ms),
            exc_info=error,
        )
        return f"unexpected error {error_id}; the log of shorthorn has the details"
    level = logging.INFO if code in _QUIET else logging.WARNING
    _log.log(level, "%s %s: %s in %.0f ms: %s", rpc, subject, code.name, elapsed_ms, error)
    return str(error) or rpc


def _subject(request: Any) -> str:
    fields = request.DESCRIPTOR.fields_by_name
    shown = (
        f"{name}={_without_query(getattr(request, name))}"
        for name in _LOGGED_FIELDS
        if name in fields and getattr(request, name)
    )
    return " ".join(shown) or "-"


def _without_query(value: str) -> str:
    """Return a name or handle as it may be logged: of a query, the image's name alone."""
    image = find_backing_image(value)
    return value.partition("?")[0] + (f"?backingImage={image}" if image else "")


def _elapsed_ms(started: float) -> float:
    return (time.monotonic() - started) * 1000
