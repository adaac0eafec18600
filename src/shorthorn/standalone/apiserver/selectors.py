"""Label and field selectors: parse what a client sends, judge stored objects by it.

Owns the two little grammars and their refusals (400). It decodes no more of an object than it needs
and must not do I/O. Called by lists, watches and collection deletes.
Source: k8s.io/apimachinery `pkg/labels/selector.go`, `pkg/fields/selector.go`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from shorthorn.standalone.apiserver import status

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shorthorn.standalone.apiserver.kinds import Kind

_TOKEN = re.compile(r"\s*(==|!=|=|!|,|\(|\)|[^\s=!,()]+)")
_KEY_FIELDS = frozenset({"metadata.name", "metadata.namespace"})


class _Metadata(msgspec.Struct):
    labels: dict[str, str] | None = None


class _Labelled(msgspec.Struct):
    metadata: _Metadata


_decode_labelled = msgspec.json.Decoder(_Labelled).decode


@dataclass(frozen=True, slots=True)
class LabelRequirement:
    """One term: `operator` is in, notin, exists or absent."""

    key: str
    operator: str
    values: frozenset[str] = frozenset()

    def holds_for(self, labels: Mapping[str, str]) -> bool:
        """Judge one object's labels; `notin` also holds where the label is missing."""
        value = labels.get(self.key)
        if self.operator == "exists":
            return value is not None
        if self.operator == "absent":
            return value is None
        if self.operator == "in":
            return value is not None and value in self.values
        return value is None or value not in self.values


@dataclass(frozen=True, slots=True)
class FieldRequirement:
    """One term: the field equals, or does not equal, `value` (a missing field is "")."""

    path: str
    value: str
    is_equal: bool

    def holds_for(self, actual: str) -> bool:
        """Judge one field's value."""
        return (actual == self.value) is self.is_equal


@dataclass(frozen=True, slots=True)
class Selection:
    """Both selectors of one request; all terms must hold."""

    labels: tuple[LabelRequirement, ...] = ()
    fields: tuple[FieldRequirement, ...] = ()

    @property
    def is_everything(self) -> bool:
        """Whether every object matches."""
        return not self.labels and not self.fields

    @property
    def name(self) -> str | None:
        """The only name that can match, if a term says so: lists become a look-up."""
        for term in self.fields:
            if term.path == "metadata.name" and term.is_equal:
                return term.value
        return None

    def matches(self, namespace: str, name: str, data: bytes) -> bool:
        """Judge one stored object."""
        deeper = []
        for term in self.fields:
            if term.path not in _KEY_FIELDS:
                deeper.append(term)
            elif not term.holds_for(name if term.path == "metadata.name" else namespace):
                return False
        if self.labels:
            labels = _decode_labelled(data).metadata.labels or {}
            if not all(term.holds_for(labels) for term in self.labels):
                return False
        if deeper:
            obj = msgspec.json.decode(data)
            return all(term.holds_for(field_value(obj, term.path)) for term in deeper)
        return True


def field_value(obj: Any, path: str) -> str:
    """Return the value at a dotted path as a field selector sees it; "" when there is none."""
    if path == "source":  # an Event's reporting component under its older name
        return field_value(obj, "source.component") or field_value(obj, "reportingComponent")
    for member in path.split("."):
        if not isinstance(obj, dict) or member not in obj:
            return ""
        obj = obj[member]
    if isinstance(obj, bool):
        return "true" if obj else "false"
    return "" if obj is None else str(obj)


def parse_selection(kind: Kind, label_selector: str, field_selector: str) -> Selection:
    """Parse both selectors of a request. Raises: StatusError 400: malformed or unknown field."""
    return Selection(
        parse_labels(label_selector),
        parse_fields(field_selector, kind.selectable_fields, kind.api_version(), kind.kind),
    )


def parse_labels(text: str) -> tuple[LabelRequirement, ...]:
    """Parse `a=b,c!=d,e in (x,y),f notin (z),g,!h`; blank selects everything."""
    tokens = _TOKEN.findall(text)
    if re.sub(r"\s+", "", text) != "".join(tokens):
        raise _label_problem(text, "unexpected character")
    terms: list[LabelRequirement] = []
    position = 0
    while position < len(tokens):
        term, position = _parse_label_term(tokens, position, text)
        terms.append(term)
        if position < len(tokens):
            if tokens[position] != "," or position + 1 == len(tokens):
                raise _label_problem(text, f"found {tokens[position]!r}, expected: ',' or end")
            position += 1
    return tuple(terms)


def _parse_label_term(tokens: list[str], position: int, text: str) -> tuple[LabelRequirement, int]:
    def token(at: int) -> str:
        return tokens[at] if at < len(tokens) else ""

    if token(position) == "!":
        return LabelRequirement(_label_key(token(position + 1), text), "absent"), position + 2
    key = _label_key(token(position), text)
    operator = token(position + 1)
    if operator in ("=", "==", "!="):
        value = token(position + 2)
        has_value = value not in ("", ",")
        kind = "notin" if operator == "!=" else "in"
        values = frozenset({value if has_value else ""})
        return LabelRequirement(key, kind, values), position + (3 if has_value else 2)
    if operator in ("in", "notin"):
        if token(position + 2) != "(" or ")" not in tokens[position:]:
            raise _label_problem(text, f"expected a list in parentheses after {operator!r}")
        end = tokens.index(")", position)
        values = frozenset(v for v in tokens[position + 3 : end] if v != ",")
        return LabelRequirement(key, operator, values), end + 1
    return LabelRequirement(key, "exists"), position + 1


def _label_key(key: str, text: str) -> str:
    if not re.fullmatch(r"([a-z0-9.-]+/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?", key):
        raise _label_problem(text, f"{key!r} is not a label key")
    return key


def _label_problem(text: str, problem: str) -> status.StatusError:
    return status.bad_request(f"unable to parse label selector {text!r}: {problem}")


def parse_fields(
    text: str, selectable: frozenset[str], api_version: str, kind: str
) -> tuple[FieldRequirement, ...]:
    """Parse `a=b,c!=d` (backslash escapes `,` `=` and itself); every field must be selectable."""
    terms = []
    for part in re.split(r"(?<!\\),", text):
        if not part.strip():
            continue
        matched = re.fullmatch(r"([^=!]+?)(==|!=|=)((?:[^=\\]|\\.)*)", part)
        if matched is None:
            raise status.bad_request(
                f'unable to parse field selector: invalid selector: "{part}"; can\'t understand '
                f"{part!r}"
            )
        path, operator, value = matched.groups()
        if path not in selectable and path not in _KEY_FIELDS:
            raise status.bad_request(
                f'Unable to find "{api_version}, Kind={kind}" that match label selector "", field '
                f'selector "{text}": field label not supported: {path}'
            )
        terms.append(FieldRequirement(path, re.sub(r"\\(.)", r"\1", value), operator != "!="))
    return tuple(terms)
