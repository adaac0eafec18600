"""Rules about values, kind by kind.

Must never: look at where fields stand (`structure` does), nor at objects outside the file.
Called by `check`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import yaml

from shorthorn.domain.handle_traps import EXPORT_TYPES, lower_case_of
from shorthorn.lint import edits
from shorthorn.lint.documents import fields, find, find_text, text_of
from shorthorn.lint.findings import Finding, Rule
from shorthorn.lint.handle_rules import check_handle
from shorthorn.lint.schema import SNAPSHOT_GROUP
from shorthorn.lint.structure import Object, finding_at

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DRIVER: Final = "driver.longhorn.io"
_TYPES: Final = frozenset({"bi", "snap"})
_POLICIES: Final = ("Delete", "Retain")
_CLASS_PARAMETERS: Final = frozenset(
    {"type", "export-type", "exportType", "nodeSelector", "diskSelector"}
)
_ACCESS_MODES: Final = ("ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod")
#: resource.Quantity, as the API server's own message gives it.
_QUANTITY = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?\d+)?", re.ASCII)


def check_values(manifest: Object) -> Iterator[Finding]:
    """Yield what is wrong with a manifest's values."""
    rules: dict[str, Callable[[Object], Iterator[Finding]]] = {
        "VolumeSnapshotClass": _check_class,
        "VolumeSnapshot": _check_snapshot,
        "VolumeSnapshotContent": _check_content,
        "PersistentVolumeClaim": _check_claim,
    }
    yield from rules[manifest.kind](manifest)


def _check_class(manifest: Object) -> Iterator[Finding]:
    yield from _check_policy(manifest, ("deletionPolicy",))
    driver = find(manifest.root, "driver")
    if driver is not None and text_of(driver.value) not in {DRIVER, None}:
        yield _other_driver(driver.value)
        return
    yield from _check_class_type(manifest)
    for key in ("exportType", "export-type"):
        found = find(manifest.root, "parameters", key)
        if found is not None:
            yield from _check_class_value(manifest, found.value, key, EXPORT_TYPES)
    yield from _check_class_keys(manifest)


def _check_class_type(manifest: Object) -> Iterator[Finding]:
    found = find(manifest.root, "parameters", "type")
    if found is not None:
        yield from _check_class_value(manifest, found.value, "type", _TYPES)
        return
    yield finding_at(
        manifest.root,
        Rule.CLASS_TYPE,
        "parameters.type is missing, which asks for a backup; there are none here",
        "add parameters with type: bi (a backing image) or type: snap",
    )


def _check_class_value(
    manifest: Object, node: yaml.Node, key: str, known: frozenset[str]
) -> Iterator[Finding]:
    value = text_of(node) or ""
    if value in known:
        return
    lower = lower_case_of(value, frozenset(known))
    listed = " or ".join(sorted(known))
    yield finding_at(
        node,
        Rule.CLASS_TYPE if key == "type" else Rule.CLASS_EXPORT_TYPE,
        f"parameters.{key} is {value[:64]!r}; known are {listed}, in lower case",
        f"write {lower or listed}",
        mend=(lambda: edits.replace_scalar(manifest.text, node, lower)) if lower else None,
    )


def _check_class_keys(manifest: Object) -> Iterator[Finding]:
    both = [find_text(manifest.root, "parameters", key) for key in ("exportType", "export-type")]
    parameters = find(manifest.root, "parameters")
    if parameters is None:
        return
    if None not in both and both[0] != both[1]:
        yield finding_at(
            parameters.key,
            Rule.CLASS_TWO_EXPORT_TYPES,
            "exportType and export-type differ; exportType counts",
            "remove one of them",
        )
    for field in fields(parameters.value):
        if field.name not in _CLASS_PARAMETERS and not field.name.startswith("csi.storage.k8s.io/"):
            yield finding_at(
                field.key,
                Rule.CLASS_PARAMETER,
                f"parameters.{field.name[:64]} is unknown and has no effect",
                f"known are {', '.join(sorted(_CLASS_PARAMETERS))}",
            )


def _check_snapshot(manifest: Object) -> Iterator[Finding]:
    yield from _check_choice(manifest, ("persistentVolumeClaimName", "volumeSnapshotContentName"))


