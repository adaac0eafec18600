"""Checks manifests before the API server does, explains what is wrong, and mends what is clear.

Owns: the rules of docs/lint.md. Must never: read files, talk to an API server, or change what a
manifest means where more than one meaning is possible. Called by `shorthorn lint`.
"""

from shorthorn.lint.check import check
from shorthorn.lint.findings import RULES, Finding, Rule, Severity
from shorthorn.lint.mend import mend

__all__ = ["RULES", "Finding", "Rule", "Severity", "check", "mend"]
