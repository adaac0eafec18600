"""What is taken for an image and what is refused, and with which words."""

from __future__ import annotations

import contextlib
import gzip
import struct
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from shorthorn.domain.models import ImageFormat
from shorthorn.images.inspection import (
    VIRTUAL_SIZE_LIMIT_BYTES,
    inspect_file,
    judge_head,
    promised_format,
)
from shorthorn.images.refusal import NotAcceptable

CLUSTER = 65536


def qcow2(
    *,
    version: int = 3,
    backing: tuple[int, int] = (0, 0),
    cluster_bits: int = 16,
    size: int = 1 << 30,
    crypt: int = 0,
    l1: tuple[int, int] = (2, 3 * CLUSTER),
    refcount: tuple[int, int] = (CLUSTER, 1),
    snapshots: tuple[int, int] = (0, 0),
    incompatible: int = 0,
    refcount_order: int = 4,
    header_length: int = 104,
    extensions: bytes = b"",
    l1_entries: tuple[int, ...] = (),
    length: int = 5 * CLUSTER,
) -> bytes:
    """Return a qcow2 file of five clusters: header, refcount table and block, L1, one L2 table."""
    header = struct.pack(
        ">4sIQIIQIIQQIIQQQQII",
        *(b"QFI\xfb", version, *backing, cluster_bits, size, crypt, *l1, *refcount, *snapshots),
        *(incompatible, 0, 0, refcount_order, header_length),
    )
    file = bytearray(header + extensions.rjust(len(extensions) + header_length - 104, b"\0"))
    file += bytes(max(0, 5 * CLUSTER - len(file)))
    for index, entry in enumerate(l1_entries):
        struct.pack_into(">Q", file, 3 * CLUSTER + 8 * index, entry)
    return bytes(file[:length])


def extension(kind: int, data: bytes) -> bytes:
    return struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8)


ACCEPTED_QCOW2 = {
    "plain": qcow2(),
    "version 2": qcow2(version=2),
    "with an L2 table": qcow2(l1_entries=(4 * CLUSTER | 1 << 63,)),
    "dirty": qcow2(incompatible=1),
    "compression type": qcow2(incompatible=8, header_length=112),
    "unknown extension": qcow2(extensions=extension(0x12345678, b"whatever")),
    "backing format without backing file": qcow2(extensions=extension(0xE2792ACA, b"raw")),
}

