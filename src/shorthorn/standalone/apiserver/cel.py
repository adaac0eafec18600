"""The Common Expression Language, with the functions that Kubernetes adds to it.

Owns compiling one expression and evaluating it with `self` and `oldSelf`; an expression that
names anything unknown is refused when it is compiled. Knows nothing of schemas; `cel_rules`
prepares the values. A failing evaluation raises, it never counts as true.

Source: cel-spec's language definition; kubernetes.io, "Common Expression Language in
Kubernetes" (function names and behaviour).
"""

from __future__ import annotations

import importlib.util
import itertools
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cel import cel as _engine
else:

    def _load_engine() -> Any:
        """Load the extension module alone: 11 ms and 4 MiB.

        The package's `__init__` also imports its interactive shell with prompt_toolkit and
        pygments: 340 ms and 21 MiB for nothing (measured with version 0.10).
        """
        package = importlib.util.find_spec("cel")
        spec = package and PathFinder.find_spec("cel.cel", package.submodule_search_locations)
        if spec is None or spec.loader is None:
            raise ImportError("common-expression-language has no extension module cel.cel")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    _engine = _load_engine()
    # It warns of each failing function; the caller gets that error anyway, as a broken rule.
    logging.getLogger("cel").setLevel(logging.ERROR)


class ExpressionInvalid(Exception):
    """The expression cannot be compiled, or names a function or variable unknown here."""


class EvaluationFailed(Exception):
    """The expression is sound, but has no value for this input."""


class TypesMismatch(EvaluationFailed):
    """An operator or function met operands of types that it is not defined for."""


_SUFFIXES: Mapping[str, Decimal] = {
    **{suffix: Decimal(1024) ** power for power, suffix in enumerate(["", *"KMGTPE"]) if suffix},
    "": Decimal(1),
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
}
_QUANTITY = re.compile(
    r"([+-]?(?:\d+\.?\d*|\.\d+))(?:([eE][+-]?\d+)|([KMGTPE]i|[numkMGTPE]))?", re.ASCII
)
_DECIMAL_POWERS = {"k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}


def parse_quantity(text: str | int) -> Decimal:
    """The value of a Kubernetes quantity such as `1.5Gi`, `100m` or `1e3`.

    Raises: ValueError: it is none.
    """
    found = _QUANTITY.fullmatch(str(text))
    if found is None:
        raise ValueError(f"not a quantity: {text!r}")
    number, exponent, suffix = found.groups()
    if exponent:
        return Decimal(number + exponent)
    if suffix and suffix.endswith("i"):
        return Decimal(number) * _SUFFIXES[suffix[0]]
    if suffix in _DECIMAL_POWERS:
        return Decimal(number).scaleb(_DECIMAL_POWERS[suffix])
    return Decimal(number) * _SUFFIXES[suffix or ""]


def _quantity(text: str | int) -> str:
    # Quantities cross the engine as canonical text: it has no place for a type of ours.
    return str(parse_quantity(text).normalize())


def _is_quantity(text: str | int) -> bool:
    try:
        parse_quantity(text)
    except (ValueError, InvalidOperation):
        return False
    return True


def _compare(left: str, right: str) -> int:
    first, second = parse_quantity(left), parse_quantity(right)
    return (first > second) - (first < second)


def _as_integer(text: str) -> int:
    value = parse_quantity(text)
    if value != value.to_integral_value():
        raise ValueError(f"{text} is no integer")
    return int(value)


def _split(text: str, separator: str, limit: int = -1) -> list[str]:
    if limit == 0:
        return []
    if separator == "":
        return list(text) if limit < 0 else [*text[: limit - 1], text[limit - 1 :]]
    return text.split(separator, limit - 1 if limit > 0 else -1)


def _substring(text: str, start: int, end: int | None = None) -> str:
    stop = len(text) if end is None else end
    if not 0 <= start <= stop <= len(text):
        raise ValueError(f"substring({start}, {stop}) of {len(text)} characters")
    return text[start:stop]


def _char_at(text: str, index: int) -> str:
    return _substring(text, index, min(index + 1, len(text)))


def _replace(text: str, old: str, new: str, limit: int = -1) -> str:
    return text.replace(old, new, limit)


def _is_sorted(values: Sequence[Any]) -> bool:
    return all(left <= right for left, right in itertools.pairwise(values))


def _ascii_lower(text: str) -> str:
    return "".join(each.lower() if each.isascii() else each for each in text)


def _ascii_upper(text: str) -> str:
    return "".join(each.upper() if each.isascii() else each for each in text)


FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "codePoints": len,
    "charAt": _char_at,
    "indexOf": lambda text, part, start=0: text.find(part, start),
    "lastIndexOf": lambda text, part: text.rfind(part),
    "join": lambda texts, separator="": separator.join(texts),
    "lowerAscii": _ascii_lower,
    "upperAscii": _ascii_upper,
    "replace": _replace,
    "split": _split,
    "substring": _substring,
    "trim": lambda text: text.strip(),
    "isSorted": _is_sorted,
    "sum": sum,
    "min": min,
    "max": max,
    "quantity": _quantity,
    "isQuantity": _is_quantity,
    "compareTo": _compare,
    "isGreaterThan": lambda left, right: _compare(left, right) > 0,
    "isLessThan": lambda left, right: _compare(left, right) < 0,
    "asInteger": _as_integer,
}

