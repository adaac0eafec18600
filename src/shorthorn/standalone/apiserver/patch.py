"""Patches: JSON patch, JSON merge patch, and the door to strategic merge patch.

Owns the application of a decoded patch to a decoded document. Never changes its arguments and
never validates the result; the caller admits it through the schema. Called by the API
server's PATCH handler.

Source: RFC 6902 (JSON Patch), RFC 6901 (JSON Pointer), RFC 7386 (JSON Merge Patch).
"""

from __future__ import annotations

import contextlib
import copy
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from shorthorn.standalone.apiserver import strategic_merge
from shorthorn.standalone.apiserver.strategic_merge import PatchError

__all__ = [
    "PatchError",
    "apply_json_patch",
    "apply_merge_patch",
    "apply_strategic_merge_patch",
]

_ARRAY_INDEX = re.compile(r"0|[1-9][0-9]*", re.ASCII)
#: What a Kubernetes API server accepts in one patch (its maxJSONPatchOperations).
OPERATIONS_MAX = 10_000
#: Copies of copies double; in all, `copy` may add what one request may carry (3 MiB there too).
COPIED_BYTES_MAX = 3 * 1024 * 1024


@contextlib.contextmanager
def _bounded_depth() -> Iterator[None]:
    try:
        yield
    except RecursionError as exc:
        raise PatchError("the patch or its document is nested too deeply") from exc


@_bounded_depth()
def apply_json_patch(document: Any, operations: list[Any]) -> Any:
    """Apply the operations of RFC 6902 in order; all of them or none.

    Raises: PatchError: a test failed, a pointer leads nowhere, an operation is malformed.
    """
    if not isinstance(operations, list):
        raise PatchError("a JSON patch is a list of operations")
    if len(operations) > OPERATIONS_MAX:
        raise PatchError(f"the patch has {len(operations)} operations, at most {OPERATIONS_MAX}")
    result = copy.deepcopy(document)
    copied_bytes = 0
    for index, operation in enumerate(operations):
        try:
            copied_bytes = _count_copied(result, operation, copied_bytes)
            result = _apply_operation(result, operation)
        except PatchError as exc:
            raise PatchError(f"operation {index}: {exc}") from exc
    return result


@_bounded_depth()
def apply_merge_patch(document: Any, patch: Any) -> Any:
    """Apply RFC 7386: objects merge, null removes, anything else replaces.

    Raises: PatchError: nested too deeply; nothing else can be wrong with a merge patch.
    """
    return _merge(document, patch)


@_bounded_depth()
def apply_strategic_merge_patch(document: Any, patch: Any, schema: Mapping[str, Any] | None) -> Any:
    """Apply what kubectl sends for kinds it knows: lists merge by the keys in `schema`.

    Args:   schema: the kind's `openAPIV3Schema`; without one every list is replaced.
    Raises: PatchError: a directive is unknown, or a list member lacks its merge key.
    """
    if not isinstance(document, dict) or not isinstance(patch, dict):
        raise PatchError("a strategic merge patch and its document are objects")
    return strategic_merge.apply(document, patch, schema)


