"""Every kind that the package ships: its schema compiles, takes what is right, names the wrong."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

import shorthorn
from shorthorn.standalone.apiserver.field_errors import RULES_UNCHECKED
from shorthorn.standalone.apiserver.schema import InvalidObject, Schema, UnknownFields

PACKAGE = Path(shorthorn.__file__).parent
FILES = sorted(
    [
        *(PACKAGE / "kube/crds").glob("*.yaml"),
        *(PACKAGE / "standalone/apiserver/builtin").glob("*.yaml"),
    ]
)
MANIFESTS = Path(__file__).parents[2] / "src/shorthorn/demo/page"


def load(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)
    return loaded


CRDS = {crd["spec"]["names"]["kind"]: crd for crd in map(load, FILES)}


def compiled(crd: dict[str, Any], version: dict[str, Any]) -> Schema:
    name = f"{crd['metadata']['name']}/{version['name']}"
    is_core = crd["spec"]["group"] in ("", "storage.k8s.io")
    return Schema.compile(version["schema"]["openAPIV3Schema"], name=name, is_core=is_core)


def schema(kind: str) -> Schema:
    crd = CRDS[kind]
    return compiled(crd, next(v for v in crd["spec"]["versions"] if v["storage"]))


def edited(base: dict[str, Any], **paths: Any) -> dict[str, Any]:
    """A copy with values set by path, `__` between its parts; None removes."""
    result = copy.deepcopy(base)
    for path, value in paths.items():
        *parents, last = path.split("__")
        target = result
        for parent in parents:
            target = target.setdefault(parent, {})
        if value is None:
            target.pop(last, None)
        else:
            target[last] = value
    return result


CLAIM = {
    "apiVersion": "v1",
    "kind": "PersistentVolumeClaim",
    "metadata": {"name": "a", "namespace": "default"},
    "spec": {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "5Gi"}},
        "storageClassName": "longhorn",
    },
}
BOUND_CLAIM = edited(CLAIM, spec__volumeName="pv", spec__volumeMode="Filesystem") | {
    "status": {"phase": "Bound", "capacity": {"storage": "5Gi"}}
}
VOLUME = {
    "metadata": {"name": "pv"},
    "spec": {
        "accessModes": ["ReadWriteOnce"],
        "capacity": {"storage": "5Gi"},
        "claimRef": {"namespace": "default", "name": "a", "uid": "1"},
        "csi": {
            "driver": "driver.longhorn.io",
            "volumeHandle": "pvc-1",
            "fsType": "ext4",
            "volumeAttributes": {"fromBackup": ""},
        },
        "nodeAffinity": {
            "required": {
                "nodeSelectorTerms": [
                    {"matchExpressions": [{"key": "host", "operator": "In", "values": ["x"]}]}
                ]
            }
        },
        "storageClassName": "longhorn",
    },
}
SNAPSHOT = {
    "metadata": {"name": "s", "namespace": "default"},
    "spec": {
        "source": {"persistentVolumeClaimName": "a"},
        "volumeSnapshotClassName": "longhorn-snapshot-vsc",
    },
    "status": {
        "boundVolumeSnapshotContentName": "snapcontent-1",
        "creationTime": "2026-01-02T03:04:05Z",
        "readyToUse": True,
        "restoreSize": "5Gi",
        "error": {"message": "m", "time": "2026-01-02T03:04:05.5Z"},
    },
}
CONTENT = {
    "metadata": {"name": "c"},
    "spec": {
        "deletionPolicy": "Delete",
        "driver": "driver.longhorn.io",
        "source": {"snapshotHandle": "bi://backing?backingImage=x"},
        "sourceVolumeMode": "Filesystem",
        "volumeSnapshotClassName": "longhorn-snapshot-vsc",
        "volumeSnapshotRef": {"name": "s", "namespace": "default"},
    },
    "status": {"creationTime": 1767323045000000000, "readyToUse": True, "restoreSize": 5 << 30},
}
SNAPSHOT_CLASS = {
    "metadata": {"name": "k"},
    "deletionPolicy": "Delete",
    "driver": "driver.longhorn.io",
    "parameters": {"type": "bi"},
}
STORAGE_CLASS = {
    "metadata": {"name": "longhorn", "annotations": {"example.com/note": "x"}},
    "provisioner": "driver.longhorn.io",
    "allowVolumeExpansion": True,
    "parameters": {"fsType": "ext4"},
    "reclaimPolicy": "Delete",
    "volumeBindingMode": "Immediate",
    "allowedTopologies": [{"matchLabelExpressions": [{"key": "host", "values": ["x"]}]}],
    "mountOptions": ["noatime"],
}
EVENT = {
    "metadata": {"name": "a.1", "namespace": "default"},
    "involvedObject": {"kind": "PersistentVolumeClaim", "namespace": "default", "name": "a"},
    "reason": "ProvisioningFailed",
    "message": "no",
    "type": "Warning",
    "count": 3,
    "eventTime": None,
    "firstTimestamp": "2026-01-02T03:04:05Z",
    "lastTimestamp": "2026-01-02T03:05:05Z",
    "source": {"component": "provisioner"},
    "series": {"count": 2, "lastObservedTime": "2026-01-02T03:04:05.000001Z"},
}
NODE = {
    "metadata": {"name": "host", "labels": {"kubernetes.io/hostname": "host"}},
    "spec": {"podCIDR": "10.0.0.0/24", "taints": [{"key": "a", "effect": "NoSchedule"}]},
    "status": {
        "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
        "capacity": {"cpu": 2, "memory": "8124Mi"},
        "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
    },
}
VALID: dict[str, dict[str, Any]] = {
    "PersistentVolumeClaim": BOUND_CLAIM,
    "PersistentVolume": VOLUME,
    "VolumeSnapshot": SNAPSHOT,
    "VolumeSnapshotContent": CONTENT,
    "VolumeSnapshotClass": SNAPSHOT_CLASS,
    "StorageClass": STORAGE_CLASS,
    "Event": EVENT,
    "Node": NODE,
    "Namespace": {"metadata": {"name": "longhorn-system"}, "spec": {"finalizers": ["kubernetes"]}},
    "Secret": {"metadata": {"name": "s"}, "data": {"password": "cGFzcw=="}},
    "ConfigMap": {"metadata": {"name": "c"}, "data": {"a.txt": "1"}, "binaryData": {"b": "AAE="}},
    "ServiceAccount": {"metadata": {"name": "default"}, "secrets": [{"name": "s"}]},
    "CSIDriver": {"metadata": {"name": "driver.longhorn.io"}, "spec": {"attachRequired": False}},
    "CSINode": {
        "metadata": {"name": "host"},
        "spec": {"drivers": [{"name": "driver.longhorn.io", "nodeID": "host"}]},
    },
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_version_of_a_file_compiles(path: Path) -> None:
    crd = load(path)
    versions = crd["spec"]["versions"]
    assert [v["storage"] for v in versions].count(True) == 1
    for version in versions:
        compiled(crd, version)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_is_named_after_what_is_in_it(path: Path) -> None:
    crd = load(path)
    group, plural = crd["spec"]["group"], crd["spec"]["names"]["plural"]
    assert crd["metadata"]["name"] == (f"{plural}.{group}" if group else plural)
    assert path.stem == (f"{group}_{plural}" if path.parent.name == "crds" else plural)


@pytest.mark.parametrize("kind", sorted(VALID))
def test_a_right_object_is_admitted_and_then_again_unchanged(kind: str) -> None:
    admitted = schema(kind).admit(VALID[kind])
    assert schema(kind).admit(admitted, admitted) == admitted


def test_kubernetes_defaults_are_filled_in() -> None:
    claim = schema("PersistentVolumeClaim").admit(CLAIM)
    assert claim["spec"]["volumeMode"] == "Filesystem"
    assert claim["status"] == {"phase": "Pending"}
    volume = schema("PersistentVolume").admit(VOLUME)
    assert volume["spec"]["persistentVolumeReclaimPolicy"] == "Retain"
    assert volume["spec"]["volumeMode"] == "Filesystem"
    plain = {"metadata": {"name": "k"}, "provisioner": "driver.longhorn.io"}
    storage_class = schema("StorageClass").admit(plain)
    assert storage_class["reclaimPolicy"] == "Delete"
    assert storage_class["volumeBindingMode"] == "Immediate"
    assert schema("Secret").admit(VALID["Secret"])["type"] == "Opaque"
    assert "eventTime" not in schema("Event").admit(EVENT)


REFUSED_ON_CREATE: list[tuple[str, dict[str, Any], str, str]] = [
    ("VolumeSnapshot", edited(SNAPSHOT, spec=None), "spec", "FieldValueRequired"),
    ("VolumeSnapshot", edited(SNAPSHOT, spec__source=None), "spec.source", "FieldValueRequired"),
    ("VolumeSnapshot", edited(SNAPSHOT, spec__source={}), "spec.source", "FieldValueInvalid"),
    (
        "VolumeSnapshot",
        edited(SNAPSHOT, spec__source__volumeSnapshotContentName="c"),
        "spec.source",
        "FieldValueInvalid",
    ),
    (
        "VolumeSnapshot",
        edited(SNAPSHOT, spec__volumeSnapshotClassName=""),
        "spec.volumeSnapshotClassName",
        "FieldValueInvalid",
    ),
    (
        "VolumeSnapshot",
        edited(SNAPSHOT, status__restoreSize="5 Gi"),
        "status.restoreSize",
        "FieldValueInvalid",
    ),
    (
        "VolumeSnapshotContent",
        edited(CONTENT, spec__deletionPolicy="Foo"),
        "spec.deletionPolicy",
        "FieldValueNotSupported",
    ),
    (
        "VolumeSnapshotContent",
        edited(CONTENT, spec__source__volumeHandle="v"),
        "spec.source",
        "FieldValueInvalid",
    ),
    (
        "VolumeSnapshotContent",
        edited(CONTENT, spec__volumeSnapshotRef__namespace=None),
        "spec.volumeSnapshotRef",
        "FieldValueInvalid",
    ),
    (
        "VolumeSnapshotContent",
        edited(CONTENT, status__restoreSize=-1),
        "status.restoreSize",
        "FieldValueInvalid",
    ),
    ("VolumeSnapshotClass", edited(SNAPSHOT_CLASS, driver=None), "driver", "FieldValueRequired"),
    (
        "VolumeSnapshotClass",
        edited(SNAPSHOT_CLASS, parameters={"type": 1}),
        "parameters.type",
        "FieldValueTypeInvalid",
    ),
    (
        "PersistentVolumeClaim",
        edited(CLAIM, spec__accessModes=[]),
        "spec.accessModes",
        "FieldValueRequired",
    ),
    (
        "PersistentVolumeClaim",
        edited(CLAIM, spec__accessModes=["Often"]),
        "spec.accessModes[0]",
        "FieldValueNotSupported",
    ),
    (
        "PersistentVolumeClaim",
        edited(CLAIM, spec__accessModes=["ReadWriteOncePod", "ReadWriteOnce"]),
        "spec.accessModes",
        "FieldValueForbidden",
    ),
    (
        "PersistentVolumeClaim",
        edited(CLAIM, spec__resources={}),
        "spec.resources.requests",
        "FieldValueRequired",
    ),
    (
        "PersistentVolumeClaim",
        edited(CLAIM, spec__resources__requests__storage="5GB"),
        "spec.resources.requests.storage",
        "FieldValueInvalid",
    ),
    (
        "PersistentVolumeClaim",
        edited(CLAIM, spec__resources__requests__storage=0),
        "spec.resources.requests",
        "FieldValueInvalid",
    ),
    (
        "PersistentVolumeClaim",
        edited(
            CLAIM,
            spec__dataSource={"kind": "PersistentVolumeClaim", "name": "b"},
            spec__dataSourceRef={"kind": "PersistentVolumeClaim", "name": "c"},
        ),
        "spec.dataSource",
        "FieldValueInvalid",
    ),
    ("PersistentVolume", edited(VOLUME, spec__csi=None), "spec", "FieldValueRequired"),
    (
        "PersistentVolume",
        edited(VOLUME, spec__hostPath={"path": "/x"}),
        "spec",
        "FieldValueForbidden",
    ),
    (
        "PersistentVolume",
        edited(VOLUME, spec__capacity=None),
        "spec.capacity",
        "FieldValueRequired",
    ),
    (
        "PersistentVolume",
        edited(VOLUME, spec__csi=None, spec__nodeAffinity=None, spec__local={"path": "/x"}),
        "spec.nodeAffinity",
        "FieldValueRequired",
    ),
    (
        "StorageClass",
        edited(STORAGE_CLASS, provisioner="not a driver"),
        "provisioner",
        "FieldValueInvalid",
    ),
    (
        "StorageClass",
        edited(STORAGE_CLASS, volumeBindingMode="Later"),
        "volumeBindingMode",
        "FieldValueNotSupported",
    ),
    ("Event", edited(EVENT, involvedObject=None), "involvedObject", "FieldValueRequired"),
    ("Event", edited(EVENT, count=1 << 31), "count", "FieldValueTypeInvalid"),
    (
        "Event",
        edited(EVENT, lastTimestamp="yesterday"),
        "lastTimestamp",
        "FieldValueTypeInvalid",
    ),
    (
        "Node",
        edited(NODE, status__conditions=[{"type": "A", "status": "True"}] * 2),
        "status.conditions[1]",
        "FieldValueDuplicate",
    ),
    ("Secret", edited(VALID["Secret"], data={"a": "???"}), "data.a", "FieldValueTypeInvalid"),
    ("ConfigMap", edited(VALID["ConfigMap"], data={"a/b": "1"}), "data", "FieldValueInvalid"),
    ("ConfigMap", edited(VALID["ConfigMap"], data={"b": "1"}), "", "FieldValueInvalid"),
    (
        "CSINode",
        edited(VALID["CSINode"], spec__drivers=[{"name": "a", "nodeID": "x"}] * 2),
        "spec.drivers[1]",
        "FieldValueDuplicate",
    ),
]


def refusal(kind: str, obj: dict[str, Any], old: dict[str, Any] | None) -> list[tuple[str, str]]:
    with pytest.raises(InvalidObject) as caught:
        schema(kind).admit(obj, old)
    errors = [error for error in caught.value.errors if error is not RULES_UNCHECKED]
    return [(error.field, error.reason) for error in errors]


@pytest.mark.parametrize(
    ("kind", "obj", "field", "reason"),
    [pytest.param(*row, id=f"{row[0]}-{row[2]}-{i}") for i, row in enumerate(REFUSED_ON_CREATE)],
)
def test_a_wrong_object_is_refused_at_the_field_with_the_reason(
    kind: str, obj: dict[str, Any], field: str, reason: str
) -> None:
    assert refusal(kind, obj, None) == [(field, reason)]


FORBIDDEN, INVALID = "FieldValueForbidden", "FieldValueInvalid"
REFUSED_ON_UPDATE: list[tuple[str, dict[str, Any], str, str]] = [
    (
        "VolumeSnapshot",
        {"spec__source__persistentVolumeClaimName": "b"},
        "spec.source.persistentVolumeClaimName",
        INVALID,
    ),
    (
        "VolumeSnapshot",
        {"spec__source": {"volumeSnapshotContentName": "c"}},
        "spec.source",
        INVALID,
    ),
    (
        "VolumeSnapshotContent",
        {"spec__source__snapshotHandle": "snap://v/s"},
        "spec.source.snapshotHandle",
        INVALID,
    ),
    ("VolumeSnapshotContent", {"spec__source": {"volumeHandle": "v"}}, "spec.source", INVALID),
    ("VolumeSnapshotContent", {"spec__sourceVolumeMode": None}, "spec", INVALID),
    (
        "VolumeSnapshotContent",
        {"spec__sourceVolumeMode": "Block"},
        "spec.sourceVolumeMode",
        INVALID,
    ),
    ("PersistentVolumeClaim", {"spec__accessModes": ["ReadOnlyMany"]}, "spec", FORBIDDEN),
    ("PersistentVolumeClaim", {"spec__volumeMode": "Block"}, "spec", FORBIDDEN),
    ("PersistentVolumeClaim", {"spec__volumeName": "other"}, "spec", FORBIDDEN),
    ("PersistentVolumeClaim", {"spec__volumeName": None}, "spec", FORBIDDEN),
    ("PersistentVolumeClaim", {"spec__storageClassName": "b"}, "spec", FORBIDDEN),
    (
        "PersistentVolumeClaim",
        {"spec__dataSource": {"kind": "PersistentVolumeClaim", "name": "b"}},
        "spec",
        FORBIDDEN,
    ),
    (
        "PersistentVolumeClaim",
        {"spec__resources__requests__storage": "5119Mi"},
        "spec.resources.requests",
        FORBIDDEN,
    ),
    ("PersistentVolume", {"spec__csi__volumeHandle": "other"}, "spec.csi", FORBIDDEN),
    ("PersistentVolume", {"spec__csi__fsType": None}, "spec.csi", FORBIDDEN),
    (
        "PersistentVolume",
        {"spec__csi": None, "spec__hostPath": {"path": "/x"}},
        "spec",
        FORBIDDEN,
    ),
    ("PersistentVolume", {"spec__volumeMode": "Block"}, "spec.volumeMode", INVALID),
    ("PersistentVolume", {"spec__nodeAffinity": None}, "spec.nodeAffinity", INVALID),
    ("StorageClass", {"provisioner": "other.io"}, "provisioner", FORBIDDEN),
    ("StorageClass", {"parameters__fsType": "xfs"}, "parameters", FORBIDDEN),
    ("StorageClass", {"parameters": None}, "parameters", FORBIDDEN),
    ("StorageClass", {"reclaimPolicy": "Retain"}, "reclaimPolicy", FORBIDDEN),
    (
        "StorageClass",
        {"volumeBindingMode": "WaitForFirstConsumer"},
        "volumeBindingMode",
        INVALID,
    ),
    ("Secret", {"type": "example.com/t"}, "type", INVALID),
    ("CSIDriver", {"spec__attachRequired": True}, "spec.attachRequired", INVALID),
]


@pytest.mark.parametrize(
    ("kind", "changes", "field", "reason"),
    [pytest.param(*row, id=f"{row[0]}-{i}") for i, row in enumerate(REFUSED_ON_UPDATE)],
)
def test_what_is_immutable_cannot_be_changed(
    kind: str, changes: dict[str, Any], field: str, reason: str
) -> None:
    old = schema(kind).admit(VALID[kind])
    assert refusal(kind, edited(old, **changes), old) == [(field, reason)]


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("PersistentVolumeClaim", {"spec__resources__requests__storage": "5.5Gi"}),
        ("PersistentVolumeClaim", {"spec__volumeAttributesClassName": "gold"}),
        ("PersistentVolume", {"spec__claimRef": None, "spec__capacity__storage": "6Gi"}),
        ("PersistentVolume", {"spec__persistentVolumeReclaimPolicy": "Delete"}),
        ("StorageClass", {"allowVolumeExpansion": False}),
        ("VolumeSnapshot", {"spec__volumeSnapshotClassName": "other"}),
        ("VolumeSnapshotContent", {"spec__deletionPolicy": "Retain"}),
        ("Event", {"count": 4, "message": "still no"}),
    ],
)
def test_what_may_change_can_be_changed(kind: str, changes: dict[str, Any]) -> None:
    old = schema(kind).admit(VALID[kind])
    changed = edited(old, **changes)
    assert schema(kind).admit(changed, old) == changed


def test_quantities_are_stored_as_text() -> None:
    number = edited(CLAIM, spec__resources__requests__storage=5 << 30)
    admitted = schema("PersistentVolumeClaim").admit(number)
    assert admitted["spec"]["resources"]["requests"] == {"storage": "5368709120"}
    old = schema("PersistentVolumeClaim").admit(CLAIM)
    assert schema("PersistentVolumeClaim").admit(number, old) == admitted


def test_a_pending_claim_cannot_grow_but_gets_its_volume_and_class_once() -> None:
    old = schema("PersistentVolumeClaim").admit(edited(CLAIM, spec__storageClassName=None))
    bound = edited(old, spec__volumeName="pv", spec__storageClassName="longhorn")
    assert schema("PersistentVolumeClaim").admit(bound, old) == bound
    larger = edited(old, spec__resources__requests__storage="6Gi")
    assert refusal("PersistentVolumeClaim", larger, old) == [("spec", FORBIDDEN)]


@pytest.mark.parametrize("field", ["data", "immutable"])
def test_an_immutable_config_map_stays_as_it_is(field: str) -> None:
    old = edited(VALID["ConfigMap"], immutable=True)
    changed = edited(old, **{field: {"x": "2"} if field == "data" else False})
    assert refusal("ConfigMap", changed, old) == [(field, FORBIDDEN)]


#: File name: its unknown fields, and what is missing once they are taken away.
MIS_INDENTED: dict[str, tuple[list[str], list[str]]] = {
    "6-on-demand-download-misindented.yaml": (
        ["volumeSnapshotRef"],
        ["spec.volumeSnapshotRef"],
    ),
    "7-on-demand-export-misindented.yaml": (
        [
            "name",
            "volumeSnapshotClassName",
            "driver",
            "deletionPolicy",
            "source",
            "volumeSnapshotRef",
        ],
        ["metadata.name", "spec"],
    ),
}


@pytest.mark.parametrize("path", sorted(MANIFESTS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_documented_manifests_are_admitted_but_for_the_mis_indented(path: Path) -> None:
    manifest = load(path)
    if path.name not in MIS_INDENTED:
        assert schema(manifest["kind"]).admit(manifest)["metadata"] == manifest["metadata"]
        return
    unknown, missing = MIS_INDENTED[path.name]
    with pytest.raises(UnknownFields) as caught:
        schema(manifest["kind"]).admit(manifest)
    assert caught.value.paths == unknown
    for field in unknown:
        del manifest[field]
    required = [(field, "FieldValueRequired") for field in missing]
    assert refusal(manifest["kind"], manifest, None) == required


def test_there_are_two_mis_indented_manifests_to_refuse() -> None:
    names = {path.name for path in MANIFESTS.glob("*.yaml")}
    assert MIS_INDENTED.keys() < names
