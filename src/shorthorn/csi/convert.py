"""Between CSI's messages and the services' words, both ways.

Owns the checks for arguments that the specification requires. Must never decide anything else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from google.protobuf.timestamp_pb2 import Timestamp

from shorthorn.csi.proto import csi_pb2
from shorthorn.domain.errors import InvalidArgument, UnsupportedCapability, WrongState
from shorthorn.services.capabilities import AccessMode, Capability, VolumeMode
from shorthorn.services.node import PublishRequest, StageRequest, VolumeStats
from shorthorn.services.placement import TopologyRequirement, segments_of
from shorthorn.services.sizes import CapacityRange
from shorthorn.services.snapshots import CreateSnapshotRequest
from shorthorn.services.volumes import CreateVolumeRequest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shorthorn.domain.models import Volume
    from shorthorn.services.answers import SnapshotAnswer

_MODES = csi_pb2.VolumeCapability.AccessMode.Mode
_ACCESS: Final = {_MODES.Value(mode.value): mode for mode in AccessMode}


def require(**fields: str) -> None:
    """Raise InvalidArgument for the first of these fields that is empty."""
    for name, value in fields.items():
        if not value:
            raise InvalidArgument(name, "is required")


def create_volume_request(request: csi_pb2.CreateVolumeRequest) -> CreateVolumeRequest:
    """Raises: InvalidArgument."""
    require(name=request.name)
    if request.mutable_parameters:
        raise InvalidArgument("mutable_parameters", "not offered: volumes cannot be modified")
    snapshot_handle, volume_id = _content_source(request)
    topology = request.accessibility_requirements
    return CreateVolumeRequest(
        name=request.name,
        capacity=capacity_range(request.capacity_range),
        capabilities=tuple(capability(c) for c in request.volume_capabilities),
        parameters=dict(request.parameters),
        snapshot_handle=snapshot_handle,
        source_volume_id=volume_id,
        topology=TopologyRequirement(_segments(topology.requisite), _segments(topology.preferred)),
    )


def create_snapshot_request(request: csi_pb2.CreateSnapshotRequest) -> CreateSnapshotRequest:
    """Raises: InvalidArgument."""
    require(source_volume_id=request.source_volume_id, name=request.name)
    return CreateSnapshotRequest(request.name, request.source_volume_id, dict(request.parameters))


def stage_request(request: csi_pb2.NodeStageVolumeRequest) -> StageRequest:
    """Raises: InvalidArgument."""
    require(volume_id=request.volume_id, staging_target_path=request.staging_target_path)
    wanted = required_capability(request)
    return StageRequest(request.volume_id, request.staging_target_path, wanted)


def publish_request(request: csi_pb2.NodePublishVolumeRequest) -> PublishRequest:
    """Raises: InvalidArgument. WrongState: no staging path, which staging would have given."""
    require(volume_id=request.volume_id, target_path=request.target_path)
    wanted = required_capability(request)
    if not request.staging_target_path:
        raise WrongState("volume", request.volume_id, "not staged", "a staging_target_path")
    return PublishRequest(
        volume_id=request.volume_id,
        staging_path=request.staging_target_path,
        target_path=request.target_path,
        capability=wanted,
        is_read_only=request.readonly,
    )


def required_capability(
    request: csi_pb2.NodeStageVolumeRequest | csi_pb2.NodePublishVolumeRequest,
) -> Capability:
    """Raises: InvalidArgument: it is missing or incomplete."""
    if not request.HasField("volume_capability"):
        raise InvalidArgument("volume_capability", "is required")
    return capability(request.volume_capability)


def capability(message: csi_pb2.VolumeCapability) -> Capability:
    """Raises: InvalidArgument: no access type. UnsupportedCapability: an unknown access mode."""
    access = _ACCESS.get(message.access_mode.mode)
    if access is None:
        raise UnsupportedCapability("access_mode", f"{message.access_mode.mode} is not known")
    kind = message.WhichOneof("access_type")
    if kind is None:
        raise InvalidArgument("volume_capability", "an access type, block or mount, is required")
    if kind == "block":
        return Capability(VolumeMode.BLOCK, access)
    mount = message.mount
    return Capability(
        VolumeMode.FILESYSTEM,
        access,
        mount.fs_type,
        tuple(mount.mount_flags),
        mount.volume_mount_group,
    )


def capacity_range(message: csi_pb2.CapacityRange) -> CapacityRange:
    """Return the range; an absent one says nothing."""
    return CapacityRange(message.required_bytes, message.limit_bytes)


def volume(value: Volume) -> csi_pb2.Volume:
    """Return the answer that a volume's record gives, whenever it is asked for."""
    message = csi_pb2.Volume(
        capacity_bytes=value.status.capacity_bytes,
        volume_id=value.meta.name,
        volume_context=dict(value.spec.parameters),
        accessible_topology=[topology(value.spec.node_id)],
    )
    source = value.spec.source
    if source.volume:
        message.content_source.volume.volume_id = source.handle
    elif source.handle:
        message.content_source.snapshot.snapshot_id = source.handle
    return message


def snapshot(answer: SnapshotAnswer) -> csi_pb2.Snapshot:
    """Return the answer for one snapshot."""
    created_at = Timestamp()
    created_at.FromDatetime(answer.created_at)
    return csi_pb2.Snapshot(
        size_bytes=answer.size_bytes,
        snapshot_id=answer.handle,
        source_volume_id=answer.source_volume_id,
        creation_time=created_at,
        ready_to_use=answer.is_ready,
    )


def topology(node_id: str) -> csi_pb2.Topology:
    """Return the topology of one node."""
    return csi_pb2.Topology(segments=segments_of(node_id))


def usage(stats: VolumeStats) -> list[csi_pb2.VolumeUsage]:
    """Return bytes and inodes of a file system, or the size of a block volume."""
    found = stats.file_system
    if found is None:
        return [csi_pb2.VolumeUsage(total=stats.capacity_bytes, unit="BYTES")]
    return [
        csi_pb2.VolumeUsage(
            available=found.available_bytes,
            total=found.total_bytes,
            used=found.used_bytes,
            unit="BYTES",
        ),
        csi_pb2.VolumeUsage(
            available=found.available_inodes,
            total=found.total_inodes,
            used=found.used_inodes,
            unit="INODES",
        ),
    ]


def _content_source(request: csi_pb2.CreateVolumeRequest) -> tuple[str, str]:
    """Return snapshot handle and volume id, at most one of them not empty."""
    if not request.HasField("volume_content_source"):
        return "", ""
    source = request.volume_content_source
    kind = source.WhichOneof("type")
    if kind is None:
        raise InvalidArgument("volume_content_source", "names neither a snapshot nor a volume")
    handle, volume_id = source.snapshot.snapshot_id, source.volume.volume_id
    if kind == "snapshot":
        require(snapshot_id=handle)
    else:
        require(volume_id=volume_id)
    return handle, volume_id


def _segments(topologies: Iterable[csi_pb2.Topology]) -> tuple[dict[str, str], ...]:
    return tuple(dict(t.segments) for t in topologies)
