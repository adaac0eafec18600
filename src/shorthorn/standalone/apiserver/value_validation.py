"""Values against a structural schema, in the words of a Kubernetes API server.

Owns the translation of OpenAPI v3 to JSON Schema (the `jsonschema` library judges) and of
its errors back to field errors, the formats, and the list types that JSON Schema lacks.
Never changes the object. Called by `schema`, after defaults are filled in.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jsonschema
from jsonschema.validators import Draft202012Validator, extend

from shorthorn.standalone.apiserver import field_errors, formats
from shorthorn.standalone.apiserver.field_errors import FieldError, SchemaUnsupported
from shorthorn.standalone.apiserver.structural import Node

#: Keywords that JSON Schema and OpenAPI v3 share with one meaning.
_SHARED = [
    "type",
    "multipleOf",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "minimum",
    "maximum",
    "required",
    "enum",
]
#: All that a condition may say; elsewhere also what declares fields.
_CONDITION_KEYWORDS = frozenset(
    [
        *_SHARED,
        *("format", "pattern", "exclusiveMinimum", "exclusiveMaximum"),
        *("allOf", "anyOf", "oneOf", "not", "properties", "additionalProperties", "items"),
        *("description", "title"),
    ]
)
#: Stands for the field's path in the details below.
_FIELD = "\0"
_COMBINED = ("allOf", "anyOf", "oneOf")


def _required(
    _validator: Any, names: list[str], instance: Any, _schema: Mapping[str, Any]
) -> Iterator[jsonschema.ValidationError]:
    """Report a missing property at its own path, as Kubernetes does, not at its parent's."""
    if isinstance(instance, dict):
        for name in names:
            if name not in instance:
                yield jsonschema.ValidationError("Required value", path=(name,))


def _pattern(
    _validator: Any, pattern: str, instance: Any, _schema: Mapping[str, Any]
) -> Iterator[jsonschema.ValidationError]:
    """Search as RE2 would; the library would search as Python does."""
    if isinstance(instance, str) and not compile_pattern(pattern).search(instance):
        yield jsonschema.ValidationError("does not match")


_KEYWORDS = {"required": _required, "pattern": _pattern}
_Validator: Any = extend(Draft202012Validator, _KEYWORDS)  # type: ignore[no-untyped-call]


class ValueValidator:
    """Judges the values of one compiled schema."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._validator = _Validator(
            _json_schema(node), format_checker=formats.checker(used_formats(node.raw))
        )

    def errors(self, value: Any) -> list[FieldError]:
        """All broken rules in document order; one wrong type hides what follows from it."""
        found = list(self._validator.iter_errors(value))
        mistyped = {tuple(e.absolute_path) for e in found if e.validator == "type"}
        result = [
            _field_error(error)
            for error in found
            if error.validator == "type" or tuple(error.absolute_path) not in mistyped
        ]
        if not mistyped:
            result.extend(_list_type_errors(value, self._node, ""))
        return result


def used_formats(raw: Any) -> frozenset[str]:
    """The formats in a schema. Raises SchemaUnsupported for one that nobody checks."""
    names: set[str] = set()
    if isinstance(raw, list):
        for each in raw:
            names |= used_formats(each)
    elif isinstance(raw, Mapping):
        for key, each in raw.items():
            if key == "format" and isinstance(each, str):
                names.add(each)
            elif key not in ("default", "enum", "example"):
                names |= used_formats(each)
    if unknown := sorted(names - formats.KNOWN):
        raise SchemaUnsupported(f"formats {unknown} cannot be checked")
    return frozenset(names)


def _json_schema(node: Node) -> dict[str, Any]:
    result = _assertions(node.raw)
    if node.is_int_or_string and "type" not in result:
        result["type"] = ["integer", "string"]
    if node.is_nullable and "type" in result:
        result["type"] = [*_as_list(result["type"]), "null"]
        if "enum" in result:
            result["enum"] = [*result["enum"], None]
    if node.properties:
        result["properties"] = {key: _json_schema(each) for key, each in node.properties.items()}
    if node.values is not None:
        result["additionalProperties"] = _json_schema(node.values)
    if node.items is not None:
        result["items"] = _json_schema(node.items)
    return result


def _assertions(raw: Mapping[str, Any]) -> dict[str, Any]:
    """What one schema asserts about a value itself, not about its members."""
    result: dict[str, Any] = {key: raw[key] for key in _SHARED if key in raw}
    if "format" in raw:
        result["format"] = raw["format"]
    if "pattern" in raw:
        compile_pattern(raw["pattern"])
        result["pattern"] = raw["pattern"]
    for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if exclusive in raw and (not isinstance(raw[exclusive], bool) or bound not in raw):
            raise SchemaUnsupported(f"{exclusive} must be true or false, beside a {bound}")
        if raw.get(exclusive):
            result[exclusive] = result.pop(bound)
    for keyword in _COMBINED:
        if keyword in raw:
            result[keyword] = [_condition(each) for each in raw[keyword]]
    if "not" in raw:
        result["not"] = _condition(raw["not"])
    return result


def _condition(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A schema inside allOf, anyOf, oneOf or not: it asserts, but declares and defaults nothing."""
    if unknown := sorted(set(raw) - _CONDITION_KEYWORDS):
        raise SchemaUnsupported(f"keywords {unknown} have no effect inside a condition")
    result = _assertions(raw)
    if "properties" in raw:
        result["properties"] = {key: _condition(each) for key, each in raw["properties"].items()}
    if isinstance(raw.get("additionalProperties"), Mapping):
        result["additionalProperties"] = _condition(raw["additionalProperties"])
    if "items" in raw:
        result["items"] = _condition(raw["items"])
    return result


