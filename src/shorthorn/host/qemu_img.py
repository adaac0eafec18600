"""`qemu-img`, caged and told every format.

Owns the command lines of qemu-img and the meaning of its exit codes and output. Must never let it
guess a format, follow a reference to another file, or run outside the sandbox; never decides
whether an image is acceptable (`images.inspection` does, before anything here sees it). Called by
the engines and `images`.
"""

from __future__ import annotations

import errno
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shorthorn.domain.models import ImageFormat
from shorthorn.host.errors import HostError
from shorthorn.host.sandbox import CagedFile, Limits, SandboxUnavailable, caged
from shorthorn.kit import process

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

#: Reading headers and tables; milliseconds in practice.
METADATA_TIMEOUT_S = 120.0
#: Work that may have to move every byte gets this much, and time in proportion to the bytes: a
#: fixed limit fails large images on slow disks.
TRANSFER_TIMEOUT_BASE_S = 300.0
SLOWEST_BYTES_PER_S = 10 << 20
#: Inflating clusters runs at 150 to 250 MiB/s per core here; five times slower is no longer work.
SLOWEST_CPU_BYTES_PER_S = 30 << 20
CPU_BASE_S = 60
#: A file may be longer than the disk in it by its tables; a raw file by its last block.
FILE_SLACK_BYTES = 1 << 20

#: Of work for which nobody waits: everybody else goes first.
_NICENESS = 15

_SOURCE = "/image/source"
_TARGET = "/image/target"
_PERCENT = re.compile(rb"\((\d+\.\d+)/100%\)")


class QemuFailed(HostError):
    """A QEMU tool said no; `problem` is its own first complaint, without our paths."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem


class QemuTimedOut(QemuFailed):
    """A QEMU tool needed more time or processor than the image can explain."""


class ToolKilled(HostError):
    """Somebody has killed a QEMU tool: the OOM killer, an operator. Nothing is known of the image.

    Not a QemuFailed: trying again makes sense.
    """


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What `qemu-img info` reads in a header. `backing_file`: as written in the image, or None."""

    format: ImageFormat
    virtual_size_bytes: int
    cluster_size_bytes: int | None
    backing_file: str | None


@dataclass(frozen=True, slots=True)
class CheckResult:
    """Findings of `qemu-img check`. Leaks waste space and hurt nobody; corruptions do.

    `end_offset_bytes`: where the last cluster in use ends; beyond the file's length: it is
    truncated.
    """

    corruptions: int
    leaks: int
    check_errors: int
    end_offset_bytes: int

    @property
    def is_sound(self) -> bool:
        return self.corruptions == 0 and self.check_errors == 0


async def info(path: Path, image_format: ImageFormat) -> ImageInfo:
    """Read the header of an image of known format. Raises: QemuFailed."""
    done = await _run(
        ("qemu-img", "info", "-f", image_format, "--output", "json", _SOURCE),
        files=[CagedFile(path, _SOURCE)],
    )
    said = _parse(done.stdout)
    return ImageInfo(
        format=ImageFormat(said["format"]),
        virtual_size_bytes=int(said["virtual-size"]),
        cluster_size_bytes=said.get("cluster-size"),
        backing_file=said.get("backing-filename"),
    )


async def check(path: Path) -> CheckResult:
    """Check all tables of a qcow2 image, changing nothing.

    Raises: QemuFailed: the image cannot even be opened.
    """
    done = await _run(
        ("qemu-img", "check", "-f", "qcow2", "--output", "json", _SOURCE),
        files=[CagedFile(path, _SOURCE)],
        accept=(0, 2, 3),
    )
    said = _parse(done.stdout)
    return CheckResult(
        corruptions=int(said.get("corruptions", 0)),
        leaks=int(said.get("leaks", 0)),
        check_errors=int(said.get("check-errors", 0)),
        end_offset_bytes=int(said.get("image-end-offset", 0)),
    )


