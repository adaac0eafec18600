"""What csi-sanity skips must have a reason, and as often as the reason says."""

from __future__ import annotations

from tests.e2e.conformance.reasons import SKIPPED, Reason, complaints
from tests.e2e.conformance.sanity import Report, Spec, read

MESSAGES = {
    10: "ControllerPublishVolume not supported",
    8: "Modify volume not supported",
    6: "GroupControllerService not supported",
    1: "SNAPSHOT_ACCESSIBILITY_CONSTRAINTS not supported",
}


def known() -> list[Spec]:
    """The tests that are skipped with a reason, as often as it says."""
    return [Spec("a test", "skipped", message_for(r)) for r in SKIPPED for _ in range(r.count)]


def message_for(reason: Reason) -> str:
    candidates = [*MESSAGES.values(), "NodeGetVolumeHealth not supported"]
    return next(m for m in candidates if reason.explains(Spec("", "skipped", m)))


def test_what_is_skipped_for_known_reasons_is_fine() -> None:
    assert complaints(known()) == []


def test_a_test_that_is_skipped_for_another_reason_is_told() -> None:
    (told,) = complaints([*known(), Spec("clones", "skipped", "CloneVolume not supported")])
    assert told == "skipped without a reason that we know: clones: CloneVolume not supported"


def test_a_capability_that_comes_or_goes_is_told() -> None:
    assert complaints(known()[:-1]) == [f"{SKIPPED[-1].topic}: 0 skipped, and not 1"]
    assert complaints([*known(), known()[0]]) == [f"{SKIPPED[0].topic}: 11 skipped, and not 10"]


def test_a_report_holds_tests_and_a_set_up_that_failed() -> None:
    entry = {"ContainerHierarchyTexts": ["Node"], "LeafNodeText": "works", "LeafNodeType": "It"}
    suite = {
        "SpecReports": [
            {**entry, "State": "passed"},
            {**entry, "State": "timedout", "Failure": {"Message": "too slow"}},
            {"ContainerHierarchyTexts": None, "LeafNodeText": "", "State": "passed"}
            | {"LeafNodeType": "BeforeSuite"},
            {"ContainerHierarchyTexts": None, "LeafNodeText": "", "State": "panicked"}
            | {"LeafNodeType": "BeforeSuite", "Failure": {"Message": "no socket"}},
        ]
    }
    report = Report(tuple(read([suite])), "")
    assert [spec.message for spec in report.failed] == ["too slow", "no socket"]
    assert report.of("passed") == [Spec("Node › works", "passed", "")]
