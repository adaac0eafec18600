"""Errors that travelled through an object's status, and waiting within a caller's time.

Owns the way back from a recorded `reason` to the domain error it was, and the one budget that a
request has for all its waiting. Must never decide what a failure means for a request. Called by the
other services.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, TypeVar

from shorthorn.domain.errors import (
    DomainError,
    InUse,
    OperationPending,
    StillWorking,
    WrongState,
)
from shorthorn.domain.models import Snapshot, Volume, VolumeState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shorthorn.domain.ports import Registry, T

K = TypeVar("K", Volume, Snapshot)

#: A look at the present state is always granted, however late it is.
_LOOK_S = 0.2
#: Reasons by which a controller says that it tries in vain until somebody lets go. Waiting for that
#: would only hide it from the caller.
OBSTACLES: Final = frozenset({InUse.reason, WrongState.reason})


class Budget:
    """The time that one request may wait in all."""

    def __init__(self, timeout_s: float) -> None:
        self._ends_at = asyncio.get_running_loop().time() + timeout_s

    @property
    def left_s(self) -> float:
        """Seconds left; never less than what one look takes."""
        return max(_LOOK_S, self._ends_at - asyncio.get_running_loop().time())


def recall(reason: str, message: str, default: type[DomainError]) -> DomainError:
    """Return the error that a controller recorded: same class, same text.

    Its fields other than `reason` and the text are not there. `default` is the class where `reason`
    is not one of ours.
    """
    kind = next((k for k in _all_errors(DomainError) if k.reason == reason), default)
    error = kind.__new__(kind)
    Exception.__init__(error, message or reason)
    return error


def _all_errors(kind: type[DomainError]) -> Iterator[type[DomainError]]:
    for subclass in kind.__subclasses__():
        yield subclass
        yield from _all_errors(subclass)


async def wait_for(
    registry: Registry[T],
    name: str,
    until: Callable[[T | None], bool],
    *,
    budget: Budget,
    progress: Callable[[T | None], str] = lambda _: "",
) -> T | None:
    """Return the object as soon as `until` holds of it.

    Raises: StillWorking: not within the budget; `progress` says in words how far the object is.
    """
    try:
        return await registry.wait(name, until, timeout_s=budget.left_s)
    except TimeoutError:
        raise StillWorking(name, progress(await registry.find(name))) from None


async def wait_settled(registry: Registry[K], wanted: K, *, budget: Budget) -> K:
    """Return the volume or snapshot once it is ready, failed, or held up by who uses its source.

    Raises: OperationPending: it was deleted meanwhile. StillWorking: not within the budget.
    """
    name, uid = wanted.meta.name, wanted.meta.uid
    found = await wait_for(
        registry,
        name,
        lambda it: it is None or it.meta.uid != uid or _is_settled(it),
        budget=budget,
        progress=lambda it: it.status.message if it else "",
    )
    if found is None or found.meta.uid != uid:
        kind = type(wanted).__name__.lower()
        raise OperationPending(f"{kind} {name}, which was deleted meanwhile")
    return found


def _is_settled(found: Volume | Snapshot) -> bool:
    status = found.status
    return status.state is not VolumeState.PENDING or status.reason in OBSTACLES


async def delete_and_wait(registry: Registry[T], name: str, uid: str, *, budget: Budget) -> None:
    """Delete an object and return when it and its data are gone.

    Raises: StillWorking: deletion was asked for, and has not finished within the budget.
    """
    await registry.delete(name, uid=uid)
    await wait_for(
        registry,
        name,
        lambda found: found is None,
        budget=budget,
        progress=lambda _: "its data is being removed",
    )
