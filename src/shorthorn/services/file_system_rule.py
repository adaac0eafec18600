"""Which file system a volume is mounted with, and whether it may be made.

Owns the rule that protects data: only a blank volume is ever formatted, once, and that is recorded
before mkfs begins. Must never mount. Called by `services.node` with the volume's device attached.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from shorthorn.domain.errors import Corrupt, VolumeModeMismatch
from shorthorn.domain.models import FormatState
from shorthorn.domain.node_ports import ContentKind

if TYPE_CHECKING:
    from shorthorn.domain.models import VolumeRecord
    from shorthorn.domain.node_ports import Content, NodeStorage
    from shorthorn.domain.ports import Engine

#: What is mounted if it is found; only some of these are made (services.capabilities).
_MOUNTABLE: Final = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs"})


async def ensure_file_system(
    engine: Engine, storage: NodeStorage, record: VolumeRecord, device: str, wanted: str
) -> str:
    """Return the type of the file system on `device`, made now if the volume was never touched.

    What is found is mounted as what it is, whatever `wanted` says: a restored image keeps the file
    system it was made with.

    Raises: VolumeModeMismatch: it holds something that is no file system. Corrupt: the file system
        that was made here is gone.
    """
    if record.format_state is FormatState.FORMATTING:
        return await _format(engine, storage, record, device, wanted)
    content = await storage.inspect(device)
    if content.kind is ContentKind.FILE_SYSTEM and content.what in _MOUNTABLE:
        return content.what
    if record.format_state is FormatState.FORMATTED:
        found = _describe(content)
        problem = f"its {record.fs_type} file system is gone, {found} is there instead"
        raise Corrupt("volume", record.volume_id, problem)
    is_blank = record.format_state is FormatState.BLANK and content.kind is ContentKind.EMPTY
    if is_blank and await _is_untouched(engine, record):
        return await _format(engine, storage, record, device, wanted)
    raise VolumeModeMismatch(
        "volumeMode",
        f"volume {record.volume_id} holds {_describe(content)}, which cannot be mounted as a file "
        "system, and a volume that may hold data is never formatted; use volumeMode: Block",
    )


async def _format(
    engine: Engine, storage: NodeStorage, record: VolumeRecord, device: str, fs_type: str
) -> str:
    await engine.record_format(record.volume_id, FormatState.FORMATTING, fs_type)
    await storage.format(device, fs_type)
    await engine.record_format(record.volume_id, FormatState.FORMATTED, fs_type)
    return fs_type


async def _is_untouched(engine: Engine, record: VolumeRecord) -> bool:
    """Whether nobody wrote to a blank volume, as a block device for example."""
    return (await engine.measure_volume(record.volume_id)).allocated_bytes == 0


def _describe(content: Content) -> str:
    if content.kind is ContentKind.EMPTY:
        return "no file system"
    if content.kind is ContentKind.PARTITIONS:
        return f"a partition table ({content.what})"
    return f"{content.what} ({content.kind})"
