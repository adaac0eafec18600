"""`x-kubernetes-validations`: the CEL rules of a schema, applied to objects.

Owns which rule sees which value: field names escaped for CEL, `oldSelf` found by field, map
key or list-map key, transition rules only on updates, others not for what an update leaves as it
is: a rule that is new must not keep what was stored before it from being deleted. Raises nothing
for an object that breaks a rule; it reports field errors. Called by `schema`, after values are
known valid.

Source: apiextensions.k8s.io/v1 ValidationRule; kubernetes.io, "Validation rules", "Validation
ratcheting".
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from shorthorn.standalone.apiserver import cel, field_errors
from shorthorn.standalone.apiserver.field_errors import FieldError, SchemaUnsupported, child
from shorthorn.standalone.apiserver.structural import Node
from shorthorn.standalone.apiserver.value_validation import member_identity

ABSENT = object()

_RULE_KEYS = frozenset(
    ["rule", "message", "messageExpression", "reason", "fieldPath", "optionalOldSelf"]
)
_REASONS = frozenset(
    {
        field_errors.INVALID,
        field_errors.FORBIDDEN,
        field_errors.REQUIRED,
        field_errors.DUPLICATE,
    }
)
#: Words that CEL reserves: a field of that name is written `__namespace__`.
_RESERVED_WORDS = (
    "true false null in as break const continue else for function if import let loop package "
    "namespace return var void while"
)
_RESERVED = frozenset(_RESERVED_WORDS.split())
_ESCAPES = {"__": "__underscores__", ".": "__dot__", "-": "__dash__", "/": "__slash__"}
_VARIABLES = frozenset({"self", "oldSelf"})
#: `self.a.b` and `oldSelf.a.b`, and whether the last name is a function's.
_FIELD_CHAIN = re.compile(r"(?<![\w.])(?:self|oldSelf)((?:\s*\.\s*[A-Za-z_]\w*)+)\s*(\()?")


@dataclass(frozen=True, slots=True)
class Rule:
    """One compiled validation rule."""

    expression: cel.Expression
    message: str
    message_expression: cel.Expression | None
    reason: str
    field_path: str
    has_optional_old: bool

    @property
    def is_transition(self) -> bool:
        return self.expression.uses_old_self


class RuleBook:
    """All rules of one schema, by place."""

    def __init__(self, root: Node) -> None:
        """Compile every rule. Raises SchemaUnsupported where one cannot be evaluated."""
        self._root = root
        self._rules: dict[Node, tuple[Rule, ...]] = {}
        self._compile(root, is_correlatable=True)

    def _compile(self, node: Node, *, is_correlatable: bool) -> None:
        rules = tuple(_compile_rule(raw, node) for raw in node.raw.get(_EXTENSION, ()))
        if not is_correlatable and any(rule.is_transition for rule in rules):
            raise SchemaUnsupported(
                f"{node.path}: a transition rule needs list type map around it: "
                "members of other lists have no old value"
            )
        if rules:
            self._rules[node] = rules
        for each in (*node.properties.values(), node.values):
            if each is not None:
                self._compile(each, is_correlatable=is_correlatable)
        if node.items is not None:
            self._compile(node.items, is_correlatable=is_correlatable and node.list_type == "map")

    @property
    def has_rules(self) -> bool:
        return bool(self._rules)

    def errors(self, value: Any, old: Any = ABSENT) -> list[FieldError]:
        """The broken rules of an object with values of the right types, outer rules first.

        `old` is what is stored, ABSENT when the object is being created.
        """
        return list(self._walk(value, old, self._root, "")) if self._rules else []

    def _walk(self, value: Any, old: Any, node: Node, path: str) -> Iterator[FieldError]:
        if value is None:
            return
        for rule in self._rules.get(node, ()):
            yield from _apply(rule, value, old, node, path)
        if isinstance(value, dict):
            for key, each in value.items():
                if (inner := node.member(key)) is not None:
                    before = old.get(key, ABSENT) if isinstance(old, dict) else ABSENT
                    yield from self._walk(each, before, inner, child(path, key))
        elif isinstance(value, list) and node.items is not None:
            before_by_key = _by_key(old, node)
            for index, each in enumerate(value):
                before = before_by_key.get(_key(each, node), ABSENT)
                yield from self._walk(each, before, node.items, f"{path}[{index}]")


_EXTENSION = "x-kubernetes-validations"


def _key(member: Any, node: Node) -> str:
    return field_errors.quoted(member_identity(member, node))


def _by_key(old: Any, node: Node) -> dict[str, Any]:
    if node.list_type != "map" or not isinstance(old, list):
        return {}
    return {_key(each, node): each for each in old}


def _apply(rule: Rule, value: Any, old: Any, node: Node, path: str) -> Iterator[FieldError]:
    has_old = old is not ABSENT and old is not None
    if rule.is_transition and not has_old and not rule.has_optional_old:
        return
    if not rule.is_transition and has_old and value == old:
        return
    variables = {"self": to_cel(value, node)}
    if rule.is_transition:
        before = to_cel(old, node) if has_old else None
        if rule.has_optional_old:
            before = cel.optional_of(before) if has_old else cel.optional_none()
        variables["oldSelf"] = before
    try:
        if rule.expression.evaluate(variables) is True:
            return
        message = _message(rule, variables)
    except cel.EvaluationFailed as exc:
        message = f"rule could not be evaluated: {rule.expression.source}: {exc}"
    yield _broken(rule, path + rule.field_path if path else rule.field_path[1:], node, message)


def _message(rule: Rule, variables: Mapping[str, Any]) -> str:
    if rule.message_expression is not None:
        try:
            text = rule.message_expression.evaluate(variables)
        except cel.EvaluationFailed:
            text = ""  # as Kubernetes does: the plain message takes over
        if isinstance(text, str) and text.strip() and "\n" not in text:
            return text.strip()
    return rule.message or f"failed rule: {rule.expression.source}"


def _broken(rule: Rule, path: str, node: Node, message: str) -> FieldError:
    if rule.reason == field_errors.FORBIDDEN:
        return field_errors.forbidden(path, message)
    if rule.reason == field_errors.REQUIRED:
        return field_errors.required(path, message)
    if rule.reason == field_errors.DUPLICATE:
        return field_errors.duplicate(path, node.type)
    return field_errors.invalid(path, node.type, message)


def _compile_rule(raw: Mapping[str, Any], node: Node) -> Rule:
    where = node.path or "the root"
    if unknown := sorted(set(raw) - _RULE_KEYS):
        raise SchemaUnsupported(f"{where}: validation rule has unknown keys {unknown}")
    reason = raw.get("reason", field_errors.INVALID)
    if reason not in _REASONS:
        raise SchemaUnsupported(f"{where}: validation rule has the unknown reason {reason!r}")
    message_source = raw.get("messageExpression")
    rule = Rule(
        expression=_expression(raw["rule"], node),
        message=raw.get("message", "").strip(),
        message_expression=_expression(message_source, node) if message_source else None,
        reason=reason,
        field_path=raw.get("fieldPath", ""),
        has_optional_old=bool(raw.get("optionalOldSelf")),
    )
    if rule.field_path and not _declares(node, rule.field_path.lstrip(".").split(".")):
        raise SchemaUnsupported(f"{where}: fieldPath {rule.field_path!r} is not declared")
    _try_on_sample(rule, node, where)
    return rule


def _expression(source: str, node: Node) -> cel.Expression:
    where = node.path or "the root"
    try:
        expression = cel.compile_expression(source, variables=_VARIABLES)
    except cel.ExpressionInvalid as exc:
        raise SchemaUnsupported(f"{where}: {exc}") from exc
    for chain, opens in _FIELD_CHAIN.findall(expression.code):
        names = [name.strip() for name in chain.split(".")[1:]]
        fields = names[:-1] if opens else names
        if not _declares(node, fields):
            raise SchemaUnsupported(f"{where}: {source!r}: no such field: {'.'.join(fields)}")
    return expression


def _declares(node: Node, names: list[str]) -> bool:
    """Whether a chain of (escaped) field names leads somewhere in the schema."""
    current: Node | None = node
    for name in names:
        assert current is not None
        if current.keeps_unknown:
            return True
        fields = {escaped(key): each for key, each in _visible(current).items()}
        current = fields.get(name, current.values)
        if current is None:
            return False
    return True


def _try_on_sample(rule: Rule, node: Node, where: str) -> None:
    """Evaluate on a value of the declared types: operators must be defined for them.

    Other failures are no news: a sample has no map keys and no sensible text.
    """
    value = sample(node)
    old = cel.optional_of(value) if rule.has_optional_old else value
    for expression in (rule.expression, rule.message_expression):
        if expression is None:
            continue
        try:
            result = expression.evaluate({"self": value, "oldSelf": old})
        except cel.TypesMismatch as exc:
            raise SchemaUnsupported(f"{where}: {expression.source!r}: {exc}") from exc
        except cel.EvaluationFailed:
            continue
        wanted = bool if expression is rule.expression else str
        if not isinstance(result, wanted):
            raise SchemaUnsupported(
                f"{where}: {expression.source!r} yields {field_errors.type_name(result)}"
            )


def escaped(name: str) -> str:
    """A field's name as CEL expressions spell it."""
    if name in _RESERVED:
        return f"__{name}__"
    return re.sub(r"__|[./-]", lambda found: _ESCAPES[found[0]], name)


