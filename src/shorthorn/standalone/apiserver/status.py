"""Kubernetes `Status` objects: every answer of the API server that is not data.

Owns the wording and the codes that clients of a real kube-apiserver know by heart (kubectl prints
the message, client-go decides by `reason` and `code`). It knows nothing of HTTP beyond the number,
and no other module may build a failure body by hand. Called by everything in this package.
Source: k8s.io/apimachinery `pkg/api/errors`, `pkg/apis/meta/v1` (StatusReason).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shorthorn.standalone.apiserver.field_errors import FieldError

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Target:
    """What a failure is about: the group and resource (or kind) of the request, and the name."""

    group: str
    resource: str
    name: str = ""

    @property
    def qualified(self) -> str:
        """`persistentvolumeclaims` for the core group, `backingimages.longhorn.io` for others."""
        return f"{self.resource}.{self.group}" if self.group else self.resource


class StatusError(Exception):
    """A request that ends in a `Status` failure; `code` is the HTTP status."""

    def __init__(
        self,
        code: int,
        reason: str,
        message: str,
        *,
        target: Target | None = None,
        causes: Sequence[FieldError] = (),
        retry_after_s: int | None = None,
        uid: str = "",
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.target = target
        self.causes = tuple(causes)
        self.retry_after_s = retry_after_s
        self.uid = uid

    def as_dict(self) -> dict[str, Any]:
        """Return the `Status` object of this failure."""
        details: dict[str, Any] = {}
        if self.target is not None:
            if self.target.name:
                details["name"] = self.target.name
            if self.target.group:
                details["group"] = self.target.group
            if self.target.resource:
                details["kind"] = self.target.resource
        if self.uid:
            details["uid"] = self.uid
        if self.causes:
            details["causes"] = [_cause(error) for error in self.causes]
        if self.retry_after_s is not None:
            details["retryAfterSeconds"] = self.retry_after_s
        status: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        }
        if details:
            status["details"] = details
        return status


def _cause(error: FieldError) -> dict[str, str]:
    members = {"reason": error.reason, "message": error.message, "field": error.field}
    return {key: value for key, value in members.items() if value}


def success(target: Target, uid: str) -> dict[str, Any]:
    """Return the `Status` that answers a deletion which is complete."""
    details = {"name": target.name, "group": target.group, "kind": target.resource, "uid": uid}
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "details": {key: value for key, value in details.items() if value},
    }


def not_found(target: Target) -> StatusError:
    """404: the object is not there."""
    message = f'{target.qualified} "{target.name}" not found'
    return StatusError(404, "NotFound", message, target=target)


def no_such_resource() -> StatusError:
    """404: no such path, group, version or resource."""
    message = "the server could not find the requested resource"
    return StatusError(404, "NotFound", message)


def already_exists(target: Target) -> StatusError:
    """409: an object of that name is there."""
    message = f'{target.qualified} "{target.name}" already exists'
    return StatusError(409, "AlreadyExists", message, target=target)


def conflict(target: Target, problem: str) -> StatusError:
    """409: the object changed, or a precondition does not hold; nothing was written."""
    message = f'Operation cannot be fulfilled on {target.qualified} "{target.name}": {problem}'
    return StatusError(409, "Conflict", message, target=target)


def modified(target: Target) -> StatusError:
    """409: the caller's resourceVersion is not the current one."""
    return conflict(
        target,
        "the object has been modified; please apply your changes to the latest version and "
        "try again",
    )


def another_uid(group: str, kind: str, name: str, *, wanted: str, found: str) -> StatusError:
    """409: a deletion means another object of that name. Names the kind, not the resource."""
    problem = (
        f"the UID in the precondition ({wanted}) does not match the UID in record ({found}). "
        "The object might have been deleted and then recreated"
    )
    return conflict(Target(group, kind, name), problem)


def another_version(group: str, kind: str, name: str, *, wanted: str, found: str) -> StatusError:
    """409: a deletion means an older state of the object. Names the kind, not the resource."""
    problem = (
        f"the ResourceVersion in the precondition ({wanted}) does not match the ResourceVersion "
        f"in record ({found}). The object might have been modified"
    )
    return conflict(Target(group, kind, name), problem)


def invalid(group: str, kind: str, name: str, causes: Sequence[FieldError]) -> StatusError:
    """422: the object does not satisfy its schema or a rule; every cause is listed."""
    texts = [str(cause) for cause in causes]
    summary = texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"
    target = Target(group, kind, name)
    message = f'{target.qualified} "{name}" is invalid: {summary}'
    return StatusError(422, "Invalid", message, target=target, causes=causes)


def bad_request(message: str) -> StatusError:
    """400: the request cannot be understood."""
    return StatusError(400, "BadRequest", message)


def unknown_fields(kind: str, version: str, paths: Sequence[str]) -> StatusError:
    """400: the object has fields that its schema does not know (field validation Strict)."""
    listed = ", ".join(f'unknown field "{path}"' for path in paths)
    return bad_request(
        f'{kind} in version "{version}" cannot be handled as a {kind}: '
        f"strict decoding error: {listed}"
    )


def forbidden(target: Target, problem: str, causes: Sequence[FieldError] = ()) -> StatusError:
    """403: never allowed, whoever asks."""
    message = f'{target.qualified} "{target.name}" is forbidden: {problem}'
    return StatusError(403, "Forbidden", message, target=target, causes=causes)


def unauthorized() -> StatusError:
    """401: no bearer token, or a wrong one."""
    return StatusError(401, "Unauthorized", "Unauthorized")


def method_not_allowed(target: Target | None = None) -> StatusError:
    """405: the resource is there but does not do this."""
    message = "the server does not allow this method on the requested resource"
    return StatusError(405, "MethodNotAllowed", message, target=target)


def unsupported_media_type(message: str) -> StatusError:
    """415: the body is of a type that is not read here."""
    return StatusError(415, "UnsupportedMediaType", message)


def not_acceptable(message: str) -> StatusError:
    """406: none of the types the client would take can be written here."""
    return StatusError(406, "NotAcceptable", message)


def too_large(limit_bytes: int) -> StatusError:
    """413: the body is larger than `limit_bytes`."""
    message = f"Request entity too large: limit is {limit_bytes}"
    return StatusError(413, "RequestEntityTooLarge", message)


def expired(message: str) -> StatusError:
    """410: that resource version, or page, is no longer kept; list again."""
    return StatusError(410, "Expired", message)


def version_too_large(asked: int, current: int) -> StatusError:
    """504: the caller names a resource version that this server has not reached."""
    return StatusError(
        504,
        "Timeout",
        f"Too large resource version: {asked}, current: {current}",
        causes=[FieldError("", "ResourceVersionTooLarge", "Too large resource version")],
        retry_after_s=1,
    )


def internal_error(message: str) -> StatusError:
    """500: our own failure; the caller may repeat the request."""
    return StatusError(500, "InternalError", f"Internal error occurred: {message}")


def unavailable(message: str) -> StatusError:
    """503: not now (shutting down, disk full); nothing was written."""
    return StatusError(503, "ServiceUnavailable", message, retry_after_s=1)
