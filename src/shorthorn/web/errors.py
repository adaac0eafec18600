"""THE table from domain errors to HTTP statuses.

Owns every status that a page or /api/v1 answers for an error of the domain; subclasses inherit
their parent's. docs/errors.md describes each row; a test compares. What an API server refuses
(`kube.user_api.Refused`) keeps the status that it gave.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from shorthorn.domain import errors
from shorthorn.kube.user_api import Refused

if TYPE_CHECKING:
    from collections.abc import Mapping

STATUSES: Final[Mapping[type[Exception], int]] = {
    errors.InvalidArgument: 400,
    errors.NotFound: 404,
    errors.AlreadyExists: 409,
    errors.InUse: 409,
    errors.WrongState: 409,
    errors.SizeOutOfRange: 422,
    errors.NoSpace: 507,
    errors.NoAccessiblePool: 507,
    errors.OperationPending: 409,
    errors.StillWorking: 409,
    errors.Unavailable: 503,
    errors.ImageFailed: 422,
    errors.ChecksumMismatch: 422,
    errors.Corrupt: 500,
    errors.Conflict: 409,
}

RETRY_AFTER_S: Final[Mapping[type[Exception], int]] = {
    errors.OperationPending: 1,
    errors.StillWorking: 1,
    errors.Conflict: 1,
    errors.Unavailable: 2,
}
"""What a caller should wait before asking again."""


@dataclass(frozen=True, slots=True)
class Problem:
    """An error as it is told: status, stable reason, text. `retry_after_s`: 0 where none helps."""

    status: int
    reason: str
    message: str
    retry_after_s: int = 0


def problem_of(error: Exception) -> Problem | None:
    """Return how `error` is told, None for one whose text is not for callers: a bug."""
    if isinstance(error, Refused):
        return Problem(error.code, error.reason or "Refused", error.message)
    if not isinstance(error, errors.DomainError) or type(error) is errors.DomainError:
        return None
    for kind in type(error).__mro__:
        if kind in STATUSES:
            retry_after_s = RETRY_AFTER_S.get(kind, 0)
            return Problem(STATUSES[kind], error.reason, str(error), retry_after_s)
    return None
