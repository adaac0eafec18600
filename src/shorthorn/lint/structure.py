"""Rules about where fields stand: misplaced, unknown, repeated, missing, of the wrong type.

Must never: look at what values say (`kinds` does). Called by `check`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Final

import yaml

from shorthorn.lint import edits
from shorthorn.lint.documents import fields, find, has_merge, is_null, is_string
from shorthorn.lint.findings import Finding, Rule
from shorthorn.lint.schema import Fields, Leaf, Path, homes, names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shorthorn.lint.documents import Field
    from shorthorn.lint.schema import KindSchema

#: Longer names are not compared with known ones (arbitrary; the longest known has 26).
_COMPARED_CHARS_MAX: Final = 64


@dataclass(frozen=True, slots=True)
class Object:
    """One manifest: the text of its document, its root, its kind and the kind's schema."""

    text: str
    root: yaml.Node
    kind: str
    schema: KindSchema


def finding_at(
    node: yaml.Node,
    rule: Rule,
    message: str,
    advice: str,
    *,
    mend: Callable[[], str | None] | None = None,
) -> Finding:
    """Return a finding at a node's place in its document."""
    start = node.start_mark
    return Finding(rule, message, advice, line=start.line + 1, column=start.column + 1, mend=mend)


def check_structure(manifest: Object) -> Iterator[Finding]:
    """Yield what is wrong with the places of a manifest's fields."""
    found = list(_check_mapping(manifest, manifest.root, manifest.schema.fields, ()))
    yield from found
    misplaced = {finding.subject for finding in found if finding.rule is Rule.MISPLACED_FIELD}
    yield from _check_required(manifest, misplaced)


def _check_mapping(
    manifest: Object, node: yaml.Node, known: Fields, path: Path
) -> Iterator[Finding]:
    seen: set[str] = set()
    for field in fields(node):
        if field.name in seen:
            yield finding_at(
                field.key,
                Rule.DUPLICATE_FIELD,
                f"{_dotted((*path, field.name))} is given twice",
                "remove one of them",
            )
            continue
        seen.add(field.name)
        below = known.get(field.name)
        if field.name == "<<":
            continue
        if below is None:
            yield _stray_field(manifest, field, path)
        elif below is Leaf.TEXT:
            yield from _check_text(field, path)
        elif not isinstance(below, Leaf):
            yield from _check_below(manifest, field, below, path)


def _check_below(manifest: Object, field: Field, below: Fields, path: Path) -> Iterator[Finding]:
    if isinstance(field.value, yaml.MappingNode):
        yield from _check_mapping(manifest, field.value, below, (*path, field.name))
    elif not is_null(field.value):
        yield finding_at(
            field.value,
            Rule.WRONG_TYPE,
            f"{_dotted((*path, field.name))} must hold fields, such as {next(iter(below))}",
            "put the fields below it, each on a line of its own, set in by two spaces",
        )


def _check_text(field: Field, path: Path) -> Iterator[Finding]:
    if not is_string(field.value) and not is_null(field.value):
        yield finding_at(
            field.value,
            Rule.WRONG_TYPE,
            f"{_dotted((*path, field.name))} must be a string",
            "put the value in quotes" if isinstance(field.value, yaml.ScalarNode) else "write one",
        )


def _stray_field(manifest: Object, field: Field, path: Path) -> Finding:
    """Say where a field that does not belong here belongs, if anywhere."""
    where = _dotted(path) or "the top level"
    places = homes(field.name, manifest.schema.fields)
    if not places:
        return _unknown_field(manifest, field, where)
    parent = _free_parent(manifest, field, places)
    home = next((place for place in places if parent and _leads_to(manifest, place, parent)), None)
    finding = finding_at(
        field.key,
        Rule.MISPLACED_FIELD,
        f"{field.name} stands at {where}; it belongs to {_dotted(home or places[0]) or 'the top'}",
        f"set {field.name} in below {_dotted(home)}" if home else "move it there",
        mend=(lambda: edits.move_field(manifest.text, field, parent)) if parent else None,
    )
    return replace(finding, subject=field.name)


def _unknown_field(manifest: Object, field: Field, where: str) -> Finding:
    known = sorted(names(manifest.schema.fields))
    close = get_close_matches(field.name[:_COMPARED_CHARS_MAX], known, n=1, cutoff=0.75)
    advice = f"did you mean {close[0]}?" if close else "remove it"
    message = f"a {manifest.kind} has no field {field.name[:_COMPARED_CHARS_MAX]} at {where}"
    return finding_at(field.key, Rule.UNKNOWN_FIELD, message, advice)


def _free_parent(manifest: Object, field: Field, places: list[Path]) -> Field | None:
    """Return the parent that `field` most likely lost: the nearest above it that lacks it."""
    parents: list[Field] = []
    for place in places:
        parent = find(manifest.root, *place) if place else None
        if parent is None or find(parent.value, field.name) is not None:
            continue
        if isinstance(parent.value, yaml.MappingNode) or is_null(parent.value):
            parents.append(parent)
    line = field.key.start_mark.line

    def distance(parent: Field) -> tuple[bool, int]:
        away = line - parent.key.start_mark.line
        return away < 0, abs(away)

    return min(parents, key=distance, default=None)


def _leads_to(manifest: Object, place: Path, parent: Field) -> bool:
    found = find(manifest.root, *place) if place else None
    return found is not None and found.key is parent.key


def _check_required(manifest: Object, misplaced: set[str]) -> Iterator[Finding]:
    """Yield the fields that are nowhere; one that only stands elsewhere was told of already."""
    named = _lacks(manifest.root, ("metadata", "generateName")) is None
    paths = manifest.schema.required if named else (("metadata", "name"), *manifest.schema.required)
    for path in paths:
        lacking = _lacks(manifest.root, path)
        if lacking is not None and not misplaced.intersection(path[lacking:]):
            yield _missing(manifest, path)


def _lacks(root: yaml.Node, path: Path) -> int | None:
    """Return the index in `path` of the first field that is missing or empty; None if none is."""
    node = root
    for index, name in enumerate(path):
        if has_merge(node):
            return None
        found = find(node, name)
        if found is None or is_null(found.value) or _is_empty(found.value):
            return index
        node = found.value
    return None


def _is_empty(node: yaml.Node) -> bool:
    return not node.value


def _missing(manifest: Object, path: Path) -> Finding:
    node: yaml.Node = manifest.root
    for end in range(1, len(path)):
        parent = find(manifest.root, *path[:end])
        if parent is not None:
            node = parent.key
    return finding_at(
        node,
        Rule.MISSING_FIELD,
        f"{_dotted(path)} is missing",
        f"a {manifest.kind} needs it; check the indentation if it is there",
    )


def _dotted(path: Path | None) -> str:
    return ".".join(name[:_COMPARED_CHARS_MAX] for name in path or ())
