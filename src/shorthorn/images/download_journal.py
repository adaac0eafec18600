"""How far a download is, in a file beside its bytes, so that the next process goes on.

Owns `download.json` in an image's staging directory (any JSON file there keeps the directory from
the sweep at start). Must never be ahead of the bytes: it is written after they are durable. Called
by `images.download` and `images.fetcher`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from shorthorn.host import files

if TYPE_CHECKING:
    from pathlib import Path

JOURNAL_NAME = "download.json"
FORMAT_VERSION = 1


class DownloadJournal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was durable at some moment.

    `etag` and `last_modified` name the version of the source's file, empty where it gave none.
    `total_bytes` is 0 where unknown. `checksum` is set when all bytes are there and hashed.
    """

    url: str
    etag: str = ""
    last_modified: str = ""
    total_bytes: int = 0
    durable_bytes: int = 0
    checksum: str = ""
    format_version: int = FORMAT_VERSION

    @property
    def validator(self) -> str:
        """The If-Range value that proves the source still has the same file; empty: none can.

        A weak ETag must not be used for ranges (RFC 9110, 13.1.5); one that no header can carry
        cannot be.
        """
        found = self.etag if self.etag.startswith('"') else self.last_modified
        return found if found.isprintable() else ""


async def write_journal(staging: Path, journal: DownloadJournal) -> None:
    """Replace the journal, durably."""
    await files.write_json_atomic(staging / JOURNAL_NAME, msgspec.to_builtins(journal))


def read_journal(staging: Path, url: str) -> DownloadJournal | None:
    """Return the journal if it is of this URL and this format version; damage counts as none."""
    try:
        journal = msgspec.json.decode((staging / JOURNAL_NAME).read_bytes(), type=DownloadJournal)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None
    return journal if (journal.url, journal.format_version) == (url, FORMAT_VERSION) else None
