"""QEMU's tools in their cage, on real file systems: formats, sharing, errors, ends."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from qemu.qmp import QMPClient

from shorthorn.domain.models import ImageFormat
from shorthorn.host import extents, qemu_img, qemu_storage_daemon
from shorthorn.host.qcow2_conversion import Qcow2Method, raw_to_qcow2
from shorthorn.kit import process

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.root

#: Name and parent of the process that tells how a caged tool ended.
OUR_CAGE = ("bwrap", os.getpid())

MIB = 1 << 20
RAW, QCOW2 = ImageFormat.RAW, ImageFormat.QCOW2
both_methods = pytest.mark.parametrize("method", list(Qcow2Method))


def _contiguous(path: Path, data_bytes: int, size_bytes: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size_bytes)
        os.posix_fallocate(file.fileno(), 0, data_bytes)
        block = random.Random(1).randbytes(MIB)
        for index in range(data_bytes // MIB):
            file.write(index.to_bytes(8, "big") + block[8:])
        os.fsync(file.fileno())
    return path


def _scattered(path: Path, blocks: int, size_bytes: int) -> Path:
    rng = random.Random(2)
    with path.open("wb") as file:
        file.truncate(size_bytes)
        for place in rng.sample(range(size_bytes // 4096), blocks):
            os.pwrite(file.fileno(), rng.randbytes(4096), place * 4096)
        os.fsync(file.fileno())
    return path


def _empty(path: Path, size_bytes: int = 0) -> Path:
    with path.open("wb") as file:
        file.truncate(size_bytes)
    return path


async def _holds_the_same(raw: Path, qcow2: Path) -> bool:
    size = raw.stat().st_size
    return await qemu_img.compare(raw, RAW, qcow2, QCOW2, size_bytes=size)


@both_methods
async def test_an_export_of_contiguous_data_shares_all_of_it(
    pool_dir: Path, method: Qcow2Method
) -> None:
    source = _contiguous(pool_dir / "source", 200 * MIB, 1024 * MIB)
    target = _empty(pool_dir / "target")
    reports: list[tuple[int, int]] = []
    await raw_to_qcow2(
        source,
        target,
        virtual_size_bytes=1024 * MIB,
        method=method,
        on_bytes=lambda done, total: reports.append((done, total)),
    )
    await asyncio.sleep(0)
    assert (await qemu_img.info(target, QCOW2)).virtual_size_bytes == 1024 * MIB
    assert (await qemu_img.check(target)).is_sound
    assert await _holds_the_same(source, target)
    assert await extents.shared_with(source, target) == 200 * MIB
    assert (await extents.usage(target)).allocated_bytes < 202 * MIB
    assert reports[-1][0] == reports[-1][1] > 0


@both_methods
async def test_an_export_of_scattered_blocks_shares_all_but_its_tables(
    pool_dir: Path, method: Qcow2Method
) -> None:
    source = _scattered(pool_dir / "source", 2000, 1024 * MIB)
    target = _empty(pool_dir / "target")
    await raw_to_qcow2(source, target, virtual_size_bytes=1024 * MIB, method=method)
    assert (await qemu_img.check(target)).is_sound
    assert await _holds_the_same(source, target)
    data = 2000 * 4096
    assert await extents.shared_with(source, target) == data
    assert (await extents.usage(target)).allocated_bytes < data * 1.05 + MIB // 2


@both_methods
async def test_an_export_where_nothing_can_be_shared_is_the_same_disk(
    ext4_dir: Path, method: Qcow2Method
) -> None:
    source = _scattered(ext4_dir / "source", 300, 64 * MIB)
    target = _empty(ext4_dir / "target")
    await raw_to_qcow2(source, target, virtual_size_bytes=64 * MIB, method=method)
    assert (await qemu_img.check(target)).is_sound
    assert await _holds_the_same(source, target)


@both_methods
@pytest.mark.parametrize(
    ("size_bytes", "data"),
    [
        pytest.param(512, [(0, 512)], id="one sector"),
        pytest.param(65536 * 3 + 512, [(65536 * 3, 512)], id="data in the last short cluster"),
        pytest.param(MIB + 1536, [(0, MIB + 1536)], id="all data, odd length"),
        pytest.param(MIB, [], id="all hole"),
        pytest.param(
            1200 * MIB,
            [(511 * MIB, 2 * MIB), (1023 * MIB, 2 * MIB), (1200 * MIB - 4096, 4096)],
            id="across the edges of L2 tables",
        ),
        pytest.param(64 * MIB, [(4096, 4096), (61440, 8192), (135168, 4096)], id="parts"),
    ],
)
async def test_any_shape_of_disk_survives_the_way_to_qcow2_and_back(
    xfs_dir: Path, method: Qcow2Method, size_bytes: int, data: list[tuple[int, int]]
) -> None:
    source, target, back = xfs_dir / "source", xfs_dir / "target", xfs_dir / "back"
    _empty(source, size_bytes)
    with source.open("r+b") as file:
        for offset, length in data:
            os.pwrite(file.fileno(), random.Random(offset).randbytes(length), offset)
    _empty(target)
    await raw_to_qcow2(source, target, virtual_size_bytes=size_bytes, method=method)
    assert (await qemu_img.check(target)).is_sound
    assert (await qemu_img.info(target, QCOW2)).virtual_size_bytes == size_bytes
    _empty(back, size_bytes)
    await qemu_img.convert_to_raw(target, QCOW2, back, virtual_size_bytes=size_bytes)
    with source.open("rb") as wanted, back.open("rb") as got:
        for offset, length in data:
            assert os.pread(wanted.fileno(), length, offset) == os.pread(
                got.fileno(), length, offset
            )
    assert await qemu_img.compare(source, RAW, back, RAW, size_bytes=size_bytes)


async def test_a_disk_of_5_tib_with_data_at_both_ends_is_exported_in_no_time(xfs_dir: Path) -> None:
    """By our own tables: a backup job would walk every cluster for minutes."""
    size = 5 << 40
    source, target = _empty(xfs_dir / "source", size), _empty(xfs_dir / "target")
    with source.open("r+b") as file:
        os.pwrite(file.fileno(), b"first" * 1000, 0)
        os.pwrite(file.fileno(), b"last!" * 1000, size - 5000)
    await raw_to_qcow2(source, target, virtual_size_bytes=size)
    assert (await qemu_img.check(target)).is_sound
    assert await _holds_the_same(source, target)


async def test_a_disk_that_is_not_as_long_as_was_said_is_not_exported(xfs_dir: Path) -> None:
    source, target = _empty(xfs_dir / "source", 2 * MIB), _empty(xfs_dir / "target")
    with pytest.raises(ValueError, match="2097152 bytes, not 1048576"):
        await raw_to_qcow2(source, target, virtual_size_bytes=MIB)


async def test_a_disk_too_large_for_qcow2_is_refused_in_words(xfs_dir: Path) -> None:
    size = (2 << 50) + (1 << 30)
    source, target = _empty(xfs_dir / "source", size), _empty(xfs_dir / "target")
    with pytest.raises(ValueError, match="too large for qcow2"):
        await raw_to_qcow2(source, target, virtual_size_bytes=size)


async def test_qcow2_to_raw_shares_every_cluster_and_reports_progress(pool_dir: Path) -> None:
    source = _contiguous(pool_dir / "source", 100 * MIB, 256 * MIB)
    qcow2, back = _empty(pool_dir / "qcow2"), _empty(pool_dir / "back", 256 * MIB)
    await raw_to_qcow2(source, qcow2, virtual_size_bytes=256 * MIB)
    percents: list[float] = []
    await qemu_img.convert_to_raw(
        qcow2, QCOW2, back, virtual_size_bytes=256 * MIB, on_percent=percents.append
    )
    assert percents[-1] == 100.0
    assert percents == sorted(percents)
    assert await qemu_img.compare(source, RAW, back, RAW, size_bytes=256 * MIB)
    assert await extents.shared_with(source, back) == 100 * MIB


async def test_a_compressed_qcow2_becomes_the_right_raw_disk(xfs_dir: Path) -> None:
    source = _contiguous(xfs_dir / "source", 20 * MIB, 64 * MIB)
    qcow2, back = xfs_dir / "qcow2", _empty(xfs_dir / "back", 64 * MIB)
    for kind in ("zlib", "zstd"):
        await process.run(
            f"qemu-img convert -c -O qcow2 -o compression_type={kind} {source} {qcow2}".split(),
            timeout_s=60,
        )
        _empty(back, 64 * MIB)
        await qemu_img.convert_to_raw(qcow2, QCOW2, back, virtual_size_bytes=64 * MIB)
        assert await qemu_img.compare(source, RAW, back, RAW, size_bytes=64 * MIB)


async def test_a_guest_that_writes_a_qcow2_header_into_its_disk_fools_nobody(xfs_dir: Path) -> None:
    """The bytes of a raw disk are data, whatever they look like (the class of CVE-2024-32498)."""
    inner = xfs_dir / "inner"
    await process.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", inner, "64M"],
        timeout_s=20,
    )
    source = _empty(xfs_dir / "source", 64 * MIB)
    with source.open("r+b") as file:
        file.write(inner.read_bytes())
    for method in Qcow2Method:
        target = _empty(xfs_dir / f"target-{method}")
        await raw_to_qcow2(source, target, virtual_size_bytes=64 * MIB, method=method)
        info = await qemu_img.info(target, QCOW2)
        assert info.backing_file is None
        assert info.virtual_size_bytes == 64 * MIB
        assert await _holds_the_same(source, target)
    assert (await qemu_img.info(source, RAW)).virtual_size_bytes == 64 * MIB


async def test_a_backing_file_that_slipped_through_cannot_be_opened_in_the_cage(
    xfs_dir: Path,
) -> None:
    secret = xfs_dir / "secret"
    secret.write_bytes(b"secret" * 1000)
    image, back = xfs_dir / "image", _empty(xfs_dir / "back", 8192)
    await process.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-b", secret, "-F", "raw", image, "8192"],
        timeout_s=20,
    )
    with pytest.raises(qemu_img.QemuFailed, match="No such file or directory"):
        await qemu_img.convert_to_raw(image, QCOW2, back, virtual_size_bytes=8192)
    assert not any(back.read_bytes())


async def test_a_full_disk_is_told_as_such(tmp_path: Path) -> None:
    directory = tmp_path / "small"
    directory.mkdir()
    await process.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", directory], timeout_s=10)
    try:
        source = _contiguous(directory / "source", 5 * MIB, 5 * MIB)
        for method in Qcow2Method:
            target = _empty(directory / "target")
            with pytest.raises(OSError, match="No space left") as raised:
                await raw_to_qcow2(source, target, virtual_size_bytes=5 * MIB, method=method)
            assert raised.value.errno == errno.ENOSPC
        back = _empty(directory / "target", 5 * MIB)
        with pytest.raises(OSError, match="No space left") as raised:
            await qemu_img.convert_to_raw(source, RAW, back, virtual_size_bytes=5 * MIB)
        assert raised.value.errno == errno.ENOSPC
    finally:
        await process.run(["umount", directory], timeout_s=10)


async def test_check_names_corruption_and_truncation(xfs_dir: Path) -> None:
    source = _contiguous(xfs_dir / "source", 4 * MIB, 8 * MIB)
    image = _empty(xfs_dir / "image")
    await raw_to_qcow2(source, image, virtual_size_bytes=8 * MIB)
    os.truncate(image, 2 * MIB)
    result = await qemu_img.check(image)
    assert not result.is_sound
    image.write_bytes(b"not qcow2 at all" * 100)
    with pytest.raises(qemu_img.QemuFailed, match="not in qcow2 format"):
        await qemu_img.check(image)


@both_methods
async def test_a_cancelled_export_leaves_no_process(xfs_dir: Path, method: Qcow2Method) -> None:
    source = _scattered(xfs_dir / "source", 4000, 2048 * MIB)
    before = _qemu_processes()
    target = _empty(xfs_dir / "target")
    export = asyncio.create_task(
        raw_to_qcow2(source, target, virtual_size_bytes=2048 * MIB, method=method)
    )
    await _until(lambda: target.stat().st_size or export.done())
    export.cancel()
    with pytest.raises(asyncio.CancelledError):
        await export
    assert _qemu_processes() == before


async def test_an_export_past_its_time_ends_as_such_and_leaves_no_process(xfs_dir: Path) -> None:
    source = _scattered(xfs_dir / "source", 4000, 2048 * MIB)
    before = _qemu_processes()
    with pytest.raises(qemu_img.QemuTimedOut):
        await qemu_storage_daemon.back_up_to_qcow2(
            source, _empty(xfs_dir / "target"), virtual_size_bytes=2048 * MIB, timeout_s=0.05
        )
    assert _qemu_processes() == before


@pytest.mark.parametrize("is_cage_late", [False, True], ids=["at once", "a moment later"])
async def test_a_storage_daemon_that_is_killed_is_an_error_and_not_a_hang(
    xfs_dir: Path, is_cage_late: bool
) -> None:
    """Its line ends at once; its cage, which tells how it ended, may need a moment."""
    source = _scattered(xfs_dir / "source", 4000, 2048 * MIB)
    before = _qemu_processes()
    export = asyncio.create_task(
        qemu_storage_daemon.back_up_to_qcow2(
            source, _empty(xfs_dir / "target"), virtual_size_bytes=2048 * MIB
        )
    )

    def kill() -> list[int]:
        """Kill what is found, as long as it is there; return the cages."""
        daemons = _qemu_processes() - before
        cages = [pid for pid, (name, parent) in _processes().items() if (name, parent) == OUR_CAGE]
        for pid in cages if daemons and is_cage_late else ():
            os.kill(pid, signal.SIGSTOP)
        for pid in daemons:
            os.kill(pid, signal.SIGKILL)
        return cages if daemons else []

    async with asyncio.timeout(60):
        while not (cages := kill()):  # noqa: ASYNC110 - processes do not signal
            await asyncio.sleep(0.001)
    if is_cage_late:
        await asyncio.wait({export}, timeout=0.5)
        assert not export.done()
        for pid in cages:
            os.kill(pid, signal.SIGCONT)
    with pytest.raises(qemu_img.ToolKilled):
        await asyncio.wait_for(export, 60)
    assert _qemu_processes() == before


async def test_a_storage_daemon_that_is_killed_as_it_greets_is_the_same_error(
    xfs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = _scattered(xfs_dir / "source", 10, 64 * MIB)
    before = _qemu_processes()
    connect = QMPClient.connect

    async def connect_to_the_dead(client: QMPClient, line: socket.socket) -> None:
        await connect(client, line)
        for pid in _qemu_processes() - before:
            os.kill(pid, signal.SIGKILL)
        raise AssertionError  # as the library does when it notices at this very moment

    monkeypatch.setattr(QMPClient, "connect", connect_to_the_dead)
    with pytest.raises(qemu_img.ToolKilled):
        await qemu_storage_daemon.back_up_to_qcow2(
            source, _empty(xfs_dir / "target"), virtual_size_bytes=64 * MIB
        )
    assert _qemu_processes() == before


async def _until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - files and processes do not signal
            await asyncio.sleep(0.001)


def _qemu_processes() -> set[int]:
    """Return the storage daemons that are our own descendants' (others run tests here too)."""
    found = set()
    ours = {os.getpid()}
    stats = _processes()
    for pid, (name, _) in stats.items():
        ancestor = pid
        while ancestor in stats and ancestor not in ours:
            ancestor = stats[ancestor][1]
        if ancestor in ours and name.startswith("qemu-storage"):
            found.add(pid)
    return found


def _processes() -> dict[int, tuple[str, int]]:
    """Return the name and the parent of every process."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                name, rest = (entry / "stat").read_text().rsplit(")", 1)
            except OSError:
                continue
            found[int(entry.name)] = (name.partition("(")[2], int(rest.split()[1]))
    return found