@functools.cache
def compile_pattern(pattern: str) -> re.Pattern[str]:
    r"""Compile a pattern written for RE2, with RE2's meaning.

    There `$` is the end of the text (Python's also matches before a last newline) and `\d`,
    `\w`, `\s` know ASCII only.

    Raises: SchemaUnsupported: Python cannot compile it, or would understand something else.
    """
    if re.search(r"\[\[?\^?:|\(\?[=!<]|\\[pPQZ1-9]", pattern):
        raise SchemaUnsupported(f"pattern {pattern!r} has syntax that is not evaluated here")
    translated = re.sub(
        r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\$",
        lambda found: r"\Z" if found[0] in ("$", r"\z") else found[0],
        pattern,
        flags=re.DOTALL,
    )
    try:
        return re.compile(translated, re.ASCII)
    except re.error as exc:
        raise SchemaUnsupported(f"pattern {pattern!r} cannot be evaluated: {exc}") from exc


def _as_list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def _field_error(error: jsonschema.ValidationError) -> FieldError:
    field = _field_path(error.absolute_path)
    keyword = str(error.validator)
    value: Any = error.instance
    limit: Any = error.validator_value
    if keyword == "required":
        return field_errors.required(field)
    if keyword == "type":
        return field_errors.type_invalid(field, value, _as_list(limit)[0])
    if keyword == "enum":
        return field_errors.not_supported(field, value, [v for v in limit if v is not None])
    if keyword == "maxLength":
        return field_errors.too_long(field, limit)
    if keyword == "maxItems":
        return field_errors.too_many(field, len(value), limit)
    if keyword == "format":
        return field_errors.format_invalid(field, value, limit)
    detail = _DETAILS.get(keyword, _must_validate)(error)
    shown = value if isinstance(value, str | int | float) else field_errors.type_name(value)
    return field_errors.invalid(field, shown, detail.replace(_FIELD, field))


def _must_validate(error: jsonschema.ValidationError) -> str:
    how = {
        "allOf": "must validate all the schemas (allOf)",
        "anyOf": "must validate at least one schema (anyOf)",
        "oneOf": "must validate one and only one schema (oneOf)",
        "not": "must not validate the schema (not)",
    }
    return f'"{_FIELD}" {how[str(error.validator)]}'


def _bound(text: str) -> Callable[[jsonschema.ValidationError], str]:
    return lambda error: f"{_FIELD} in body should {text.format(error.validator_value)}"


_DETAILS: Mapping[str, Callable[[jsonschema.ValidationError], str]] = {
    "pattern": _bound("match '{}'"),
    "minimum": _bound("be greater than or equal to {}"),
    "maximum": _bound("be less than or equal to {}"),
    "exclusiveMinimum": _bound("be greater than {}"),
    "exclusiveMaximum": _bound("be less than {}"),
    "multipleOf": _bound("be a multiple of {}"),
    "minLength": _bound("be at least {} chars long"),
    "minItems": _bound("have at least {} items"),
    "minProperties": _bound("have at least {} properties"),
    "maxProperties": _bound("have at most {} properties"),
}


def _field_path(parts: Iterator[str | int] | Any) -> str:
    path = ""
    for part in parts:
        path = f"{path}[{part}]" if isinstance(part, int) else field_errors.child(path, part)
    return path


def _list_type_errors(value: Any, node: Node, path: str) -> Iterator[FieldError]:
    """Find repeated members of sets and repeated keys of list maps."""
    if isinstance(value, dict):
        for key, each in value.items():
            if (inner := node.member(key)) is not None:
                yield from _list_type_errors(each, inner, field_errors.child(path, key))
    elif isinstance(value, list) and node.items is not None:
        seen: set[str] = set()
        for index, each in enumerate(value):
            where = f"{path}[{index}]"
            identity = member_identity(each, node)
            if identity is not None:
                shown = field_errors.quoted(identity)
                if shown in seen:
                    yield field_errors.duplicate(where, identity)
                seen.add(shown)
            yield from _list_type_errors(each, node.items, where)


def member_identity(member: Any, node: Node) -> Any:
    """What tells members of a list apart: the value in a set, the keys in a list map.

    None in an atomic list, where members have only a position.
    """
    if node.list_type == "set":
        return member
    if node.list_type == "map" and isinstance(member, dict):
        return {key: member.get(key) for key in node.list_keys}
    return None
