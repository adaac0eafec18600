"""Which errors end a piece of work, and which are worth another try.

Owns: that one distinction, for all reconcilers. Must never: raise or log.
"""

from __future__ import annotations

from shorthorn.domain import errors

_FINAL = (
    errors.InvalidArgument,
    errors.NotFound,
    errors.AlreadyExists,
    errors.SizeOutOfRange,
    errors.NoSpace,
    errors.ImageFailed,
    errors.Corrupt,
)


def is_final(exc: BaseException) -> bool:
    """Whether trying again without a change is useless.

    InUse, WrongState, StillWorking, Unavailable and everything unknown may pass; a reconciler tries
    those again.
    """
    return isinstance(exc, _FINAL)


def reason_of(exc: BaseException) -> str:
    """The stable CamelCase reason of an error."""
    return exc.reason if isinstance(exc, errors.DomainError) else errors.DomainError.reason