async def create_qcow2(target: Path, *, virtual_size_bytes: int, cluster_size_bytes: int) -> None:
    """Make the existing empty file `target` an empty qcow2 image (version 3).

    Raises: QemuFailed. OSError(ENOSPC).
    """
    options = f"cluster_size={cluster_size_bytes},compat=1.1,lazy_refcounts=off,preallocation=off"
    await _run(
        *(
            (
                "qemu-img",
                "create",
                "-q",
                "-f",
                "qcow2",
                "-o",
                options,
                _TARGET,
                str(virtual_size_bytes),
            ),
        ),
        files=[CagedFile(target, _TARGET, writable=True)],
        limits=Limits(file_size_bytes=virtual_size_bytes + FILE_SLACK_BYTES),
    )


async def compare(
    first: Path,
    first_format: ImageFormat,
    second: Path,
    second_format: ImageFormat,
    *,
    size_bytes: int,
    on_percent: Callable[[float], None] | None = None,
) -> bool:
    """Return whether two images of about `size_bytes` hold the same bytes; a longer tail must be
    zero.

    Both are read from the disk, at low priority, and what is in memory of them stays as it is.
    Memory is flat: a few MiB for each image, and a qcow2's tables.
    Raises: QemuFailed: one of them cannot be read.
    """
    done = await _run(
        (
            *("qemu-img", "compare", "-p", "-T", "none", "-f", first_format, "-F", second_format),
            *(_SOURCE, _TARGET),
        ),
        files=[CagedFile(first, _SOURCE), CagedFile(second, _TARGET)],
        limits=transfer_limits(size_bytes, writes=False),
        timeout_s=transfer_timeout_s(size_bytes),
        accept=(0, 1),
        on_stdout=_percent_reader(on_percent) if on_percent else None,
        niceness=_NICENESS,
    )
    return done.returncode == 0


async def convert_to_raw(
    source: Path,
    source_format: ImageFormat,
    target: Path,
    *,
    virtual_size_bytes: int,
    on_percent: Callable[[float], None] | None = None,
    timeout_s: float | None = None,
) -> None:
    """Write the disk in `source` to the existing all-zero raw file `target` of at least its size.

    Clusters are handed to copy_file_range(2): where both files lie on one file system with reflinks
    they come to share them and no byte is moved; compressed or misaligned ones are copied. What is
    zero or absent in the source stays a hole.

    Raises: QemuFailed, QemuTimedOut. OSError(ENOSPC).
    State:  after an error `target` holds part of the disk; empty it before trying again.
    """
    await _run(
        (
            *("qemu-img", "convert", "-p", "-C", "-n", "--target-is-zero"),
            *("-f", source_format, "-O", "raw", _SOURCE, _TARGET),
        ),
        files=[CagedFile(source, _SOURCE), CagedFile(target, _TARGET, writable=True)],
        limits=transfer_limits(virtual_size_bytes, writes=True),
        timeout_s=transfer_timeout_s(virtual_size_bytes) if timeout_s is None else timeout_s,
        on_stdout=_percent_reader(on_percent) if on_percent else None,
    )


async def compress_to_qcow2(source: Path, target: Path, *, virtual_size_bytes: int) -> None:
    """Write the raw disk `source` into the existing empty file `target`, as compressed qcow2.

    Raises: QemuFailed, QemuTimedOut. OSError(ENOSPC).
    State:  after an error or cancellation `target` is to be thrown away.
    """
    options = "compression_type=zlib,compat=1.1"  # zlib is what every reader of qcow2 knows
    await _run(
        (
            *("qemu-img", "convert", "-c", "-W", "-f", "raw", "-O", "qcow2"),
            *("-o", options, _SOURCE, _TARGET),
        ),
        files=[CagedFile(source, _SOURCE), CagedFile(target, _TARGET, writable=True)],
        limits=transfer_limits(virtual_size_bytes, writes=True),
        timeout_s=transfer_timeout_s(virtual_size_bytes),
    )


