"""What can go wrong, in the words of the domain.

Owns: every error that may reach a caller, its fields and its stable `reason`. Must never: know a
gRPC code or an HTTP status (those live in one table each, at the edges) nor perform I/O. Raised by
services, engines and adapters; adapters translate what the world says (errno, exit codes,
Kubernetes statuses) with `raise … from exc`.

The tree::

    DomainError
      InvalidArgument          the caller's input is wrong; trying again without a change is useless
        InvalidHandle          a snapshot handle that cannot be read (domain.handles)
        UnsupportedCapability  an access mode, volume mode or file system we do not offer
        ImageMismatch          a handle or StorageClass contradicts the image that exists
        VolumeModeMismatch     a partitioned or unformatted image asked for as a file system
        InvalidPageToken       a list's continuation token that was never given out
      NotFound                 no such object
      AlreadyExists            same name, other content
      InUse                    something still uses it; nothing was started
      WrongState               not now; nothing was started
        OffsetMismatch         an upload goes on at another byte than the one that was named
      SizeOutOfRange           the size asked for cannot be had
      NoSpace                  the pool is full; nothing is left behind
      NoAccessiblePool         no pool where the volume may be; nothing was started
      OperationPending         another operation on the same object is running
      StillWorking             begun and not finished: ask again
      Unavailable              a part that is needed is away: ask again
      ImageFailed              an image cannot be made; the reason is final for this request
        ChecksumMismatch       bytes differ from what was promised
        ImageRejected          the bytes are not an image we accept
      Corrupt                  stored data is not what was written
      Conflict                 optimistic concurrency: somebody else was first (never leaves a
      controller)
"""

from __future__ import annotations

from shorthorn.domain.byte_sizes import exact_bytes


class DomainError(Exception):
    """Base of all. `reason` is CamelCase and stable: conditions, events and logs carry it."""

    reason = "InternalError"


class InvalidArgument(DomainError):
    """`field` (as the caller names it) is wrong; `problem` says how and what to do instead."""

    reason = "InvalidArgument"

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class UnsupportedCapability(InvalidArgument):
    """An access mode, volume mode or file system that this driver does not offer."""

    reason = "UnsupportedCapability"


class ImageMismatch(InvalidArgument):
    """The image exists, and what the request says of it is not so."""

    reason = "BackingImageMismatch"


class VolumeModeMismatch(InvalidArgument):
    """The volume's content cannot be used in this volume mode, whatever is tried."""

    reason = "VolumeModeMismatch"


class InvalidPageToken(InvalidArgument):
    """A list was to go on from a token that this driver did not give out."""

    reason = "InvalidPageToken"


class NotFound(DomainError):
    """No `kind` of that `id`. `hint` (a sentence, may be empty) names what was probably meant."""

    reason = "NotFound"

    def __init__(self, kind: str, id: str, hint: str = "") -> None:  # noqa: A002 - the field's name
        super().__init__(f"{kind} {id} not found" + (f"; {hint}" if hint else ""))
        self.kind = kind
        self.id = id
        self.hint = hint


class AlreadyExists(DomainError):
    """`kind` `id` exists and `differs` (a phrase: what is different)."""

    reason = "AlreadyExists"

    def __init__(self, kind: str, id: str, differs: str) -> None:  # noqa: A002 - the field's name
        super().__init__(f"{kind} {id} already exists: {differs}")
        self.kind = kind
        self.id = id
        self.differs = differs


class InUse(DomainError):
    """`kind` `id` is used by `by`; nothing was started."""

    reason = "InUse"

    def __init__(self, kind: str, id: str, by: str) -> None:  # noqa: A002 - the field's name
        super().__init__(f"{kind} {id} is in use by {by}")
        self.kind = kind
        self.id = id
        self.by = by


class WrongState(DomainError):
    """`kind` `id` is in `state` where `required` is needed; nothing was started."""

    reason = "WrongState"

    def __init__(self, kind: str, id: str, state: str, required: str) -> None:  # noqa: A002
        super().__init__(f"{kind} {id} is {state}; {required} is required")
        self.kind = kind
        self.id = id
        self.state = state
        self.required = required