def _visible(node: Node) -> Mapping[str, Node]:
    """The fields that rules may read: of a resource's metadata only the names."""
    if not node.is_resource:
        return node.properties
    metadata = node.properties["metadata"]
    names = {key: metadata.properties[key] for key in ("name", "generateName")}
    shown = Node(path=metadata.path, type="object", properties=names)
    return {**node.properties, "metadata": shown}


def to_cel(value: Any, node: Node) -> Any:
    """Convert a JSON value to what CEL sees by its schema: ints stay ints, times are times."""
    if value is None:
        return None
    if isinstance(value, dict):
        if node.keeps_unknown and not node.properties:
            return value
        fields = _visible(node)
        result = {
            escaped(key): to_cel(value[key], each) for key, each in fields.items() if key in value
        }
        if node.values is not None:
            result.update({key: to_cel(each, node.values) for key, each in value.items()})
        return result
    if isinstance(value, list):
        return [to_cel(each, node.items) if node.items else each for each in value]
    return _scalar_to_cel(value, node)


def _scalar_to_cel(value: Any, node: Node) -> Any:
    if node.type == "number":
        return float(value)
    if node.type == "integer":
        return int(value)
    if node.format in ("date-time", "date"):
        return datetime.fromisoformat(value)
    if node.format == "byte":
        return base64.b64decode(value)
    return value


def sample(node: Node) -> Any:
    """A value of the declared type with every field present, as CEL sees it."""
    if node.is_int_or_string or (node.type == "string" and not node.format):
        choices = node.raw.get("enum")
        return choices[0] if choices else "0"
    if node.type == "object":
        return {escaped(key): sample(each) for key, each in _visible(node).items()}
    if node.type == "array":
        return [sample(node.items)] if node.items is not None else []
    scalars: Mapping[str, Any] = {"integer": 1, "number": 1.0, "boolean": True}
    if node.type in scalars:
        return scalars[node.type]
    formats = {"date-time": "2000-01-01T00:00:00Z", "date": "2000-01-01", "byte": ""}
    return _scalar_to_cel(formats.get(node.format, "0"), node) if node.type else {}
