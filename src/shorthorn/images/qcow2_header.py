"""Strict reading of a qcow2 header, before any QEMU tool sees the file.

Owns the fields of the header and its extensions that decide whether an image stands alone and is
complete. Must never follow an offset without a bound, read more than the header's cluster and the
L1 table, or accept what it does not know. Called by `images.inspection`. Format: QEMU
docs/interop/qcow2.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO

from shorthorn.images.refusal import NotAcceptable

MAGIC = b"QFI\xfb"
#: magic, version, backing offset and size, cluster bits, size, crypt method, L1 entries and offset,
#: refcount table offset and clusters, snapshots and their offset.
_V2 = struct.Struct(">4sIQIIQIIQQIIQ")
#: incompatible, compatible, autoclear features, refcount order, header length.
_V3 = struct.Struct(">QQQII")
_EXTENSION = struct.Struct(">II")

_DIRTY, _CORRUPT, _DATA_FILE, _COMPRESSION, _EXTENDED_L2 = (1 << bit for bit in range(5))
_EXTENSION_END = 0
_EXTENSION_DATA_FILE = 0x44415441
_EXTENSION_CRYPTO = 0x0537BE77

#: QEMU's own bounds (block/qcow2.h): cluster sizes, longest L1 table, refcount table and snapshot
#: count.
_CLUSTER_BITS = range(9, 22)
_L1_BYTES_MAX = 32 << 20
_REFCOUNT_TABLE_BYTES_MAX = 8 << 20
_SNAPSHOTS_MAX = 65536
_SNAPSHOT_BYTES_MIN = 40
_OFFSET_MASK = 0x00FF_FFFF_FFFF_FE00


@dataclass(frozen=True, slots=True)
class Qcow2Header:
    """What we keep of an accepted header."""

    version: int
    virtual_size_bytes: int
    cluster_size_bytes: int


def read_header(file: BinaryIO, file_size_bytes: int) -> Qcow2Header:
    """Read and judge the header of an open qcow2 file; cost is bounded by the L1 table's 32 MiB.

    Raises: NotAcceptable: with a sentence for the user.
    """
    file.seek(0)
    raw = file.read(_V2.size + _V3.size)
    if len(raw) < _V2.size:
        raise NotAcceptable("the qcow2 image is truncated: its header is incomplete")
    # fmt: off
    (magic, version, backing_offset, backing_size, cluster_bits, virtual_size, crypt_method,
     l1_entries, l1_offset, refcount_offset, refcount_clusters, snapshots, snapshots_offset,
    ) = _V2.unpack_from(raw)
    # fmt: on
    if magic != MAGIC:
        raise NotAcceptable("the file is not a qcow2 image")
    if version not in (2, 3):
        raise NotAcceptable(f"qcow2 version {version} is not supported; versions 2 and 3 are")
    if backing_offset or backing_size:
        raise NotAcceptable(
            "the qcow2 image refers to a backing file; flatten it first: "
            "qemu-img convert -O qcow2 IN OUT"
        )
    if crypt_method:
        raise NotAcceptable("the qcow2 image is encrypted, which is not supported")
    if cluster_bits not in _CLUSTER_BITS:
        raise NotAcceptable(f"the qcow2 header is damaged: cluster size 2^{cluster_bits}")
    cluster = 1 << cluster_bits
    if version == 3:
        _judge_version_3(file, raw, cluster)
    bounds = _Bounds(file_size_bytes, cluster)
    bounds.hold("refcount table", refcount_offset, refcount_clusters * cluster)
    if not refcount_clusters or refcount_clusters * cluster > _REFCOUNT_TABLE_BYTES_MAX:
        raise NotAcceptable("the qcow2 header is damaged: impossible refcount table size")
    if snapshots > _SNAPSHOTS_MAX:
        raise NotAcceptable(f"the qcow2 header is damaged: {snapshots} internal snapshots")
    if snapshots:
        bounds.hold("snapshot table", snapshots_offset, snapshots * _SNAPSHOT_BYTES_MIN)
    _judge_l1(file, bounds, l1_offset, l1_entries, virtual_size)
    return Qcow2Header(version, virtual_size, cluster)


@dataclass(frozen=True, slots=True)
class _Bounds:
    file_size_bytes: int
    cluster: int

    def hold(self, what: str, offset: int, length: int) -> None:
        """Refuse a table that is not aligned to a cluster or does not lie inside the file."""
        if offset % self.cluster or (length and not offset):
            raise NotAcceptable(f"the qcow2 header is damaged: misplaced {what}")
        if offset + length > self.file_size_bytes:
            raise NotAcceptable(
                f"the qcow2 image is truncated: its {what} ends at byte {offset + length}, "
                f"the file has {self.file_size_bytes}"
            )


def _judge_version_3(file: BinaryIO, raw: bytes, cluster: int) -> None:
    if len(raw) < _V2.size + _V3.size:
        raise NotAcceptable("the qcow2 image is truncated: its header is incomplete")
    incompatible, _, _, refcount_order, header_length = _V3.unpack_from(raw, _V2.size)
    if incompatible & _DATA_FILE:
        raise NotAcceptable(
            "the qcow2 image keeps its data in another file, which is not supported"
        )
    if incompatible & _CORRUPT:
        raise NotAcceptable(
            "the qcow2 image is marked as corrupt; repair it: qemu-img check -r all"
        )
    if incompatible & _EXTENDED_L2:
        raise NotAcceptable(
            "the qcow2 image uses subclusters (extended L2), which are not supported"
        )
    unknown = incompatible & ~(_DIRTY | _COMPRESSION)
    if unknown:
        raise NotAcceptable(f"the qcow2 image needs features that are not known here: {unknown:#x}")
    if refcount_order > 6:
        raise NotAcceptable("the qcow2 header is damaged: impossible refcount width")
    if not _V2.size + _V3.size <= header_length <= cluster or header_length % 8:
        raise NotAcceptable("the qcow2 header is damaged: impossible header length")
    file.seek(0)
    _judge_extensions(file.read(cluster), header_length)


def _judge_extensions(first_cluster: bytes, offset: int) -> None:
    """Walk the header extensions; each is at least 8 bytes, so the walk ends with the cluster."""
    while offset + _EXTENSION.size <= len(first_cluster):
        kind, length = _EXTENSION.unpack_from(first_cluster, offset)
        if kind == _EXTENSION_END:
            return
        if kind == _EXTENSION_DATA_FILE:
            raise NotAcceptable("the qcow2 image names a data file, which is not supported")
        if kind == _EXTENSION_CRYPTO:
            raise NotAcceptable("the qcow2 image is encrypted, which is not supported")
        offset += _EXTENSION.size + (length + 7) // 8 * 8
    if offset > len(first_cluster):
        raise NotAcceptable("the qcow2 header is damaged: a header extension is too long")


def _judge_l1(
    file: BinaryIO, bounds: _Bounds, offset: int, entries: int, virtual_size_bytes: int
) -> None:
    """Refuse an L1 table that is too short for the disk, or that points outside of the file."""
    cluster = bounds.cluster
    reach = cluster // 8 * cluster  # bytes of disk that one L2 table maps
    if entries * 8 > _L1_BYTES_MAX or entries < -(-virtual_size_bytes // reach):
        raise NotAcceptable("the qcow2 header is damaged: impossible L1 table size")
    if not entries:
        return
    bounds.hold("L1 table", offset, entries * 8)
    file.seek(offset)
    table = file.read(entries * 8)
    last = max(entry & _OFFSET_MASK for (entry,) in struct.iter_unpack(">Q", table))
    if last + cluster > bounds.file_size_bytes:
        raise NotAcceptable(
            f"the qcow2 image is truncated or damaged: an L2 table ends at byte {last + cluster}, "
            f"the file has {bounds.file_size_bytes}"
        )
