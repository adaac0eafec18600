"""Strategic merge patch: merge patch whose lists merge, by keys that the schema names.

Owns the directives (`$patch`, `$retainKeys`, `$deleteFromPrimitiveList/…`,
`$setElementOrder/…`) and the order of merged lists. Never changes its arguments. Called by
`patch`, for the kinds whose Go types kubectl has built in.

Source: kubernetes/community, "Strategic Merge Patch" and its change for list order.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shorthorn.standalone.apiserver import objectmeta

_PATCH = "$patch"
_RETAIN = "$retainKeys"
_DELETE_PRIMITIVES = "$deleteFromPrimitiveList/"
_ORDER = "$setElementOrder/"

_EMPTY: Mapping[str, Any] = {}


class PatchError(Exception):
    """The patch cannot be applied to this document."""


@dataclass(frozen=True, slots=True)
class _ListRule:
    """How one list merges: members by `key`, or plain values when there is no key."""

    merges: bool
    key: str | None


def apply(
    document: dict[str, Any], patch: dict[str, Any], schema: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Apply `patch`; raises PatchError for bad directives and members without their key."""
    root: dict[str, Any] = dict(schema or _EMPTY)
    root["properties"] = {**root.get("properties", _EMPTY), "metadata": objectmeta.OBJECT_META}
    return _merge_object(copy.deepcopy(document), copy.deepcopy(patch), root)


def _merge_object(
    current: dict[str, Any], patch: dict[str, Any], schema: Mapping[str, Any]
) -> dict[str, Any]:
    directive = patch.pop(_PATCH, "merge")
    if directive == "replace":
        data: dict[str, Any] = _without_directives(patch)
        return data
    if directive == "delete":
        return {}
    if directive != "merge":
        raise PatchError(f"unknown {_PATCH} directive {directive!r}")
    _retain(current, patch)
    orders = _take(patch, _ORDER)
    removals = _take(patch, _DELETE_PRIMITIVES)
    for key, value in patch.items():
        _merge_member(current, key, value, _member_schema(schema, key))
    for key, removed in removals.items():
        if isinstance(current.get(key), list):
            current[key] = [each for each in current[key] if each not in removed]
    for key, order in orders.items():
        _reorder(current, key, order, patch.get(key), _member_schema(schema, key))
    return current


def _retain(current: dict[str, Any], patch: dict[str, Any]) -> None:
    """Drop the fields of a union that the patch does not keep."""
    kept = patch.pop(_RETAIN, None)
    if kept is None:
        return
    fields = [key for key in patch if not _is_directive(key)]
    if not isinstance(kept, list) or not all(key in kept for key in fields):
        raise PatchError(f"{_RETAIN} must list every field of the patch")
    for key in [key for key in current if key not in kept]:
        del current[key]


def _take(patch: dict[str, Any], prefix: str) -> dict[str, list[Any]]:
    """Remove the directives with this prefix from a patch; key them by field."""
    taken = {key: patch.pop(key) for key in list(patch) if key.startswith(prefix)}
    for key, value in taken.items():
        if not isinstance(value, list):
            raise PatchError(f"{key} must be a list")
    return {key.removeprefix(prefix): value for key, value in taken.items()}


def _merge_member(current: dict[str, Any], key: str, value: Any, schema: Mapping[str, Any]) -> None:
    before = current.get(key)
    if value is None:
        current.pop(key, None)
    elif isinstance(value, dict):
        if value.get(_PATCH) == "delete":
            current.pop(key, None)
            return
        current[key] = _merge_object(before if isinstance(before, dict) else {}, value, schema)
    elif isinstance(value, list):
        current[key] = _merge_list(before if isinstance(before, list) else [], value, schema)
    else:
        current[key] = value