class OffsetMismatch(WrongState):
    """The upload of `image` goes on at `offset_bytes`, not at `asked_bytes`; nothing was taken."""

    reason = "OffsetMismatch"

    def __init__(self, image: str, offset_bytes: int, asked_bytes: int) -> None:
        super().__init__(
            "the upload of", image, f"at byte {offset_bytes}", f"that offset (not {asked_bytes})"
        )
        self.offset_bytes = offset_bytes
        self.asked_bytes = asked_bytes


class SizeOutOfRange(DomainError):
    """`requested_bytes` is outside [`minimum_bytes`, `maximum_bytes`]; `what` says whose limit it
    is. The text has sizes for people and exactly.
    """

    reason = "SizeOutOfRange"

    def __init__(
        self,
        what: str,
        requested_bytes: int,
        *,
        minimum_bytes: int | None = None,
        maximum_bytes: int | None = None,
    ) -> None:
        limits = []
        if minimum_bytes is not None:
            limits.append(f"at least {exact_bytes(minimum_bytes)} needed")
        if maximum_bytes is not None:
            limits.append(f"at most {exact_bytes(maximum_bytes)} possible")
        asked = exact_bytes(requested_bytes)
        super().__init__(f"{what}: {asked} asked for, {' and '.join(limits)}")
        self.requested_bytes = requested_bytes
        self.minimum_bytes = minimum_bytes
        self.maximum_bytes = maximum_bytes


class NoSpace(DomainError):
    """The pool cannot hold it; nothing half made is left. `needed_bytes`: 0 where unknown."""

    reason = "NoSpace"

    def __init__(self, pool: str, needed_bytes: int, free_bytes: int) -> None:
        needed = f"{exact_bytes(needed_bytes)} needed, " if needed_bytes else ""
        super().__init__(f"pool {pool} is full: {needed}{exact_bytes(free_bytes)} free")
        self.pool = pool
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes


class NoAccessiblePool(DomainError):
    """`what` cannot be placed: `problem` says which pools there are and why none will do."""

    reason = "NoAccessiblePool"

    def __init__(self, what: str, problem: str) -> None:
        super().__init__(f"no pool for {what}: {problem}")
        self.what = what
        self.problem = problem


class OperationPending(DomainError):
    """Another operation on `key` is running; ask again."""

    reason = "OperationPending"

    def __init__(self, key: str) -> None:
        super().__init__(f"{key}: an operation is still running; try again")
        self.key = key


class StillWorking(DomainError):
    """`key` was begun and is not finished; `progress` says how far it is. Ask again."""

    reason = "StillWorking"

    def __init__(self, key: str, progress: str = "") -> None:
        super().__init__(f"{key} is not finished" + (f": {progress}" if progress else ""))
        self.key = key
        self.progress = progress


class Unavailable(DomainError):
    """`part` is needed and away (shutting down, an API server that does not answer); ask again."""

    reason = "Unavailable"

    def __init__(self, part: str, problem: str) -> None:
        super().__init__(f"{part}: {problem}")
        self.part = part


class ImageFailed(DomainError):
    """Image `image` cannot be made: `problem`. Final until the image is deleted or asked for
    otherwise.
    """

    reason = "BackingImageFailed"

    def __init__(self, image: str, problem: str) -> None:
        super().__init__(f"backing image {image} failed: {problem}")
        self.image = image
        self.problem = problem


class ChecksumMismatch(ImageFailed):
    """The bytes that arrived are not the bytes that were promised (SHA-512, lower-case hex)."""

    reason = "ChecksumMismatch"

    def __init__(self, image: str, expected: str, actual: str) -> None:
        super().__init__(image, f"checksum mismatch: expected SHA-512 {expected}, got {actual}")
        self.expected = expected
        self.actual = actual


class ImageRejected(ImageFailed):
    """The bytes are not an image that we accept; the message says what they are."""

    reason = "ImageRejected"


class Corrupt(DomainError):
    """`kind` `id` on disk is not what was written: `problem`."""

    reason = "Corrupt"

    def __init__(self, kind: str, id: str, problem: str) -> None:  # noqa: A002 - the field's name
        super().__init__(f"{kind} {id} is damaged: {problem}")
        self.kind = kind
        self.id = id


class Conflict(DomainError):
    """`kind` `name` changed since it was read. Controllers requeue; nothing else may see it."""

    reason = "Conflict"

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(f"{kind} {name} was changed by somebody else; read it again")
