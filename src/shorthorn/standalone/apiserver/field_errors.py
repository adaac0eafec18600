"""What is wrong with an object that a client sent: the errors of schema admission.

Owns the error types and how a Kubernetes API server words them. Knows no schema and
no transport: `schema` raises these, the HTTP edge turns them into a `Status`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

REQUIRED = "FieldValueRequired"
INVALID = "FieldValueInvalid"
NOT_SUPPORTED = "FieldValueNotSupported"
FORBIDDEN = "FieldValueForbidden"
DUPLICATE = "FieldValueDuplicate"
TYPE_INVALID = "FieldValueTypeInvalid"
TOO_LONG = "FieldValueTooLong"
TOO_MANY = "FieldValueTooMany"
#: An object with one of these is not shown to CEL rules; with any other error it is.
BLOCKING = frozenset({TYPE_INVALID, REQUIRED, NOT_SUPPORTED, TOO_LONG, TOO_MANY})


@dataclass(frozen=True, slots=True)
class FieldError:
    """One broken rule at one field; a cause in `status.details.causes`.

    `field` is a path such as `spec.list[0].name`; `message` leaves the path out, and
    `str()` puts it in front, the way a `Status` message shows it.
    """

    field: str
    reason: str
    message: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message


#: What stands beside such an error, in a real API server's words: Go's nil is the field.
RULES_UNCHECKED = FieldError(
    "<nil>",
    INVALID,
    "Invalid value: null: some validation rules were not checked because the object was invalid; "
    "correct the existing errors to complete validation",
)


class InvalidObject(Exception):
    """The object has only known fields, but values that its schema refuses."""

    def __init__(self, errors: list[FieldError]) -> None:
        super().__init__("; ".join(str(error) for error in errors))
        self.errors = errors


class UnknownFields(Exception):
    """The object has fields that its schema does not know; `paths` has all of them."""

    def __init__(self, paths: list[str]) -> None:
        super().__init__(", ".join(f'unknown field "{path}"' for path in paths))
        self.paths = paths


class SchemaUnsupported(Exception):
    """A schema uses something that cannot be evaluated here, so nobody may rely on it."""


def quoted(value: Any) -> str:
    """Show a value the way Kubernetes prints the one it refuses: as compact JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)


def required(field: str, detail: str = "") -> FieldError:
    return FieldError(field, REQUIRED, f"Required value: {detail}" if detail else "Required value")


def invalid(field: str, value: Any, detail: str) -> FieldError:
    return FieldError(field, INVALID, f"Invalid value: {quoted(value)}: {detail}")


def type_invalid(field: str, value: Any, expected: str) -> FieldError:
    found = type_name(value)
    where = f"{field} in body" if field else "the object"
    detail = f'Invalid value: "{found}": {where} must be of type {expected}: "{found}"'
    return FieldError(field, TYPE_INVALID, detail)


def format_invalid(field: str, value: Any, expected: str) -> FieldError:
    shown = quoted(value)
    detail = f"Invalid value: {shown}: {field} in body must be of type {expected}: {shown}"
    return FieldError(field, TYPE_INVALID, detail)


def not_supported(field: str, value: Any, supported: list[Any]) -> FieldError:
    values = ", ".join(quoted(each) for each in supported)
    message = f"Unsupported value: {quoted(value)}: supported values: {values}"
    return FieldError(field, NOT_SUPPORTED, message)


def forbidden(field: str, detail: str) -> FieldError:
    return FieldError(field, FORBIDDEN, f"Forbidden: {detail}")


def duplicate(field: str, value: Any) -> FieldError:
    return FieldError(field, DUPLICATE, f"Duplicate value: {quoted(value)}")


def too_long(field: str, limit: int) -> FieldError:
    return FieldError(field, TOO_LONG, f"Too long: may not be more than {limit} bytes")


def too_many(field: str, count: int, limit: int) -> FieldError:
    message = f"Too many: {count}: must have at most {limit} items"
    return FieldError(field, TOO_MANY, message)


def type_name(value: Any) -> str:
    """Name the JSON type of a decoded value, in OpenAPI's words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer"
    if isinstance(value, float):
        return "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object"


def child(path: str, key: str) -> str:
    """Extend a field path by a property or map key."""
    return f"{path}.{key}" if path else key
