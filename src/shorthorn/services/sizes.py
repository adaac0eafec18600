"""How large a volume becomes.

Owns the rules between what was asked for and the capacity in bytes: default, minimum, rounding, the
caller's limit, the source's size and what a file system needs. Pure. Called by `services.volumes`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from shorthorn.domain.errors import InvalidArgument, SizeOutOfRange
from shorthorn.services.capabilities import FS_BYTES_MIN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shorthorn.services.capabilities import Capability

#: Longhorn's rounding; also a multiple of every block size in use.
GRANULE_BYTES: Final = 2 << 20
#: Longhorn's smallest volume.
CAPACITY_BYTES_MIN: Final = 10 << 20
#: A blank volume of which no size was said. Arbitrary; thin, so it costs nothing.
CAPACITY_BYTES_DEFAULT: Final = 1 << 30
#: XFS, btrfs and ext4 pools hold files of at least this size (ext4 with 4 KiB blocks: 16 TiB).
CAPACITY_BYTES_MAX: Final = (16 << 40) - GRANULE_BYTES


@dataclass(frozen=True, slots=True)
class CapacityRange:
    """CSI's CapacityRange; 0 means nothing was said."""

    required_bytes: int = 0
    limit_bytes: int = 0

    def check(self) -> None:
        """Raise InvalidArgument or SizeOutOfRange where the range makes no sense by itself."""
        if self.required_bytes < 0 or self.limit_bytes < 0:
            raise InvalidArgument("capacity_range", "sizes must not be negative")
        if self.limit_bytes and self.required_bytes > self.limit_bytes:
            raise SizeOutOfRange(
                "capacity_range", self.required_bytes, maximum_bytes=self.limit_bytes
            )


def round_up(size_bytes: int) -> int:
    """Return the capacity of a volume that must hold `size_bytes`."""
    granules = -(-max(size_bytes, CAPACITY_BYTES_MIN) // GRANULE_BYTES)
    return granules * GRANULE_BYTES


def decide_capacity(
    wanted: CapacityRange, *, source_bytes: int, source: str, capabilities: Sequence[Capability]
) -> int:
    """Return the capacity of a new volume in bytes.

    Args: source_bytes: what its source holds, 0 for a blank volume. source: its name in messages.
    Raises: SizeOutOfRange: smaller than the source, than its file system needs, or over a limit.
    """
    asked_bytes = wanted.required_bytes or source_bytes or CAPACITY_BYTES_DEFAULT
    if not wanted.required_bytes and not source_bytes and wanted.limit_bytes:
        asked_bytes = min(asked_bytes, wanted.limit_bytes // GRANULE_BYTES * GRANULE_BYTES)
    capacity_bytes = round_up(asked_bytes)
    if capacity_bytes < source_bytes:
        raise SizeOutOfRange(source, asked_bytes, minimum_bytes=source_bytes)
    if wanted.limit_bytes and capacity_bytes > wanted.limit_bytes:
        raise SizeOutOfRange(
            f"capacity in steps of {GRANULE_BYTES} bytes",
            capacity_bytes,
            maximum_bytes=wanted.limit_bytes,
        )
    if capacity_bytes > CAPACITY_BYTES_MAX:
        raise SizeOutOfRange("a volume", capacity_bytes, maximum_bytes=CAPACITY_BYTES_MAX)
    if not source_bytes:
        _check_file_systems(capacity_bytes, capabilities)
    return capacity_bytes


def _check_file_systems(capacity_bytes: int, capabilities: Sequence[Capability]) -> None:
    for capability in capabilities:
        needed_bytes = FS_BYTES_MIN.get(capability.file_system, 0)
        if capacity_bytes < needed_bytes:
            raise SizeOutOfRange(
                f"an {capability.file_system} file system (request more storage, or use ext4)",
                capacity_bytes,
                minimum_bytes=needed_bytes,
            )
