"""Label and field selectors, and what they refuse."""

from __future__ import annotations

import pytest

from shorthorn.standalone.apiserver.selectors import Selection, parse_fields, parse_labels
from shorthorn.standalone.apiserver.status import StatusError
from shorthorn.standalone.apiserver.transactions import Change
from shorthorn.standalone.apiserver.watch import event_type_for

LABELS = {"app": "db", "example.com/tier": "gold", "empty": ""}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("", True),
        ("app=db", True),
        ("app = db", True),
        ("app==db,empty=", True),
        ("empty=,app=db", True),
        ("app!=db", False),
        ("missing!=x", True),
        ("missing=", False),
        ("app in (web,db)", True),
        ("app in (web)", False),
        ("app notin (web)", True),
        ("missing notin (web)", True),
        ("example.com/tier", True),
        ("!example.com/tier", False),
        ("!missing,app", True),
        ("empty in ()", False),
        ("in in (x)", False),
    ],
)
def test_label_terms_hold_as_in_a_cluster(text: str, holds: bool):
    assert all(term.holds_for(LABELS) for term in parse_labels(text)) is holds


@pytest.mark.parametrize(
    "text", ["=x", "a in b", "a in (b", "a,", ",a", "a b", "a==b==c", "-a", "a/b/c", "a=(b)"]
)
def test_malformed_label_selectors_are_bad_requests(text: str):
    with pytest.raises(StatusError) as caught:
        parse_labels(text)
    assert caught.value.code == 400


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("spec.node=a", [("spec.node", "a", True)]),
        ("spec.node==a", [("spec.node", "a", True)]),
        ("spec.node!=a", [("spec.node", "a", False)]),
        ("metadata.name=", [("metadata.name", "", True)]),
        (r"spec.node=a\,b\=c\\", [("spec.node", "a,b=c\\", True)]),
        ("metadata.name=a,spec.node=b", [("metadata.name", "a", True), ("spec.node", "b", True)]),
    ],
)
def test_field_terms_are_read(text: str, expected: list[tuple[str, str, bool]]):
    terms = parse_fields(text, frozenset({"spec.node"}), "v1", "Thing")
    assert [(term.path, term.value, term.is_equal) for term in terms] == expected


@pytest.mark.parametrize("text", ["spec.other=a", "spec.node", "spec.node<a"])
def test_unknown_or_malformed_field_terms_are_bad_requests(text: str):
    with pytest.raises(StatusError) as caught:
        parse_fields(text, frozenset({"spec.node"}), "v1", "Thing")
    assert caught.value.code == 400


def test_fields_are_compared_as_text_and_missing_ones_are_blank():
    data = b'{"metadata":{},"spec":{"on":true,"size":5}}'

    def matches(text: str) -> bool:
        fields = parse_fields(
            text, frozenset({"spec.on", "spec.size", "spec.none.deep"}), "v1", "Thing"
        )
        return Selection(fields=fields).matches("ns", "name", data)

    assert matches("spec.on=true,spec.size=5,spec.none.deep=")
    assert not matches("spec.size!=5")
    assert not matches("spec.none.deep!=")


@pytest.mark.parametrize(
    ("change_type", "before", "after", "seen"),
    [
        ("ADDED", None, "red", "ADDED"),
        ("ADDED", None, "blue", None),
        ("MODIFIED", "blue", "red", "ADDED"),
        ("MODIFIED", "red", "red", "MODIFIED"),
        ("MODIFIED", "red", "blue", "DELETED"),
        ("MODIFIED", "blue", "blue", None),
        ("DELETED", "red", "red", "DELETED"),
        ("DELETED", "blue", "blue", None),
    ],
)
def test_a_selection_sees_entering_and_leaving(
    change_type: str, before: str | None, after: str, seen: str | None
):
    def data(colour: str) -> bytes:
        return b'{"metadata":{"labels":{"colour":"%s"}}}' % colour.encode()

    previous = None if before is None else data(before)
    change = Change(5, change_type, "things", "ns", "name", data(after), previous)
    assert event_type_for(change, Selection(labels=parse_labels("colour=red"))) == seen
    assert event_type_for(change, Selection()) == change_type
