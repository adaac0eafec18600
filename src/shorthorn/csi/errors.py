"""THE table from domain errors to gRPC codes.

Owns every code that this driver answers. A code is chosen by what the callers make of it:
external-provisioner takes all codes but ABORTED, UNAVAILABLE, CANCELLED and DEADLINE_EXCEEDED as
final and forgets the volume, so those are never given while something half made may remain.
Subclasses inherit their parent's code. docs/errors.md describes each row; a test compares.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from grpc import StatusCode

from shorthorn.domain import errors

if TYPE_CHECKING:
    from collections.abc import Mapping

CODES: Final[Mapping[type[Exception], StatusCode]] = {
    errors.InvalidArgument: StatusCode.INVALID_ARGUMENT,
    errors.InvalidPageToken: StatusCode.ABORTED,  # the specification's code for it
    errors.NotFound: StatusCode.NOT_FOUND,
    errors.AlreadyExists: StatusCode.ALREADY_EXISTS,
    errors.InUse: StatusCode.FAILED_PRECONDITION,
    errors.WrongState: StatusCode.FAILED_PRECONDITION,
    errors.SizeOutOfRange: StatusCode.OUT_OF_RANGE,
    errors.NoSpace: StatusCode.RESOURCE_EXHAUSTED,
    errors.NoAccessiblePool: StatusCode.RESOURCE_EXHAUSTED,
    errors.OperationPending: StatusCode.ABORTED,
    errors.StillWorking: StatusCode.ABORTED,
    errors.Unavailable: StatusCode.UNAVAILABLE,
    errors.ImageFailed: StatusCode.FAILED_PRECONDITION,
    errors.ChecksumMismatch: StatusCode.DATA_LOSS,
    errors.Corrupt: StatusCode.DATA_LOSS,
    errors.Conflict: StatusCode.ABORTED,
}


@dataclass(frozen=True, slots=True)
class Override:
    """Another code for one RPC, and why."""

    code: StatusCode
    because: str


_EXCEEDS = Override(
    StatusCode.FAILED_PRECONDITION,
    "the specification's code for 'exceeds capabilities' when staging and publishing",
)
_MAY_REMAIN = Override(
    StatusCode.ABORTED,
    "something may be half made after an unexpected error, and a final code would forget it",
)
OVERRIDES: Final[Mapping[tuple[str, type[Exception]], Override]] = {
    ("NodeStageVolume", errors.UnsupportedCapability): _EXCEEDS,
    ("NodePublishVolume", errors.UnsupportedCapability): _EXCEEDS,
    ("CreateVolume", Exception): _MAY_REMAIN,
    ("CreateSnapshot", Exception): _MAY_REMAIN,
}


def code_of(error: Exception, rpc: str) -> StatusCode:
    """Return the code for `error` raised in `rpc` (the method's bare name)."""
    if isinstance(error, NotImplementedError):
        return StatusCode.UNIMPLEMENTED
    for kind in type(error).__mro__:
        if not issubclass(kind, Exception):
            break
        override = OVERRIDES.get((rpc, kind))
        if override:
            return override.code
        if kind in CODES:
            return CODES[kind]
    return StatusCode.INTERNAL


def is_expected(error: Exception) -> bool:
    """Whether the error's text was written for callers; any other may hold what is not theirs."""
    if isinstance(error, errors.DomainError):
        return type(error) is not errors.DomainError
    return isinstance(error, NotImplementedError)