REFUSED_QCOW2 = {
    "backing file": (qcow2(backing=(512, 11)), "backing file"),
    "backing file named json": (
        qcow2(backing=(512, 5), extensions=bytes(400) + b'json:{"driver":"nbd"}'),
        "backing file",
    ),
    "backing name without length": (qcow2(backing=(512, 0)), "backing file"),
    "data file bit": (qcow2(incompatible=4), "data in another file"),
    "data file name": (qcow2(extensions=extension(0x44415441, b"/etc/shadow")), "data file"),
    "data file name after others": (
        qcow2(extensions=extension(1, b"x" * 30) + extension(0x44415441, b"x")),
        "data file",
    ),
    "corrupt bit": (qcow2(incompatible=2), "marked as corrupt"),
    "extended L2": (qcow2(incompatible=16), "subclusters"),
    "unknown feature": (qcow2(incompatible=1 << 63), "not known here: 0x8000000000000000"),
    "AES": (qcow2(crypt=1), "encrypted"),
    "LUKS": (qcow2(crypt=2), "encrypted"),
    "crypto header": (qcow2(extensions=extension(0x0537BE77, bytes(16))), "encrypted"),
    "version 1": (qcow2(version=1), "version 1 is not supported"),
    "version 9": (qcow2(version=9), "version 9 is not supported"),
    "tiny clusters": (qcow2(cluster_bits=3), "cluster size"),
    "giant clusters": (qcow2(cluster_bits=63), "cluster size"),
    "exabytes": (qcow2(size=1 << 62, l1=(1 << 30, 3 * CLUSTER)), "L1 table size"),
    "more than the limit": (
        qcow2(
            size=VIRTUAL_SIZE_LIMIT_BYTES + 512,
            cluster_bits=21,
            l1=((VIRTUAL_SIZE_LIMIT_BYTES >> 39) + 1, 1 << 21),
            refcount=(1 << 21, 1),
            length=5 * CLUSTER,
        )
        + bytes(4 << 20),
        "at most",
    ),
    "empty disk": (qcow2(size=0), "0 bytes"),
    "short L1": (qcow2(l1=(1, 3 * CLUSTER)), "L1 table size"),
    "huge L1": (qcow2(l1=(1 << 31, 3 * CLUSTER)), "L1 table size"),
    "L1 beyond the end": (qcow2(l1=(2, 1 << 40)), "truncated"),
    "L1 misaligned": (qcow2(l1=(2, 3 * CLUSTER + 1)), "misplaced L1"),
    "L1 at nowhere": (qcow2(l1=(2, 0)), "misplaced L1"),
    "L2 beyond the end": (qcow2(l1_entries=(1 << 40,)), "truncated"),
    "refcount table beyond the end": (qcow2(refcount=(1 << 40, 1)), "truncated"),
    "no refcount table": (qcow2(refcount=(0, 0)), "refcount"),
    "endless refcount table": (qcow2(refcount=(CLUSTER, 1 << 31)), "truncated"),
    "refcount width": (qcow2(refcount_order=60), "refcount width"),
    "snapshots beyond the end": (qcow2(snapshots=(1, 1 << 40)), "truncated"),
    "too many snapshots": (qcow2(snapshots=(1 << 30, CLUSTER)), "internal snapshots"),
    "header length": (qcow2(header_length=1 << 20), "header length"),
    "endless extension": (
        qcow2(extensions=struct.pack(">II", 7, 0xFFFFFFFF)),
        "extension is too long",
    ),
    "half a header": (qcow2(length=50), "truncated"),
    "header only": (qcow2(length=104), "truncated"),
    "cut in the L1 table": (qcow2(length=3 * CLUSTER + 4), "truncated"),
}

