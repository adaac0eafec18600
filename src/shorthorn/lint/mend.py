"""Puts right what has one clear meaning, one finding at a time, proving each step.

Owns: the order of mending and the proof that an edit changed what it said and nothing else. Must
never: touch a document it cannot read, or one with anchors. Called by `shorthorn lint --fix`.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from shorthorn.lint.check import check_document
from shorthorn.lint.documents import BrokenYaml, compose, scalars, split
from shorthorn.lint.findings import Finding, Rule

#: Edits to one document. No manifest has this many fields; it bounds the work on a hostile one.
_EDITS_MAX: Final = 100
#: A text edit replaces one scalar, or adds a key and its value.
_SCALARS_CHANGED_MAX: Final = 2


def mend(text: str) -> str:
    """Return `text` with every clear mistake mended; comments and layout stay. Idempotent."""
    return "".join(_mend_document(chunk.text) for chunk in split(text))


def _mend_document(text: str) -> str:
    seen = {text}
    while len(seen) <= _EDITS_MAX:
        better = _next(text, seen)
        if better is None:
            return text
        seen.add(better)
        text = better
    return text


def _next(text: str, seen: set[str]) -> str | None:
    """Return the text after the first edit that holds its proof; None where none is left."""
    try:
        roots = compose(text)
    except BrokenYaml:
        return None
    before = scalars(roots)
    if before is None:
        return None
    for finding in (finding for root in roots for finding in check_document(text, root)):
        mended = finding.mend() if finding.mend else None
        if mended is not None and mended not in seen and _holds(finding, before, mended):
            return mended
    return None


def _holds(finding: Finding, before: list[str], mended: str) -> bool:
    """Whether the mended text is YAML, with the same scalars but for what the finding is about."""
    try:
        after = scalars(compose(mended))
    except BrokenYaml:
        return False
    if after is None:
        return False
    gone, come = Counter(before) - Counter(after), Counter(after) - Counter(before)
    if finding.rule is Rule.MISPLACED_FIELD:
        return not gone and not come
    return gone.total() <= 1 and come.total() <= _SCALARS_CHANGED_MAX
