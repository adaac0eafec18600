"""Why the main job ends early.

Owns: the error that every step raises, with where a reader finds the reason. Must never: print.
"""

from __future__ import annotations

from collections.abc import Sequence


class StepFailed(Exception):
    """A step did not do what it promises; `about` are kubectl's names of the objects concerned."""

    def __init__(self, problem: str, about: Sequence[str] = ()) -> None:
        super().__init__(problem)
        self.about = tuple(about)


def expect(holds: bool, problem: str, about: Sequence[str] = ()) -> None:
    """Raise StepFailed where a promise does not hold."""
    if not holds:
        raise StepFailed(problem, about)


def expect_words(text: str, words: Sequence[str], what: str, about: Sequence[str] = ()) -> None:
    """Raise StepFailed where a message lacks one of the words that a user needs."""
    missing = [word for word in words if word not in text]
    if missing:
        raise StepFailed(f"{what} says nothing of {', '.join(missing)}: {text.strip()!r}", about)
