"""What a StorageClass says to the driver."""

from __future__ import annotations

import pytest

from shorthorn.csi.proto import csi_pb2
from shorthorn.domain.errors import InvalidArgument
from shorthorn.standalone.storage_class import capability, driver_parameters, fs_type_of

Mode = csi_pb2.VolumeCapability.AccessMode


@pytest.mark.parametrize("key", ["fsType", "fstype", "FSTYPE", "csi.storage.k8s.io/fstype"])
def test_the_file_system_is_found_however_its_key_is_written(key: str) -> None:
    assert fs_type_of({key: "xfs", "numberOfReplicas": "3"}) == "xfs"
    assert driver_parameters({key: "xfs", "numberOfReplicas": "3"}) == {"numberOfReplicas": "3"}


def test_without_a_wish_it_is_ext4() -> None:
    assert fs_type_of({}) == fs_type_of({"fsType": ""}) == "ext4"


def test_two_wishes_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="more than once"):
        fs_type_of({"fsType": "xfs", "csi.storage.k8s.io/fstype": "xfs"})


def test_what_is_the_provisioners_own_is_kept_from_the_driver() -> None:
    given = {"csi.storage.k8s.io/provisioner-secret-name": "s", "backingImage": "golden"}
    assert driver_parameters(given) == {"backingImage": "golden"}


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("ReadWriteOnce", Mode.SINGLE_NODE_MULTI_WRITER),
        ("ReadWriteOncePod", Mode.SINGLE_NODE_SINGLE_WRITER),
        ("ReadOnlyMany", Mode.MULTI_NODE_READER_ONLY),
        ("ReadWriteMany", Mode.MULTI_NODE_MULTI_WRITER),
    ],
)
def test_access_modes_have_their_csi_names(mode: str, expected: int) -> None:
    assert capability(mode, "Filesystem", "ext4", []).access_mode.mode == expected


def test_a_block_volume_has_no_file_system() -> None:
    block = capability("ReadWriteOnce", "Block", "ext4", ["noatime"])
    assert block.WhichOneof("access_type") == "block"
    mount = capability("ReadWriteOnce", "Filesystem", "xfs", ["noatime"]).mount
    assert (mount.fs_type, list(mount.mount_flags)) == ("xfs", ["noatime"])
