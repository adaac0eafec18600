"""Our judgement of a file against QEMU's own, on images that QEMU makes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shorthorn.domain.models import ImageFormat
from shorthorn.host import qemu_img
from shorthorn.images.base_image import make_base
from shorthorn.images.inspection import inspect_file
from shorthorn.images.refusal import NotAcceptable
from shorthorn.kit import process

pytestmark = pytest.mark.root

MIB = 1 << 20


async def _qemu_img(*words: str | Path) -> None:
    await process.run(["qemu-img", *words], timeout_s=30)


@pytest.mark.parametrize(
    "options",
    [
        "compat=1.1",
        "compat=0.10",
        "cluster_size=512",
        "cluster_size=2097152",
        "lazy_refcounts=on",
        "refcount_bits=1",
        "refcount_bits=64",
        "compression_type=zstd",
        "preallocation=metadata",
    ],
)
async def test_every_kind_of_plain_qcow2_is_seen_as_qemu_sees_it(
    tmp_path: Path, options: str
) -> None:
    image = tmp_path / "image"
    await _qemu_img("create", "-q", "-f", "qcow2", "-o", options, image, str(70 * MIB + 512))
    ours, theirs = inspect_file(image), await qemu_img.info(image, ImageFormat.QCOW2)
    assert ours.format is theirs.format
    assert ours.virtual_size_bytes == theirs.virtual_size_bytes
    assert ours.cluster_size_bytes == theirs.cluster_size_bytes
    assert (await qemu_img.check(image)).is_sound


async def test_a_qcow2_with_internal_snapshots_is_accepted(tmp_path: Path) -> None:
    image = tmp_path / "image"
    await _qemu_img("create", "-q", "-f", "qcow2", image, "64M")
    await _qemu_img("snapshot", "-c", "before", image)
    assert inspect_file(image).format is ImageFormat.QCOW2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        pytest.param("-f qcow2 -b {base} -F raw", "backing file", id="backing file"),
        pytest.param("-f qcow2 -o data_file={data}", "data in another file", id="data file"),
        pytest.param(
            "-f qcow2 -o data_file={data},data_file_raw=on", "data in another file", id="raw data"
        ),
        pytest.param("-f qcow2 -o extended_l2=on", "subclusters", id="extended L2"),
        pytest.param("-f vmdk", "vmdk", id="vmdk"),
        pytest.param("-f vmdk -o subformat=streamOptimized", "vmdk", id="streamed vmdk"),
        pytest.param("-f vdi", "vdi", id="vdi"),
        pytest.param("-f vpc", "vhd", id="vhd"),
        pytest.param("-f vhdx", "vhdx", id="vhdx"),
        pytest.param("-f qed", "QED", id="qed"),
    ],
)
async def test_what_qemu_makes_and_we_do_not_take_is_refused(
    tmp_path: Path, words: str, said: str
) -> None:
    base, data, image = tmp_path / "base", tmp_path / "data", tmp_path / "image"
    base.write_bytes(bytes(64 * MIB))
    filled = words.format(base=base, data=data).split()
    await _qemu_img("create", "-q", *filled, image, "64M")
    with pytest.raises(NotAcceptable) as refused:
        inspect_file(image)
    assert said in refused.value.problem


#: Where a change does most: header, refcounts, L1 and L2 of an image that qemu-img convert makes.
PLACES = st.one_of(
    st.integers(0, 111),
    st.integers(65536, 65536 + 16),
    st.integers(131072, 131072 + 64),
    st.integers(196608, 196608 + 16),
    st.integers(262144, 262144 + 256),
)


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(damage=st.lists(st.tuples(PLACES, st.integers(0, 255)), min_size=1, max_size=6))
def test_a_damaged_image_is_refused_or_converted_but_never_anything_else(
    tmp_path: Path, damage: list[tuple[int, int]]
) -> None:
    """The whole way of a stranger's file: our header, QEMU's check, QEMU's conversion, caged."""
    source, image, base = tmp_path / "source", tmp_path / "image", tmp_path / "base"
    if not source.exists():
        source.write_bytes(random.Random(1).randbytes(2 * MIB))
        asyncio.run(_qemu_img("convert", "-f", "raw", "-O", "qcow2", source, tmp_path / "whole"))
    data = bytearray((tmp_path / "whole").read_bytes())
    for place, value in damage:
        data[place] = value
    image.write_bytes(data)
    with contextlib.suppress(NotAcceptable, qemu_img.QemuFailed):
        inspection = inspect_file(image)
        asyncio.run(make_base(image, base, inspection, lambda progress: None))
        assert base.stat().st_size == inspection.virtual_size_bytes


async def test_a_file_that_shrank_by_any_amount_of_clusters_is_found_out(tmp_path: Path) -> None:
    """By the header, by the L1 table, or at last by QEMU's check of all tables."""
    source, image = tmp_path / "source", tmp_path / "image"
    source.write_bytes(os.urandom(2 * MIB))
    await _qemu_img("convert", "-f", "raw", "-O", "qcow2", source, image)
    whole = image.read_bytes()
    for kept in range(0, len(whole) - 65536, 65536):
        image.write_bytes(whole[:kept])
        try:
            inspect_file(image)
        except NotAcceptable:
            continue
        assert not (await qemu_img.check(image)).is_sound, kept
