"""What a StorageClass and a claim say to the driver.

Owns: parameters, capabilities and sizes of CreateVolume as external-provisioner derives them. Must
never: do I/O. Used by the provisioner and the mount commands. Source: Kubernetes CSI developer
documentation, external-provisioner.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shorthorn.csi.proto import csi_pb2
from shorthorn.domain import errors

DEFAULT_FS_TYPE = "ext4"
"""external-provisioner's --default-fstype in Longhorn's deployment."""

DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"

_FS_TYPE_KEYS = ("csi.storage.k8s.io/fstype", "fstype")
"""Compared without regard to case: Longhorn's own StorageClass says `fsType`."""

_RESERVED_PREFIX = "csi.storage.k8s.io/"

_Mode = csi_pb2.VolumeCapability.AccessMode
_ACCESS_MODES = {
    "ReadWriteOnce": _Mode.SINGLE_NODE_MULTI_WRITER,
    "ReadWriteOncePod": _Mode.SINGLE_NODE_SINGLE_WRITER,
    "ReadOnlyMany": _Mode.MULTI_NODE_READER_ONLY,
    "ReadWriteMany": _Mode.MULTI_NODE_MULTI_WRITER,
}
"""The mapping for drivers with capability SINGLE_NODE_MULTI_WRITER."""


def fs_type_of(parameters: Mapping[str, str]) -> str:
    """Return the file system that a StorageClass asks for. Raises InvalidArgument: it is two."""
    given = [value for key, value in parameters.items() if key.lower() in _FS_TYPE_KEYS]
    if len(given) > 1:
        raise errors.InvalidArgument("fsType", "is given more than once in the StorageClass")
    return given[0] if given and given[0] else DEFAULT_FS_TYPE


def driver_parameters(parameters: Mapping[str, str]) -> dict[str, str]:
    """Return the parameters without those that are for the provisioner itself."""
    return {
        key: value
        for key, value in parameters.items()
        if not key.startswith(_RESERVED_PREFIX) and key.lower() not in _FS_TYPE_KEYS
    }


def capabilities(
    access_modes: Sequence[str], volume_mode: str, fs_type: str, mount_options: Sequence[str]
) -> list[csi_pb2.VolumeCapability]:
    """Return one capability for each access mode. Raises KeyError for a mode Kubernetes does not
    have.
    """
    return [capability(mode, volume_mode, fs_type, mount_options) for mode in access_modes]


def capability(
    access_mode: str, volume_mode: str, fs_type: str, mount_options: Sequence[str]
) -> csi_pb2.VolumeCapability:
    mode = csi_pb2.VolumeCapability.AccessMode(mode=_ACCESS_MODES[access_mode])
    if volume_mode == "Block":
        return csi_pb2.VolumeCapability(
            access_mode=mode, block=csi_pb2.VolumeCapability.BlockVolume()
        )
    mount = csi_pb2.VolumeCapability.MountVolume(fs_type=fs_type, mount_flags=mount_options)
    return csi_pb2.VolumeCapability(access_mode=mode, mount=mount)


def is_default(storage_class: Mapping[str, Any]) -> bool:
    annotations = storage_class["metadata"].get("annotations") or {}
    return annotations.get(DEFAULT_CLASS) == "true"
