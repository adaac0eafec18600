"""Lint's front door: text in, findings out.

Must never: raise, whatever the text is. Called by `shorthorn lint` and by `mend`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Final

import yaml

from shorthorn.lint import edits
from shorthorn.lint.documents import (
    BrokenYaml,
    Chunk,
    compose,
    find,
    find_text,
    is_null,
    manifests,
    split,
    text_of,
)
from shorthorn.lint.findings import Finding, Rule
from shorthorn.lint.kinds import check_values
from shorthorn.lint.schema import KINDS, SNAPSHOT_GROUP, KindSchema
from shorthorn.lint.structure import Object, check_structure, finding_at

if TYPE_CHECKING:
    from collections.abc import Iterator

_OLD_VERSION: Final = f"{SNAPSHOT_GROUP}/v1beta1"


@dataclass(frozen=True, slots=True)
class _Reference:
    """A content or snapshot and the other it names; `line` and `column` from 1, in the stream."""

    name: str | None
    other: str | None
    namespace: str | None
    line: int
    column: int


def check(text: str) -> list[Finding]:
    """Return what is wrong with a stream of manifests, in order of appearance.

    The `mend` of a finding rewrites its document only; `lint.mend` puts a stream together.
    """
    found: list[Finding] = []
    contents: list[_Reference] = []
    snapshots: list[_Reference] = []
    for chunk in split(text):
        try:
            roots = compose(chunk.text)
        except BrokenYaml as exc:
            found.append(_broken(exc, chunk.first_line))
            continue
        for root in roots:
            here = check_document(chunk.text, root)
            found += [replace(one, line=one.line + chunk.first_line) for one in here]
            for node in manifests(root):
                _note_reference(node, chunk, contents, snapshots)
    found += _unmatched(contents, snapshots)
    return sorted(found, key=lambda one: (one.line, one.column))


def check_document(text: str, root: yaml.Node) -> list[Finding]:
    """Return what is wrong with one document; lines count from its own first line."""
    return [finding for node in manifests(root) for finding in _check_manifest(text, node)]


def _check_manifest(text: str, node: yaml.Node) -> Iterator[Finding]:
    if is_null(node):
        return
    kind = find(node, "kind")
    kind_name = text_of(kind.value) if kind else None
    version = find(node, "apiVersion")
    if kind is None or not kind_name or version is None or not text_of(version.value):
        what = "apiVersion" if kind_name else "kind"
        message = f"this is not a Kubernetes object: it has no {what}"
        yield finding_at(node, Rule.NOT_A_MANIFEST, message, "begin with apiVersion and kind")
        return
    schema = KINDS.get(kind_name)
    if schema is None:
        close = get_close_matches(kind_name[:64], list(KINDS), n=1, cutoff=0.85)
        if close:
            message = f"kind {kind_name[:64]} is unknown"
            yield finding_at(kind.value, Rule.UNKNOWN_KIND, message, f"did you mean {close[0]}?")
        return
    yield from _check_version(text, version.value, kind_name, schema)
    manifest = Object(text, node, kind_name, schema)
    yield from check_structure(manifest)
    yield from check_values(manifest)


def _check_version(text: str, node: yaml.Node, kind: str, schema: KindSchema) -> Iterator[Finding]:
    given = text_of(node) or ""
    if given == schema.api_version:
        return
    if given == _OLD_VERSION and schema.api_version.startswith(SNAPSHOT_GROUP):
        yield finding_at(
            node,
            Rule.OLD_API_VERSION,
            f"{given} is no longer served by Kubernetes",
            f"write {schema.api_version}; nothing else has to change",
            mend=lambda: edits.replace_scalar(text, node, schema.api_version),
        )
        return
    message = f"{kind} is not of apiVersion {given[:64]}"
    advice = f"write apiVersion: {schema.api_version}"
    yield finding_at(node, Rule.WRONG_API_VERSION, message, advice)


def _broken(exc: BrokenYaml, first_line: int) -> Finding:
    return Finding(
        Rule.YAML_SYNTAX,
        f"this is not YAML: {exc.problem}",
        "check indentation, colons and quotes there and in the line above",
        line=exc.line + first_line + 1,
        column=exc.column + 1,
    )


def _note_reference(
    node: yaml.Node, chunk: Chunk, contents: list[_Reference], snapshots: list[_Reference]
) -> None:
    kind = find_text(node, "kind")
    name = find_text(node, "metadata", "name")
    line, column = node.start_mark.line + chunk.first_line + 1, node.start_mark.column + 1
    if kind == "VolumeSnapshotContent":
        other = find_text(node, "spec", "volumeSnapshotRef", "name")
        namespace = find_text(node, "spec", "volumeSnapshotRef", "namespace")
        contents.append(_Reference(name, other, namespace, line, column))
    elif kind == "VolumeSnapshot":
        other = find_text(node, "spec", "source", "volumeSnapshotContentName")
        namespace = find_text(node, "metadata", "namespace")
        snapshots.append(_Reference(name, other, namespace, line, column))


def _unmatched(contents: list[_Reference], snapshots: list[_Reference]) -> Iterator[Finding]:
    """Yield the snapshots whose content, in the same stream, names another snapshot."""
    by_name = {content.name: content for content in contents if content.name and content.other}
    for snapshot in snapshots:
        content = by_name.get(snapshot.other) if snapshot.other else None
        if content is None:
            continue
        same_space = None in (snapshot.namespace, content.namespace) or (
            snapshot.namespace == content.namespace
        )
        if content.other == snapshot.name and same_space:
            continue
        yield Finding(
            Rule.UNMATCHED_REF,
            f"its VolumeSnapshotContent refers to VolumeSnapshot"
            f" {content.namespace or ''}/{(content.other or '')[:64]}, not to this one",
            "make spec.volumeSnapshotRef and the VolumeSnapshot's name and namespace equal",
            line=snapshot.line,
            column=snapshot.column,
        )
