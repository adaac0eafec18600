"""Decide, once, what a file from outside is: raw, qcow2, or nothing that we take.

Owns the judgement that everything later relies on: the format found here is stored and told to
every tool. Must never run a program or be run twice over the same bytes with different rules; must
never trust what the source said about them. Called by `images.download` and `images.uploads` (on
the first bytes, only to give up early) and at the end of both (on the complete file; that counts).

Detection is oslo.utils' `format_inspector`; whatever it does not know is raw, as everywhere: boot
sectors, partition tables, ISO images and plain file systems are disks. Text that a web server sends
instead of a file, compressed files and archives are no disks, although "raw" would fit them too.
"""

from __future__ import annotations

import io
import logging
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from oslo_utils.imageutils import format_inspector

from shorthorn.domain.models import ImageFormat
from shorthorn.images import qcow2_header
from shorthorn.images.refusal import NotAcceptable

if TYPE_CHECKING:
    from pathlib import Path

# It reports, as an error, every format that a file turns out not to be.
logging.getLogger(format_inspector.__name__).setLevel(logging.CRITICAL)

SECTOR_BYTES = 512
#: The inspectors that need most (VHDX) look at 320 KiB; reading goes on no further than this.
HEAD_BYTES = 1 << 20
_FEED_BYTES = 64 << 10
#: Enough for every magic number here but those of foreign disks, which are seen at the end.
_EARLY_HEAD_BYTES = 64 << 10
#: The inspectors decide on whole regions of this size; a shorter file must not slip by as raw.
_SMALLEST_HEAD_BYTES = 4096
#: No disk that a guest sees here is larger; a header that says so is a mistake or an attack.
#: XFS would carry 8 EiB of sparse file, qcow2 tables of 64 TiB fit into QEMU's 32 MiB of L1.
VIRTUAL_SIZE_LIMIT_BYTES = 64 << 40