def _merge_list(current: list[Any], patch: list[Any], schema: Mapping[str, Any]) -> list[Any]:
    rule = _list_rule(schema)
    if not rule.merges or any(_is_replacement(each) for each in patch):
        return [_without_directives(each) for each in patch if not _is_replacement(each)]
    if rule.key is None:
        return current + [each for each in _unique(patch) if each not in current]
    for member in patch:
        current = _merge_keyed(current, member, rule.key, schema.get("items", _EMPTY))
    return current


def _merge_keyed(current: list[Any], member: Any, key: str, schema: Mapping[str, Any]) -> list[Any]:
    if not isinstance(member, dict) or key not in member:
        raise PatchError(f"a list member needs its merge key {key!r}: {member!r}")
    matching = [i for i, each in enumerate(current) if _key_of(each, key) == member[key]]
    directive = member.get(_PATCH, "merge")
    if directive == "delete":
        return [each for i, each in enumerate(current) if i not in matching]
    if not matching:
        return [*current, _merge_object({}, member, schema)]
    merged = _merge_object(current[matching[0]], member, schema)
    return [merged if i == matching[0] else each for i, each in enumerate(current)]


def _reorder(
    current: dict[str, Any],
    key: str,
    order: Sequence[Any],
    patched: Any,
    schema: Mapping[str, Any],
) -> None:
    """Put the members named in `order` into that order; others keep their neighbours.

    A member that only the server has stays behind the one it followed.
    """
    members, rule = current.get(key), _list_rule(schema)
    if not isinstance(members, list):
        return
    names = [_key_of(each, rule.key) if rule.key else each for each in order]
    if isinstance(patched, list):
        given = [_key_of(each, rule.key) for each in patched if not _is_deletion(each)]
        if stray := [each for each in given if each not in names]:
            raise PatchError(f"{_ORDER}{key} does not list {stray}")
    chunks: list[list[Any]] = [[]]
    for each in members:
        if _key_of(each, rule.key) in names:
            chunks.append([each])
        else:
            chunks[-1].append(each)
    ordered = sorted(chunks[1:], key=lambda chunk: names.index(_key_of(chunk[0], rule.key)))
    current[key] = chunks[0] + [each for chunk in ordered for each in chunk]


def _member_schema(schema: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    member = schema.get("properties", _EMPTY).get(key, schema.get("additionalProperties"))
    return member if isinstance(member, Mapping) else _EMPTY


def _list_rule(schema: Mapping[str, Any]) -> _ListRule:
    """Patch extensions decide; else a list map merges by its first key, a set by value."""
    strategy = schema.get("x-kubernetes-patch-strategy")
    key = schema.get("x-kubernetes-patch-merge-key")
    if strategy is not None:
        return _ListRule(merges="merge" in strategy.split(","), key=key)
    list_type = schema.get("x-kubernetes-list-type", "atomic")
    if list_type == "map":
        return _ListRule(merges=True, key=key or schema["x-kubernetes-list-map-keys"][0])
    return _ListRule(merges=list_type == "set", key=None)


def _key_of(member: Any, key: str | None) -> Any:
    if key is None:
        return member
    return member.get(key) if isinstance(member, dict) else None


def _is_deletion(member: Any) -> bool:
    return isinstance(member, dict) and member.get(_PATCH) == "delete"


def _is_replacement(member: Any) -> bool:
    return isinstance(member, dict) and member.get(_PATCH) == "replace"


def _unique(values: list[Any]) -> list[Any]:
    return [each for index, each in enumerate(values) if each not in values[:index]]


def _without_directives(value: Any) -> Any:
    """What a patch says where there is nothing to merge with: its data, without directives."""
    if isinstance(value, dict):
        return {
            key: _without_directives(each)
            for key, each in value.items()
            if each is not None and not _is_directive(key)
        }
    return [_without_directives(each) for each in value] if isinstance(value, list) else value


def _is_directive(key: str) -> bool:
    return key in (_PATCH, _RETAIN) or key.startswith((_DELETE_PRIMITIVES, _ORDER))