def _merge(document: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    result = copy.deepcopy(document) if isinstance(document, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = _merge(result.get(key), value)
    return result


def _count_copied(document: Any, operation: Any, before_bytes: int) -> int:
    """What all copies so far have added, this operation's included."""
    if not isinstance(operation, dict) or operation.get("op") != "copy":
        return before_bytes
    value = _get(document, _pointer(operation, "from"))
    copied_bytes = before_bytes + len(json.dumps(value))
    if copied_bytes > COPIED_BYTES_MAX:
        raise PatchError(f"the patch copies more than {COPIED_BYTES_MAX} bytes")
    return copied_bytes


def _apply_operation(document: Any, operation: Any) -> Any:
    if not isinstance(operation, dict):
        raise PatchError("an operation is an object")
    apply = _OPERATIONS.get(str(operation.get("op")))
    if apply is None:
        raise PatchError(f"unknown op {operation.get('op')!r}")
    return apply(document, operation)


def _pointer(operation: Mapping[str, Any], name: str) -> list[str]:
    text = operation.get(name)
    if not isinstance(text, str):
        raise PatchError(f"{name!r} must be a JSON pointer")
    if text and not text.startswith("/"):
        raise PatchError(f"{name} {text!r} must be empty or begin with '/'")
    if re.search(r"~(?![01])", text):
        raise PatchError(f"{name} {text!r} has a bad escape: '~' is written '~0'")
    return [part.replace("~1", "/").replace("~0", "~") for part in text.split("/")[1:]]


def _value(operation: Mapping[str, Any]) -> Any:
    if "value" not in operation:
        raise PatchError(f"op {operation['op']!r} needs a value")
    return copy.deepcopy(operation["value"])


def _step(container: Any, token: str) -> Any:
    """Follow one reference token to something that exists."""
    if isinstance(container, dict) and token in container:
        return container[token]
    if isinstance(container, list):
        return container[_index(container, token, limit=len(container) - 1)]
    raise PatchError(f"there is no {token!r} to follow")


def _index(items: list[Any], token: str, *, limit: int) -> int:
    if not _ARRAY_INDEX.fullmatch(token):
        raise PatchError(f"{token!r} is no index of a list")
    index = int(token)
    if index > limit:
        raise PatchError(f"index {index} is outside a list of {len(items)}")
    return index


def _get(document: Any, tokens: list[str]) -> Any:
    for token in tokens:
        document = _step(document, token)
    return document


def _put(document: Any, tokens: list[str], value: Any) -> Any:
    if not tokens:
        return value
    parent, last = _get(document, tokens[:-1]), tokens[-1]
    if isinstance(parent, dict):
        parent[last] = value
    elif isinstance(parent, list):
        index = len(parent) if last == "-" else _index(parent, last, limit=len(parent))
        parent.insert(index, value)
    else:
        raise PatchError(f"{last!r} cannot be added to a value that has no members")
    return document


def _drop(document: Any, tokens: list[str]) -> Any:
    if not tokens:
        raise PatchError("the whole document cannot be removed")
    parent, last = _get(document, tokens[:-1]), tokens[-1]
    _step(parent, last)
    if isinstance(parent, list):
        del parent[int(last)]
    else:
        del parent[last]
    return document


def _add(document: Any, operation: Mapping[str, Any]) -> Any:
    return _put(document, _pointer(operation, "path"), _value(operation))


def _remove(document: Any, operation: Mapping[str, Any]) -> Any:
    return _drop(document, _pointer(operation, "path"))


def _replace(document: Any, operation: Mapping[str, Any]) -> Any:
    tokens, value = _pointer(operation, "path"), _value(operation)
    if not tokens:
        return value
    parent, last = _get(document, tokens[:-1]), tokens[-1]
    _step(parent, last)
    parent[int(last) if isinstance(parent, list) else last] = value
    return document


def _move(document: Any, operation: Mapping[str, Any]) -> Any:
    source, target = _pointer(operation, "from"), _pointer(operation, "path")
    if target[: len(source)] == source and target != source:
        raise PatchError("a value cannot be moved into itself")
    value = _get(document, source)
    return document if source == target else _put(_drop(document, source), target, value)


def _copy(document: Any, operation: Mapping[str, Any]) -> Any:
    value = copy.deepcopy(_get(document, _pointer(operation, "from")))
    return _put(document, _pointer(operation, "path"), value)


def _test(document: Any, operation: Mapping[str, Any]) -> Any:
    tokens, expected = _pointer(operation, "path"), _value(operation)
    if not _equal(_get(document, tokens), expected):
        raise PatchError(f"test of {operation['path']!r} failed")
    return document


def _equal(left: Any, right: Any) -> bool:
    """Equality of JSON values: numbers by value, but true is not 1."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_equal(left[k], right[k]) for k in left)
    if isinstance(left, list) and isinstance(right, list):
        pairs = zip(left, right, strict=False)
        return len(left) == len(right) and all(_equal(a, b) for a, b in pairs)
    return bool(left == right)


_OPERATIONS: Mapping[str, Callable[[Any, Mapping[str, Any]], Any]] = {
    "add": _add,
    "remove": _remove,
    "replace": _replace,
    "move": _move,
    "copy": _copy,
    "test": _test,
}