#: Disks with a partition table or a file system are used as they are.
_RAW_KINDS = frozenset({"raw", "gpt", "iso"})
_FOREIGN = {
    "vmdk": "a VMware disk (vmdk)",
    "vdi": "a VirtualBox disk (vdi)",
    "vhd": "a Hyper-V or Azure disk (vhd)",
    "vhdx": "a Hyper-V disk (vhdx)",
    "qed": "a QED image",
}
_COMPRESSED = (
    (b"\x1f\x8b", "gzip", "gunzip"),
    (b"\xfd7zXZ\x00", "xz", "xz -d"),
    (b"\x28\xb5\x2f\xfd", "zstd", "zstd -d"),
    (b"BZh", "bzip2", "bunzip2"),
    (b"\x04\x22\x4d\x18", "lz4", "lz4 -d"),
)
_ARCHIVES = (
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (257, b"ustar", "a tar archive (perhaps an OVA)"),
)
_DOCUMENTS = (
    (re.compile(rb"<(!doctype\s+html|html|head|body)\b", re.IGNORECASE), "an HTML page"),
    (re.compile(rb"<\?xml\b", re.IGNORECASE), "an XML document"),
    (re.compile(rb"[\[{]\s*(\"|\{|\[|\]|\})"), "a JSON document"),
)


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a file is. `virtual_size_bytes` is what a guest sees: for raw, the length padded to
    512.
    """

    format: ImageFormat
    virtual_size_bytes: int
    file_size_bytes: int
    cluster_size_bytes: int | None = None


def promised_format(url_path: str) -> ImageFormat | None:
    """Return the format that a file name promises, or None: `.img` is used for everything."""
    return ImageFormat.QCOW2 if url_path.lower().endswith((".qcow2", ".qcow2c")) else None


def inspect_file(path: Path, *, promised: ImageFormat | None = None) -> Inspection:
    """Judge a complete file. Reads at most its first MiB and a qcow2's L1 table.

    Blocks; run it in a thread. Raises: NotAcceptable. OSError: it cannot be read.
    """
    with path.open("rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        image_format = judge_head(file.read(HEAD_BYTES), promised=promised)
        if image_format is ImageFormat.RAW:
            padded = -(-size_bytes // SECTOR_BYTES) * SECTOR_BYTES
            return Inspection(ImageFormat.RAW, _sane(padded), size_bytes)
        header = qcow2_header.read_header(file, size_bytes)
    if header.virtual_size_bytes == 0:
        raise NotAcceptable("the qcow2 image holds a disk of 0 bytes")
    _sane(header.virtual_size_bytes)
    return Inspection(
        ImageFormat.QCOW2, header.virtual_size_bytes, size_bytes, header.cluster_size_bytes
    )


def judge_head(head: bytes, *, promised: ImageFormat | None = None) -> ImageFormat:
    """Judge the first bytes of a file: up to HEAD_BYTES of them, all where the file is shorter.

    Raises: NotAcceptable. The answer for a prefix that is too short may be RAW; a refusal stands.
    """
    if not head:
        raise NotAcceptable("the file is empty")
    _refuse_what_is_no_disk(head)
    kinds = _kinds(head)
    if "luks" in kinds:
        raise NotAcceptable("the file is a LUKS container; encrypted images are not supported")
    for kind in sorted(kinds & _FOREIGN.keys()):
        raise NotAcceptable(
            f"the file is {_FOREIGN[kind]}, not qcow2 or raw; convert it first: "
            "qemu-img convert -O qcow2 IN OUT"
        )
    if kinds == {"qcow2"}:
        return ImageFormat.QCOW2
    if not kinds <= _RAW_KINDS:
        raise NotAcceptable(f"the file claims to be several formats: {', '.join(sorted(kinds))}")
    if promised is ImageFormat.QCOW2:
        raise NotAcceptable("the URL names a qcow2 image, but what it serves is not qcow2")
    return ImageFormat.RAW


class EarlyHead:
    """The first bytes of a file that arrives, judged as soon as there are enough of them.

    Args: skip: the first bytes were seen before, by somebody else.
    """

    def __init__(self, promised: ImageFormat | None, *, skip: bool) -> None:
        self._promised = promised
        self._bytes = bytearray()
        self._judged = skip

    def see(self, chunk: bytes) -> None:
        """Raises: NotAcceptable."""
        if not self._judged:
            self._bytes += chunk
            if len(self._bytes) >= _EARLY_HEAD_BYTES:
                self.judge()

    def judge(self) -> None:
        """Raises: NotAcceptable."""
        if not self._judged:
            judge_head(bytes(self._bytes), promised=self._promised)
            self._judged = True
            self._bytes.clear()


def _refuse_what_is_no_disk(head: bytes) -> None:
    text = head[:1024].removeprefix(b"\xef\xbb\xbf").lstrip()
    for pattern, kind in _DOCUMENTS:
        if pattern.match(text):
            raise NotAcceptable(
                f"the file is {kind}, not a disk image; the server may have sent an error or a "
                "login page"
            )
    for magic, kind, remedy in _COMPRESSED:
        if head.startswith(magic):
            raise NotAcceptable(
                f"the file is compressed with {kind}; compressed images are not supported yet, "
                f"decompress it first: {remedy}"
            )
    for offset, magic, kind in _ARCHIVES:
        if head[offset:].startswith(magic):
            raise NotAcceptable(f"the file is {kind}, not a disk image; unpack it first")


def _kinds(head: bytes) -> set[str]:
    """Return every format whose inspector recognises `head`; {"raw"} where none does.

    A qcow2 that fails the inspector's safety checks is still qcow2 here: the strict header reader
    refuses the same things and says why.
    """
    padded = head.ljust(_SMALLEST_HEAD_BYTES, b"\0")
    wrapper = format_inspector.InspectWrapper(io.BytesIO(padded))
    try:
        while wrapper.read(_FEED_BYTES):
            pass
    finally:
        wrapper.close()
    return {str(found) for found in wrapper.formats or ()} or {"raw"}


def _sane(virtual_size_bytes: int) -> int:
    if virtual_size_bytes > VIRTUAL_SIZE_LIMIT_BYTES:
        raise NotAcceptable(
            f"the image claims a disk of {virtual_size_bytes} bytes; "
            f"at most {VIRTUAL_SIZE_LIMIT_BYTES} are accepted"
        )
    return virtual_size_bytes
