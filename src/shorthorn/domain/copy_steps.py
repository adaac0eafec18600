"""What can be done next about the copies of an image.

Owns: the steps of a plan, as values. Must never: decide or carry out any. Made by `domain.copies`
and `domain.clone_plan`, carried out by `controllers.backing_images`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from shorthorn.domain.models import Pool


@dataclass(frozen=True, slots=True)
class CreateCopy:
    """Make a copy on `pool`, from `source_type`."""

    pool: Pool
    source_type: str


@dataclass(frozen=True, slots=True)
class RemoveCopy:
    """Delete the ImageCopy `name`; `why` in words."""

    name: str
    why: str


@dataclass(frozen=True, slots=True)
class DropWish:
    """Take `pool_uuid` out of spec.diskFileSpecMap: nobody used what was asked for there."""

    pool_uuid: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """The image cannot be made, or is lost: say so."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Something is lacking, and `message` says what. `until`: when time alone changes that."""

    reason: str
    message: str
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class NoteRetry:
    """Note on the image that its request to be made anew, `value`, has been obeyed."""

    value: str


CopyStep = CreateCopy | RemoveCopy | DropWish | Refuse | Wait | NoteRetry
