"""`base.raw`, which volumes are made of, against the artifact: found out on the disk when asked.

Aspects: what is right is found right, shared or not; each kind of damage behind the daemon's back;
that it reaches the image's status; what is no word about the image.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.integration.bytes_host import DATA, KEY, Host, host_in, pieces

from shorthorn.domain.errors import Unavailable
from shorthorn.domain.image_bytes import VERIFY_AT
from shorthorn.domain.models import CopyState, ImageCopy, ImageFormat, ImageRecord, Progress
from shorthorn.host import qemu_img
from shorthorn.host.sandbox import SandboxUnavailable
from shorthorn.images.checksum import Sha512Checksummer
from shorthorn.kit import process

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.root

MIB = 1 << 20
HOLE = 6 * MIB
"""A place in DATA that is zero."""


async def qcow2_of(data: bytes, folder: Path, *, compressed: bool) -> bytes:
    """Return `data` as the bytes of a qcow2 image."""
    raw, made = folder / "source.raw", folder / "source.qcow2"
    raw.write_bytes(data)
    how = ["-c"] if compressed else []
    argv = ["qemu-img", "convert", *how, "-f", "raw", "-O", "qcow2", str(raw), str(made)]
    await process.run(argv, timeout_s=60)
    return made.read_bytes()


async def sent(host: Host, data: bytes) -> ImageRecord:
    await host.begin(len(data))
    await host.bytes.append(KEY.name, 0, pieces(data, MIB))
    copy = await host.ended()
    assert copy.status.state is CopyState.READY, copy.status
    record = await host.engine.find_image(KEY)
    assert record is not None
    return record


async def verified(host: Host, value: str) -> ImageCopy:
    """Ask for a verification, and reconcile until it has been carried out."""
    copy = await host.copies.find(host.name)
    assert copy is not None
    meta = dataclasses.replace(copy.meta, annotations={VERIFY_AT: value})
    await host.copies.update(dataclasses.replace(copy, meta=meta))
    async with asyncio.timeout(30):
        while True:
            host.woken.clear()
            await host.reconciler.reconcile(host.name)
            found = await host.copies.find(host.name)
            assert found is not None
            if found.status.verify_at == value:
                return found
            if host.reconciler._transfers.is_known(host.name):
                await host.woken.wait()


def flip(path: Path, offset: int) -> None:
    """Change one byte, and have it on the disk."""
    with path.open("r+b", buffering=0) as file:
        (old,) = os.pread(file.fileno(), 1, offset)
        os.pwrite(file.fileno(), bytes([old ^ 1]), offset)
        os.fsync(file.fileno())


def in_data(base: Path) -> None:
    flip(base, MIB + 17)


def in_a_hole(base: Path) -> None:
    flip(base, HOLE)


def in_the_last_byte(base: Path) -> None:
    flip(base, len(DATA) - 1)


def cut_off(base: Path) -> None:
    os.truncate(base, len(DATA) - 512)


def too_long(base: Path) -> None:
    os.truncate(base, len(DATA) + 512)


def gone(base: Path) -> None:
    base.unlink()


DAMAGES: list[Callable[[Path], None]]
DAMAGES = [in_data, in_a_hole, in_the_last_byte, cut_off, too_long, gone]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
async def test_a_damaged_base_condemns_the_copy(
    xfs_dir: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    async with host_in(xfs_dir) as host:
        record = await sent(host, await qcow2_of(DATA, tmp_path, compressed=False))
        assert (await verified(host, "t1")).status.state is CopyState.READY
        damage(Path(record.base_path))
        status = (await verified(host, "t2")).status
        assert (status.state, status.reason) == (CopyState.FAILED, "Corrupt")
        assert "base.raw" in status.message


async def test_a_damaged_base_of_a_compressed_image_is_found(
    pool_dir: Path, tmp_path: Path
) -> None:
    async with host_in(pool_dir) as host:
        record = await sent(host, await qcow2_of(DATA, tmp_path, compressed=True))
        assert (await verified(host, "t1")).status.state is CopyState.READY
        flip(Path(record.base_path), MIB)
        status = (await verified(host, "t2")).status
        assert (status.state, status.reason) == (CopyState.FAILED, "Corrupt")
        assert "base.raw, which volumes are made of" in status.message


async def test_a_raw_image_whose_base_became_another_file_is_compared(xfs_dir: Path) -> None:
    async with host_in(xfs_dir) as host:
        record = await sent(host, DATA)
        base = Path(record.base_path)
        assert base.samefile(record.artifact_path)
        base.unlink()
        base.write_bytes(DATA)
        assert (await verified(host, "t1")).status.state is CopyState.READY
        flip(base, 0)
        assert (await verified(host, "t2")).status.reason == "Corrupt"


def record_of(folder: Path, artifact: bytes, base: bytes) -> ImageRecord:
    (folder / "artifact").write_bytes(artifact)
    (folder / "base.raw").write_bytes(base)
    return ImageRecord(
        KEY,
        ImageFormat.RAW,
        len(artifact),
        len(base),
        "",
        {},
        datetime.now(UTC),
        None,
        str(folder / "artifact"),
        str(folder / "base.raw"),
    )


async def problem(record: ImageRecord, seen: list[Progress] | None = None) -> str:
    seen = [] if seen is None else seen
    return await Sha512Checksummer().base_problem(record, seen.append)


async def test_what_fills_the_last_sector_must_be_zero(xfs_dir: Path) -> None:
    seen: list[Progress] = []
    assert await problem(record_of(xfs_dir, b"x" * 1000, b"x" * 1000 + bytes(24)), seen) == ""
    assert seen[-1].bytes_done == seen[-1].bytes_total == 1024
    assert "differs" in await problem(record_of(xfs_dir, b"x" * 1000, b"x" * 1000 + b"y" * 24))


@pytest.mark.parametrize(
    "trouble",
    [
        SandboxUnavailable("no user namespaces"),
        qemu_img.ToolKilled("it was killed"),
        qemu_img.QemuTimedOut("too slow"),
        qemu_img.QemuFailed("Cannot allocate memory"),
    ],
)
async def test_trouble_with_the_tool_says_nothing_of_the_image(
    xfs_dir: Path, monkeypatch: pytest.MonkeyPatch, trouble: Exception
) -> None:
    async def fails(*arguments: object, **options: object) -> bool:
        raise trouble

    monkeypatch.setattr(qemu_img, "compare", fails)
    with pytest.raises(Unavailable):
        await problem(record_of(xfs_dir, DATA, DATA))


async def test_what_the_disk_does_not_give_is_damage(
    xfs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*arguments: object, **options: object) -> bool:
        raise qemu_img.QemuFailed("Error while reading offset 0 of the image: Input/output error")

    monkeypatch.setattr(qemu_img, "compare", fails)
    with pytest.raises(OSError, match="Input/output error"):
        await problem(record_of(xfs_dir, DATA, DATA))
