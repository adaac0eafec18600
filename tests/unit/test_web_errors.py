"""The table from domain errors to HTTP statuses is complete, and docs/errors.md says the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.unit.test_csi_errors import KINDS, all_errors, name_of, raised

from shorthorn.domain import errors
from shorthorn.kube.user_api import Refused
from shorthorn.web.errors import problem_of

DOCS = (Path(__file__).parents[2] / "docs" / "errors.md").read_text()
ROW = re.compile(r"^\| `(\w+)` \| (\d{3}) \| (–|\d+ s) \|$", re.MULTILINE)


@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_every_error_is_mapped_and_documented(kind: type[errors.DomainError]) -> None:
    documented = {row[0]: row[1:] for row in ROW.findall(DOCS)}
    problem = problem_of(raised(kind))
    if problem is None:
        assert kind is errors.DomainError
        assert documented[kind.__name__] == ("500", "–")
        return
    wait = f"{problem.retry_after_s} s" if problem.retry_after_s else "–"
    assert documented[kind.__name__] == (str(problem.status), wait)
    assert (problem.reason, problem.message) == (kind.reason, "text")


def test_the_docs_describe_no_error_that_does_not_exist() -> None:
    assert {row[0] for row in ROW.findall(DOCS)} == {kind.__name__ for kind in all_errors()}


def test_what_the_api_server_refuses_keeps_its_words() -> None:
    problem = problem_of(Refused(403, "Forbidden", "no"))
    assert problem is not None
    assert (problem.status, problem.reason, problem.message) == (403, "Forbidden", "no")


def test_a_bug_has_no_text_for_callers() -> None:
    assert problem_of(KeyError("secret")) is None