def transfer_timeout_s(size_bytes: int) -> float:
    """Return how long work over `size_bytes` may take at most, in seconds."""
    return TRANSFER_TIMEOUT_BASE_S + size_bytes / SLOWEST_BYTES_PER_S


def transfer_limits(size_bytes: int, *, writes: bool) -> Limits:
    """Return limits for work over a disk of `size_bytes`, into a file where it `writes`.

    The file may be as long as the disk and 1/256 for tables (qcow2 at 64 KiB needs 1/6500).
    """
    return Limits(
        cpu_s=CPU_BASE_S + size_bytes // SLOWEST_CPU_BYTES_PER_S,
        file_size_bytes=size_bytes + size_bytes // 256 + FILE_SLACK_BYTES if writes else 0,
    )


async def _run(
    argv: Sequence[str],
    *,
    files: Sequence[CagedFile],
    limits: Limits | None = None,
    timeout_s: float = METADATA_TIMEOUT_S,
    accept: Sequence[int] = (0,),
    on_stdout: Callable[[bytes], None] | None = None,
    niceness: int = 0,
) -> process.Completed:
    caged_argv = caged(argv, files=files, limits=limits or Limits())
    if niceness:
        caged_argv = ["nice", "-n", str(niceness), *caged_argv]
    try:
        done = await process.run(caged_argv, timeout_s=timeout_s, check=False, on_stdout=on_stdout)
    except process.CommandTimedOut as exc:
        raise QemuTimedOut(f"{argv[0]} {argv[1]} did not end within {timeout_s:.0f} s") from exc
    if done.returncode not in accept:
        raise failure(f"{argv[0]} {argv[1]}", done.returncode, done.stderr.decode(errors="replace"))
    return done


def failure(what: str, returncode: int, stderr: str) -> Exception:
    """Return the error for a QEMU tool that ended with `returncode` and said `stderr`.

    A full disk is known by strerror's words, fixed by LC_ALL=C; nothing else is read in the text.
    bwrap reports a signal as 128 + number, and its own trouble under its own name.
    """
    if stderr.startswith("bwrap: "):
        return SandboxUnavailable(f"no sandbox for {what}: {stderr.strip()[:500]}")
    if "No space left on device" in stderr:
        return OSError(errno.ENOSPC, "No space left on device")
    if returncode in (128 + 9, -9):
        return ToolKilled(f"{what} was killed; the machine may be short of memory")
    if returncode in (128 + 24, -24):  # SIGXCPU
        return QemuTimedOut(
            f"{what} was stopped: it used more processor time than the image explains"
        )
    if returncode in (128 + 25, -25):  # SIGXFSZ
        return QemuFailed(f"{what} was stopped: it wrote more than the image explains")
    return QemuFailed(_complaint(stderr) or f"{what} ended with status {returncode}")


def _complaint(stderr: str) -> str:
    """Return the first line that a QEMU tool said, without its name and our names of files."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    if not lines:
        return ""
    line = lines[0].removeprefix("qemu-img: ")
    for inside in (_SOURCE, _TARGET):
        line = line.replace(f"Could not open '{inside}': ", "").replace(f"'{inside}'", "the image")
    return line[:500]


def _parse(stdout: bytes) -> dict[str, Any]:
    try:
        said = json.loads(stdout)
    except ValueError as exc:
        raise QemuFailed("qemu-img answered something that is not JSON") from exc
    if not isinstance(said, dict):
        raise QemuFailed("qemu-img answered something that is not an object")
    return said


def _percent_reader(on_percent: Callable[[float], None]) -> Callable[[bytes], None]:
    """Return a listener for the output of `-p`: `    (12.34/100%)`, separated by carriage
    returns.
    """
    rest = b""

    def listen(data: bytes) -> None:
        nonlocal rest
        rest += data
        found = list(_PERCENT.finditer(rest))
        if found:
            on_percent(float(found[-1][1]))
            rest = rest[found[-1].end() :]
        rest = rest[-64:]

    return listen
