"""What a measurement gives: seconds by round, figures, and limits that were kept or not.

Owns the shapes that the modules fill and `report` prints. Must never measure.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Check:
    """A promise, and what was found. Timings depend on the machine, all else does not."""

    promise: str
    found: str
    is_kept: bool
    is_timing: bool = False


@dataclass(slots=True)
class Section:
    """One measurement."""

    title: str
    #: what was done → seconds, one for each round; rounds of all lists belong together
    seconds: dict[str, list[float]] = field(default_factory=dict)
    #: what we do → what a user would do instead
    instead_of: dict[str, list[str]] = field(default_factory=dict)
    #: figures that are no seconds, with their units
    figures: dict[str, str] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)

    def took(self, what: str, seconds: float) -> None:
        self.seconds.setdefault(what, []).append(seconds)

    def check(self, promise: str, found: str, *, kept: bool, timing: bool = False) -> None:
        self.checks.append(Check(promise, found, kept, timing))

    def ratios(self, ours: str, theirs: str) -> list[float]:
        """Return how many times longer theirs took, round by round."""
        pairs = zip(self.seconds[ours], self.seconds[theirs], strict=True)
        return [other / own for own, other in pairs]


def median(values: list[float]) -> float:
    return statistics.median(values)


def percentile(values: list[float], percent: int) -> float:
    """Return the smallest value that at least `percent` of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]
