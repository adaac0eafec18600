"""The table from domain errors to gRPC codes is complete, and docs/errors.md says the same."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path

import pytest
from grpc import StatusCode

import shorthorn.domain
from shorthorn.csi.errors import CODES, OVERRIDES, code_of, is_expected
from shorthorn.domain import errors

DOCS = (Path(__file__).parents[2] / "docs" / "errors.md").read_text()
ROW = re.compile(r"^\| `(\w+)` \| (\w+) \| (\w+) \| (yes|no) \|", re.MULTILINE)
NOT_FINAL = {StatusCode.ABORTED, StatusCode.UNAVAILABLE}


def all_errors() -> set[type[errors.DomainError]]:
    """Return every error of the domain, after importing all of it."""
    for module in pkgutil.iter_modules(shorthorn.domain.__path__):
        importlib.import_module(f"shorthorn.domain.{module.name}")
    found: set[type[errors.DomainError]] = {errors.DomainError}
    waiting = [errors.DomainError]
    while waiting:
        for kind in waiting.pop().__subclasses__():
            found.add(kind)
            waiting.append(kind)
    return {kind for kind in found if kind.__module__.startswith("shorthorn.")}


def raised(kind: type[errors.DomainError]) -> errors.DomainError:
    error = kind.__new__(kind)
    Exception.__init__(error, "text")
    return error


def name_of(kind: type[errors.DomainError]) -> str:
    return kind.__name__


KINDS: list[type[errors.DomainError]] = sorted(all_errors(), key=name_of)


@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_every_error_is_mapped_and_documented(kind: type[errors.DomainError]) -> None:
    documented = {row[0]: row for row in ROW.findall(DOCS)}
    code = code_of(raised(kind), "DeleteVolume")
    is_final = "no" if code in NOT_FINAL else "yes"
    assert documented[kind.__name__] == (kind.__name__, kind.reason, code.name, is_final)
    if kind is not errors.DomainError:
        assert code is not StatusCode.INTERNAL


def test_the_docs_describe_no_error_that_does_not_exist() -> None:
    assert {row[0] for row in ROW.findall(DOCS)} == {kind.__name__ for kind in all_errors()}


def test_reasons_are_unique() -> None:
    reasons = [kind.reason for kind in all_errors()]
    assert len(reasons) == len(set(reasons))


def test_every_override_has_its_row_in_the_docs() -> None:
    second = DOCS.split("Per call, another code")[1]
    for (rpc, kind), override in OVERRIDES.items():
        row = next(line for line in second.splitlines() if rpc in line)
        assert override.code.name in row
        assert kind is Exception or f"`{kind.__name__}`" in row
        assert override.because


def test_a_subclass_inherits_its_parents_code() -> None:
    class Special(errors.NoSpace):
        pass

    try:
        assert code_of(raised(Special), "CreateVolume") is StatusCode.RESOURCE_EXHAUSTED
    finally:
        del Special


@pytest.mark.parametrize(
    ("rpc", "code"),
    [
        ("CreateVolume", StatusCode.ABORTED),
        ("CreateSnapshot", StatusCode.ABORTED),
        ("DeleteVolume", StatusCode.INTERNAL),
        ("NodeStageVolume", StatusCode.INTERNAL),
    ],
)
def test_an_unforeseen_error_is_final_only_where_nothing_can_remain(
    rpc: str, code: StatusCode
) -> None:
    assert code_of(KeyError("secret"), rpc) is code
    assert code_of(raised(errors.DomainError), rpc) is code
    assert not is_expected(KeyError("secret"))
    assert not is_expected(raised(errors.DomainError))


def test_capabilities_that_are_exceeded_have_their_own_code_when_staging() -> None:
    error = errors.UnsupportedCapability("access_mode", "no")
    assert code_of(error, "NodeStageVolume") is StatusCode.FAILED_PRECONDITION
    assert code_of(error, "CreateVolume") is StatusCode.INVALID_ARGUMENT


def test_no_code_stands_for_success() -> None:
    assert StatusCode.OK not in {*CODES.values(), *(o.code for o in OVERRIDES.values())}