REFUSED_OTHERS = {
    "empty": (b"", "empty"),
    "HTML": (b"\n <!DOCTYPE html><html><body>404</body></html>", "an HTML page"),
    "HTML without doctype": (b"<html lang=en>", "an HTML page"),
    "HTML with a byte order mark": (b"\xef\xbb\xbf<HTML>", "an HTML page"),
    "XML": (b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>', "an XML document"),
    "JSON": (b'{"message": "not found"}', "a JSON document"),
    "JSON list": (b"[\n  {}]", "a JSON document"),
    "gzip": (gzip.compress(bytes(4096)), "compressed with gzip"),
    "xz": (b"\xfd7zXZ\x00" + bytes(600), "compressed with xz"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(600), "compressed with zstd"),
    "bzip2": (b"BZh91AY&SY" + bytes(600), "compressed with bzip2"),
    "zip": (b"PK\x03\x04" + bytes(600), "zip archive"),
    "tar": (b"disk.vmdk".ljust(257, b"\0") + b"ustar\x0000" + bytes(600), "tar archive"),
    "vmdk": (b"KDMV\x01\0\0\0" + bytes(2000), "vmdk"),
    "vdi": (bytes(64) + struct.pack("<I", 0xBEDA107F) + bytes(2000), "vdi"),
    "vhd": (b"conectix" + bytes(2000), "vhd"),
    "vhdx": (b"vhdxfile" + bytes(400 << 10), "vhdx"),
    "qed": (b"QED\0" + bytes(2000), "QED"),
    "LUKS": (b"LUKS\xba\xbe\0\x01" + bytes(2000), "LUKS"),
}


def _write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("data", ACCEPTED_QCOW2.values(), ids=ACCEPTED_QCOW2)
def test_a_sound_qcow2_is_accepted(tmp_path: Path, data: bytes) -> None:
    found = inspect_file(_write(tmp_path / "image", data))
    assert found.format is ImageFormat.QCOW2
    assert found.virtual_size_bytes == 1 << 30
    assert found.file_size_bytes == len(data)
    assert found.cluster_size_bytes == CLUSTER


@pytest.mark.parametrize(
    ("data", "words"),
    (REFUSED_QCOW2 | REFUSED_OTHERS).values(),
    ids=REFUSED_QCOW2 | REFUSED_OTHERS,
)
def test_a_hostile_or_foreign_file_is_refused_in_plain_words(
    tmp_path: Path, data: bytes, words: str
) -> None:
    with pytest.raises(NotAcceptable) as refused:
        inspect_file(_write(tmp_path / "image", data))
    assert words in refused.value.problem
    assert "\n" not in refused.value.problem


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(bytes(4096), id="zeros"),
        pytest.param(bytes(510) + b"\x55\xaa" + bytes(4096), id="boot sector"),
        pytest.param(bytes(510) + b"\x55\xaaEFI PART" + bytes(40000), id="GPT"),
        pytest.param(bytes(32768) + b"\x01CD001\x01" + bytes(40000), id="ISO 9660"),
        pytest.param(b"[boot loader]\n" + bytes(600), id="text in brackets"),
        pytest.param(bytes(1024) + b"QFI\xfb" + bytes(600), id="qcow2 magic elsewhere"),
        pytest.param(b"\x00", id="one byte"),
    ],
)
def test_anything_else_is_a_raw_disk(tmp_path: Path, data: bytes) -> None:
    found = inspect_file(_write(tmp_path / "image", data))
    assert found.format is ImageFormat.RAW
    assert found.file_size_bytes == len(data)
    assert found.virtual_size_bytes == -(-len(data) // 512) * 512


def test_a_raw_file_where_the_url_promises_qcow2_is_refused(tmp_path: Path) -> None:
    path = _write(tmp_path / "image", bytes(4096))
    with pytest.raises(NotAcceptable, match="names a qcow2 image"):
        inspect_file(path, promised=promised_format("/images/Parrot.QCOW2"))
    assert inspect_file(path, promised=promised_format("/images/disk.img")).format == "raw"


def test_a_refusal_needs_only_the_first_bytes() -> None:
    with pytest.raises(NotAcceptable, match="gzip"):
        judge_head(gzip.compress(b"x")[:4])


def test_inspection_of_a_large_file_costs_little(tmp_path: Path) -> None:
    path = tmp_path / "image"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    inspect_file(path)  # imports and caches
    tracemalloc.start()
    started = time.process_time()
    assert inspect_file(path).virtual_size_bytes == 1 << 40
    assert time.process_time() - started < 1
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


@settings(max_examples=300, suppress_health_check=list(HealthCheck))
@given(data=st.binary(max_size=4096))
@example(data=b"QFI\xfb")
@example(data=b"QFI\xfb\0\0\0\3" + b"\xff" * 200)
def test_no_input_crashes_the_inspection(tmp_path: Path, data: bytes) -> None:
    path = _write(tmp_path / "image", data)
    with contextlib.suppress(NotAcceptable):
        inspect_file(path)


@settings(max_examples=300, suppress_health_check=list(HealthCheck))
@given(
    changes=st.lists(st.tuples(st.integers(0, 111), st.integers(0, 255)), min_size=1, max_size=12),
    kind=st.sampled_from(["qcow2", "vmdk", "vhdx", "vdi", "LUKS"]),
)
def test_no_damaged_header_crashes_the_inspection(
    tmp_path: Path, changes: list[tuple[int, int]], kind: str
) -> None:
    data = bytearray(qcow2() if kind == "qcow2" else REFUSED_OTHERS[kind][0])
    for offset, value in changes:
        data[offset] = value
    path = _write(tmp_path / "image", bytes(data))
    with contextlib.suppress(NotAcceptable):
        assert 0 < inspect_file(path).virtual_size_bytes <= VIRTUAL_SIZE_LIMIT_BYTES