def _check_content(manifest: Object) -> Iterator[Finding]:
    yield from _check_policy(manifest, ("spec", "deletionPolicy"))
    yield from _check_choice(manifest, ("snapshotHandle", "volumeHandle"))
    driver = find(manifest.root, "spec", "driver")
    if driver is not None and text_of(driver.value) not in {DRIVER, None}:
        yield _other_driver(driver.value)
        return
    found = find(manifest.root, "spec", "source", "snapshotHandle")
    handle = text_of(found.value) if found else None
    if found is None or handle is None:
        return
    yield from check_handle(manifest.text, found.value, handle)
    policy = find(manifest.root, "spec", "deletionPolicy")
    if policy is not None and text_of(policy.value) == "Delete":
        yield finding_at(
            policy.key,
            Rule.DELETES_IMAGE,
            "deleting the VolumeSnapshot deletes the image itself, whoever made it",
            "write deletionPolicy: Retain to keep the image",
        )


def _check_claim(manifest: Object) -> Iterator[Finding]:
    for name in ("dataSource", "dataSourceRef"):
        yield from _check_data_source(manifest, name)
    modes = find(manifest.root, "spec", "accessModes")
    for node in modes.value.value if modes and isinstance(modes.value, yaml.SequenceNode) else ():
        if text_of(node) not in _ACCESS_MODES:
            message = f"{(text_of(node) or '')[:64]!r} is no access mode"
            yield finding_at(node, Rule.ACCESS_MODE, message, f"use {' or '.join(_ACCESS_MODES)}")
    size = find(manifest.root, "spec", "resources", "requests", "storage")
    text = text_of(size.value) if size else None
    if size is not None and text is not None and not _QUANTITY.fullmatch(text):
        message = f"storage {text[:64]!r} is not a quantity"
        yield finding_at(size.value, Rule.QUANTITY, message, "write a number with a unit: 5Gi")


def _check_data_source(manifest: Object, name: str) -> Iterator[Finding]:
    kind = find(manifest.root, "spec", name, "kind")
    value = text_of(kind.value) if kind else None
    if kind is None or value is None:
        return
    if value in {"VolumeSnapshotContent", "VolumeSnapshotClass", "BackingImage"}:
        yield finding_at(
            kind.value,
            Rule.DATA_SOURCE_KIND,
            f"a volume is not filled from a {value}",
            "name the VolumeSnapshot that stands for it",
        )
    if value != "VolumeSnapshot":
        return
    group = find(manifest.root, "spec", name, "apiGroup")
    given = text_of(group.value) if group else None
    if given == SNAPSHOT_GROUP:
        return

    def mend() -> str | None:
        if group is None:
            return edits.add_field(manifest.text, kind, f"apiGroup: {SNAPSHOT_GROUP}")
        return edits.replace_scalar(manifest.text, group.value, SNAPSHOT_GROUP)

    yield finding_at(
        group.value if group else kind.key,
        Rule.DATA_SOURCE_GROUP,
        f"the apiGroup of a VolumeSnapshot is {SNAPSHOT_GROUP}"
        + (f", not {given[:64]!r}" if given else "; it is missing"),
        f"write apiGroup: {SNAPSHOT_GROUP}, without a version",
        mend=mend,
    )


def _check_policy(manifest: Object, path: tuple[str, ...]) -> Iterator[Finding]:
    found = find(manifest.root, *path)
    value = text_of(found.value) if found else None
    if found is None or value is None or value in _POLICIES:
        return
    meant = value.capitalize() if value.capitalize() in _POLICIES else None
    yield finding_at(
        found.value,
        Rule.DELETION_POLICY,
        f"deletionPolicy {value[:64]!r} is neither Delete nor Retain",
        f"write {meant or 'Delete or Retain'}",
        mend=(lambda: edits.replace_scalar(manifest.text, found.value, meant)) if meant else None,
    )


def _check_choice(manifest: Object, names: tuple[str, str]) -> Iterator[Finding]:
    source = find(manifest.root, "spec", "source")
    if source is None or not isinstance(source.value, yaml.MappingNode):
        return
    given = [name for name in names if find_text(source.value, name)]
    if len(given) == 1 or find(source.value, "<<"):
        return
    yield finding_at(
        source.key,
        Rule.SOURCE_CHOICE,
        f"spec.source has {'both' if given else 'neither'} of {' and '.join(names)}",
        "give exactly one",
    )


def _other_driver(node: yaml.Node) -> Finding:
    return finding_at(
        node,
        Rule.OTHER_DRIVER,
        f"the driver is {(text_of(node) or '')[:64]!r}; its values are not checked",
        f"write {DRIVER} if it was meant",
    )
