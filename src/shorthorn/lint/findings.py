"""What lint says: rules, their severities, and findings. Pure data, used by every lint module."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from shorthorn.domain.handle_traps import TrapKind


class Severity(StrEnum):
    """How bad a finding is; only errors make the command fail."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


class Rule(StrEnum):
    """Stable ids of the rules; docs/lint.md explains each, docs/handles.md the `handle-` ones."""

    YAML_SYNTAX = "yaml-syntax"
    NOT_A_MANIFEST = "not-a-manifest"
    UNKNOWN_KIND = "unknown-kind"
    OLD_API_VERSION = "old-api-version"
    WRONG_API_VERSION = "wrong-api-version"
    DUPLICATE_FIELD = "duplicate-field"
    MISPLACED_FIELD = "misplaced-field"
    UNKNOWN_FIELD = "unknown-field"
    MISSING_FIELD = "missing-field"
    WRONG_TYPE = "wrong-type"
    SOURCE_CHOICE = "source-choice"
    DELETION_POLICY = "deletion-policy"
    DELETES_IMAGE = "deletes-image"
    OTHER_DRIVER = "other-driver"
    CLASS_TYPE = "class-type"
    CLASS_EXPORT_TYPE = "class-export-type"
    CLASS_TWO_EXPORT_TYPES = "class-two-export-types"
    CLASS_PARAMETER = "class-parameter"
    DATA_SOURCE_GROUP = "data-source-group"
    DATA_SOURCE_KIND = "data-source-kind"
    ACCESS_MODE = "access-mode"
    QUANTITY = "quantity"
    UNMATCHED_REF = "unmatched-ref"
    PVC_NAME = "pvc-name"
    HANDLE_INVALID = "handle-invalid"
    HANDLE_UNESCAPED_AMPERSAND = f"handle-{TrapKind.UNESCAPED_AMPERSAND}"
    HANDLE_UNESCAPED_HASH = f"handle-{TrapKind.UNESCAPED_HASH}"
    HANDLE_UNESCAPED_PLUS = f"handle-{TrapKind.UNESCAPED_PLUS}"
    HANDLE_DROPPED_PAIR = f"handle-{TrapKind.DROPPED_PAIR}"
    HANDLE_DUPLICATE_KEY = f"handle-{TrapKind.DUPLICATE_KEY}"
    HANDLE_CHECKSUM_KEY = f"handle-{TrapKind.CHECKSUM_KEY}"
    HANDLE_CHECKSUM_FORMAT = f"handle-{TrapKind.CHECKSUM_FORMAT}"
    HANDLE_UPPER_CASE = f"handle-{TrapKind.UPPER_CASE}"
    HANDLE_UNKNOWN_SOURCE_TYPE = f"handle-{TrapKind.UNKNOWN_SOURCE_TYPE}"
    HANDLE_UNKNOWN_EXPORT_TYPE = f"handle-{TrapKind.UNKNOWN_EXPORT_TYPE}"
    HANDLE_MISSPELT_KEY = f"handle-{TrapKind.MISSPELT_KEY}"
    HANDLE_UNEXPECTED_KEY = f"handle-{TrapKind.UNEXPECTED_KEY}"
    HANDLE_MISSING_PARAMETER = f"handle-{TrapKind.MISSING_PARAMETER}"
    HANDLE_URL_SCHEME = f"handle-{TrapKind.URL_SCHEME}"
    HANDLE_IMAGE_NAME = f"handle-{TrapKind.IMAGE_NAME}"
    HANDLE_PLACEHOLDER = f"handle-{TrapKind.PLACEHOLDER}"


_WARNINGS: Final = frozenset(
    {
        Rule.UNKNOWN_KIND,
        Rule.CLASS_TWO_EXPORT_TYPES,
        Rule.CLASS_PARAMETER,
        Rule.UNMATCHED_REF,
        Rule.HANDLE_UNESCAPED_AMPERSAND,
        Rule.HANDLE_UNESCAPED_HASH,
        Rule.HANDLE_UNESCAPED_PLUS,
        Rule.HANDLE_DROPPED_PAIR,
        Rule.HANDLE_DUPLICATE_KEY,
        Rule.HANDLE_CHECKSUM_KEY,
        Rule.HANDLE_MISSPELT_KEY,
        Rule.HANDLE_UNEXPECTED_KEY,
    }
)
_INFOS: Final = frozenset({Rule.DELETES_IMAGE, Rule.OTHER_DRIVER, Rule.PVC_NAME})


def _severity(rule: Rule) -> Severity:
    if rule in _INFOS:
        return Severity.INFO
    return Severity.WARNING if rule in _WARNINGS else Severity.ERROR


#: Every rule with its severity.
RULES: Final = {rule: _severity(rule) for rule in Rule}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to say about a manifest.

    `line` and `column` count from 1. `advice` says what to do. `mend` returns the document's text
    with this one thing put right, or None where that turns out to be unclear; it is None where
    only a human can know what was meant. `subject` is the field's name where a field is misplaced.
    """

    rule: Rule
    message: str
    advice: str
    line: int
    column: int
    subject: str = ""
    mend: Callable[[], str | None] | None = field(default=None, compare=False, repr=False)

    @property
    def severity(self) -> Severity:
        """The rule's severity."""
        return RULES[self.rule]

    @property
    def is_error(self) -> bool:
        """Whether the API server, the driver or Kubernetes would refuse this."""
        return self.severity is Severity.ERROR