#: What the engine itself evaluates, by the names that it reports for an expression.
_NATIVE_NAMES = (
    "@in @not_strictly_false _!=_ _&&_ _||_ _==_ _>_ _>=_ _<_ _<=_ _+_ _-_ _*_ _/_ _%_ -_ !_ "
    "_?_:_ _[_] matches startsWith endsWith contains int uint double string bytes dyn type "
    "timestamp duration getFullYear getMonth getDate getDayOfMonth getDayOfWeek getDayOfYear "
    "getHours getMinutes getSeconds getMilliseconds none of ofNonZeroValue hasValue value "
    "orValue or"
)
_NATIVE_FUNCTIONS = frozenset(_NATIVE_NAMES.split())
_TYPE_NAMES = frozenset(
    [
        "int",
        "uint",
        "double",
        "bool",
        "string",
        "bytes",
        "list",
        "map",
        "null_type",
        "type",
        "optional",
    ]
)
_BOUND_VARIABLE = re.compile(r"\.(?:all|exists|exists_one|existsOne|map|filter)\(\s*(\w+)\s*,")
_STRING_LITERAL = re.compile(
    r"[rRbB]{0,2}(?:'''.*?'''|\"\"\".*?\"\"\"|'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\")", re.DOTALL
)


#: Or a literal, which stays as it is.
_SIZE = re.compile(rf"{_STRING_LITERAL.pattern}|\bsize(?=\s*\()", re.DOTALL)


def _with_own_size(source: str) -> str:
    """Call our `size`: the engine's counts a text's bytes, and cannot be replaced by name."""
    return _SIZE.sub(lambda found: "codePoints" if found[0] == "size" else found[0], source)


def optional_of(value: Any) -> Any:
    return _engine.OptionalValue.of(value)


def optional_none() -> Any:
    return _engine.OptionalValue.none()


@dataclass(frozen=True, slots=True)
class Expression:
    """A compiled expression over `self` and, perhaps, `oldSelf`."""

    source: str
    #: The source with its text literals emptied: what names fields and functions.
    code: str
    uses_old_self: bool
    _program: _engine.Program

    def evaluate(self, variables: Mapping[str, Any]) -> Any:
        """Raises: EvaluationFailed: no value, whatever the reason."""
        context = _engine.Context(dict(variables), dict(FUNCTIONS))
        try:
            return self._program.execute(context)
        except TypeError as exc:
            raise TypesMismatch(str(exc)) from exc
        except Exception as exc:
            # Names were checked when compiling: here it means a function for other types.
            is_mismatch = str(exc).startswith("Undefined variable or function")
            raise (TypesMismatch if is_mismatch else EvaluationFailed)(str(exc)) from exc


def compile_expression(source: str, *, variables: frozenset[str]) -> Expression:
    """Compile; demand that every name means something.

    Raises: ExpressionInvalid: bad syntax, or an unknown function or variable.
    """
    try:
        program = _engine.compile(_with_own_size(source))
    except Exception as exc:
        raise ExpressionInvalid(f"{source!r}: {exc}") from exc
    code = _STRING_LITERAL.sub("''", source)
    named = program.references()
    unknown = set(named["functions"]) - _NATIVE_FUNCTIONS - set(FUNCTIONS)
    if unknown:
        raise ExpressionInvalid(f"{source!r}: unknown functions {sorted(unknown)}")
    bound = set(_BOUND_VARIABLE.findall(code))
    unknown = set(named["variables"]) - variables - _TYPE_NAMES - bound
    if unknown:
        raise ExpressionInvalid(f"{source!r}: unknown variables {sorted(unknown)}")
    return Expression(source, code, "oldSelf" in named["variables"], program)
