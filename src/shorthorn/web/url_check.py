"""Is there an image at a URL? Looked at before a download is asked for.

Owns: one short request, and what its first bytes say. Must never: keep a byte. The same rules as
the download itself (`images.http_source`, `images.inspection`). Called by the form for new images
and by /api/v1.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from shorthorn.domain.errors import InvalidArgument
from shorthorn.domain.models import ImageFormat
from shorthorn.images.http_source import (
    AlreadyComplete,
    FileChanged,
    SourceRefused,
    SourceTroubled,
    open_session,
    parse_url,
    request_rest,
)
from shorthorn.images.inspection import SECTOR_BYTES, judge_head, promised_format
from shorthorn.images.refusal import NotAcceptable
from shorthorn.services.image_requests import web_url

_TIMEOUT_S: Final = 10.0
#: What tells formats apart, and a qcow2's header.
_HEAD_BYTES: Final = 64 << 10
_QCOW2_SIZE: Final = slice(24, 32)


@dataclass(frozen=True, slots=True)
class Checked:
    """`problem`: why it cannot be downloaded; empty: it can. Sizes are 0 where nobody says."""

    problem: str = ""
    format: str = ""
    size_bytes: int = 0
    virtual_size_bytes: int = 0
    note: str = ""

    @property
    def is_good(self) -> bool:
        return not self.problem


async def check_url(text: str) -> Checked:
    """Look at what `text` (a URL) serves. Never raises for what the other side does."""
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            return await _look(text)
    except (SourceRefused, SourceTroubled, FileChanged) as exc:
        return Checked(exc.problem)
    except (AlreadyComplete, TimeoutError):
        return Checked(f"the server did not begin to send within {_TIMEOUT_S:.0f} s")
    except NotAcceptable as exc:
        return Checked(str(exc))
    except InvalidArgument as exc:
        return Checked(f"this {exc.problem}")


async def _look(text: str) -> Checked:
    url = parse_url(web_url(text.strip()))
    session = open_session()
    try:
        async with request_rest(session, url, offset_bytes=0, validator="") as part:
            head = bytearray()
            async for chunk in part.chunks():
                head += chunk
                if len(head) >= _HEAD_BYTES:
                    break
            found = judge_head(bytes(head[:_HEAD_BYTES]), promised=promised_format(url.path))
            size_bytes = part.total_bytes
    finally:
        await session.close()
    if found is ImageFormat.QCOW2:
        virtual = int.from_bytes(head[_QCOW2_SIZE], "big")
        return Checked("", found, size_bytes, virtual)
    note = ""
    if size_bytes % SECTOR_BYTES:
        note = "its length is no multiple of 512 bytes, so it is padded with zeros"
    padded = -(-size_bytes // SECTOR_BYTES) * SECTOR_BYTES
    return Checked("", found, size_bytes, padded, note)
