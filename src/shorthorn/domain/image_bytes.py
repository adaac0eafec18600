"""Bytes of images for people and machines: sent to us, and fetched from us.

Owns: the port between the web's edge and whoever has the bytes (this process's pool, or the node of
an image's copy). Must never: hold an implementation, nor judge who may do it (the edge has asked).
Implemented by `images.local_bytes` and `images.peer_bytes`; called by `web`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final, Protocol

from shorthorn.domain.models import ImageKey, ImageRecord

UPLOAD_LENGTH: Final = "shorthorn.io/upload-length"
"""Annotation of a BackingImage with sourceType upload: how many bytes will come, in decimal."""

LENGTH_PARAMETER: Final = "length"
"""The same in the source parameters of the image's first copy."""

UPLOAD_SAMPLE: Final = "Upload-Sample"
"""Header by which the edge tells UploadState.sample."""

CLONE_SOURCE: Final = "backing-image"
"""Source parameter of a clone: the image that it is made of. Longhorn's word."""

CLONE_UUID: Final = "uuid"
"""Source parameter of a clone's first copy: which image of that name it was."""

IMAGE_UUID: Final = "shorthorn.io/image-uuid"
"""Annotation of a BackingImage: its status.uuid, by which its copies and their data are known.

Who puts objects back from a backup loses every status. Without this, copies of a restored image
would be taken for those of a predecessor, and their data be removed.
"""

PROMISED: Final = "shorthorn.io/point-in-time-promised"
"""Annotation of an export of which CreateSnapshot has answered the point in time before it was
ready. If it fails, it stays so: made anew, it would hold another moment's data.
"""

RETRY_AT: Final = "shorthorn.io/retry-at"
"""Annotation of a BackingImage (RFC 3339): failed copies are made anew, once for each new value."""

RETRIED: Final = "shorthorn.io/retried"
"""Annotation by which the BackingImage controller notes which RETRY_AT it has obeyed."""

VERIFY_AT: Final = "shorthorn.io/verify-at"
"""Annotation of a BackingImage (RFC 3339): ready copies are hashed again, once for each value.

The BackingImage controller hands it on to the ImageCopies that are ready; status.verifyAt of each
is the last value that its node has carried out.
"""


class Direction(StrEnum):
    """Which way bytes of images go: to us, or from us."""

    UPLOAD = "upload"
    DOWNLOAD = "download"


class ArtifactForm(StrEnum):
    """In which form an image's bytes are read."""

    #: The exact bytes that were sent, downloaded or exported.
    ARTIFACT = "artifact"
    #: What a guest sees; holes read as zeros.
    RAW = "raw"
    #: A compressed qcow2 image, made when it is asked for and kept while somebody reads it.
    QCOW2 = "qcow2"
    #: `raw`, compressed by zstandard while it is sent.
    RAW_ZST = "raw.zst"

    @property
    def has_ranges(self) -> bool:
        """Whether it is the same bytes each time, so that a part of it can be asked for."""
        return self in (ArtifactForm.ARTIFACT, ArtifactForm.RAW)


@dataclass(frozen=True, slots=True)
class UploadState:
    """How far an upload is. `offset_bytes`: what is durable; the next byte goes there.

    `sample`: of what is durable, as `domain.upload_sample` makes it; empty where it was not asked
    for, or nothing is there. It is no part of what is compared.
    """

    offset_bytes: int
    length_bytes: int
    sample: str = field(default="", compare=False)

    @property
    def is_complete(self) -> bool:
        """Whether all bytes are here: checksum, inspection and commit follow by themselves."""
        return self.offset_bytes == self.length_bytes


@dataclass(frozen=True, slots=True)
class Artifact:
    """What is read in one form.

    size_bytes: None where nobody knows before the end (raw.zst; qcow2 before it is read).
    etag: names these very bytes, so that parts of two requests can be put together: the artifact's
    SHA-512 and, for `raw`, `-raw` behind it; empty until that is known, and for other forms.
    `file_name` is what to save it as: the image's name and an extension.
    """

    size_bytes: int | None
    etag: str
    file_name: str


@dataclass(frozen=True, slots=True)
class OpenArtifact:
    """An artifact that is being read: `chunks` are bytes [start, stop) of it, up to 1 MiB each.

    `artifact.size_bytes` is that of the whole; known also for qcow2, which has been made by now.
    """

    artifact: Artifact
    chunks: AsyncIterator[bytes]


class ImageBytes(Protocol):
    """Moves bytes of images. Images are named by their BackingImage.

    All raise NotFound where there is no such image, and Unavailable where the node that has it is
    away: ask again.
    """

    async def upload_state(self, image: str) -> UploadState:
        """Return how far the upload is, with a sample of what has arrived.

        Raises NotFound: nothing awaits bytes.

        An upload is awaited from when its copy has been given to a pool (a moment after the
        BackingImage was made) until its last byte is durable. From then on it is found complete,
        also when the image is ready, so that a lost answer can be asked for again.
        """

    async def append(
        self, image: str, offset_bytes: int, chunks: AsyncIterator[bytes]
    ) -> UploadState:
        """Append what comes, from `offset_bytes` on, durably; return how far the upload is then.

        The last byte starts checksum, inspection and commit, which are told of in the copy's
        status, not here.
        Raises: NotFound: nothing awaits bytes. OffsetMismatch: it goes on elsewhere; nothing is
            taken. InUse: another connection is sending at this moment; one that was silent for
            five seconds is ended instead, with Unavailable. SizeOutOfRange: more than the promised
            length (the chunk that goes beyond is not taken). NoSpace, ImageRejected: the whole
            upload has failed, and its bytes go. Whatever `chunks` raises.
        State:  after any other error or cancellation what arrived before is durable, and stays.
        """

    async def abandon(self, image: str) -> None:
        """Give an upload up: connections end, what has arrived is removed, the copy fails.

        Raises NotFound: nothing awaits bytes.
        """

    async def describe(self, image: str, form: ArtifactForm) -> Artifact:
        """Return what would be read, without making it. Raises NotFound: no ready image."""

    def read(
        self, image: str, form: ArtifactForm, *, start: int = 0, stop: int | None = None
    ) -> AbstractAsyncContextManager[OpenArtifact]:
        """Open an image for reading, from byte `start` to before `stop` (None: the end).

        All errors but Unavailable come when it is entered. An image that is deleted meanwhile is
        still read whole. Leaving early frees everything.
        Raises: NotFound: no ready image. SizeOutOfRange: `start` or `stop` is beyond the end.
            InvalidArgument: a range of a form without (`ArtifactForm.has_ranges`). NoSpace,
            Unavailable: a qcow2 image cannot be made.
        """


class ImageCloner(Protocol):
    """Makes an image of another one's bytes within a pool."""

    async def clone(self, origin: ImageRecord, key: ImageKey, staging: Path) -> ImageRecord:
        """Leave `artifact` and `base.raw` in `staging`, equal to `origin`'s and synced.

        The record is the origin's, with `key`. Raises: NotFound: it was deleted. NoSpace.
        Unavailable: may be tried again. State: may be repeated after any failure.
        """
