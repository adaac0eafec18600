"""CEL expressions as Kubernetes evaluates them, and refusals of those that cannot be."""

from __future__ import annotations

import threading
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shorthorn.standalone.apiserver import cel

NAMES = frozenset({"self", "oldSelf"})


def evaluate(source: str, value: Any = None) -> Any:
    return cel.compile_expression(source, variables=NAMES).evaluate({"self": value})


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("has(self.a) && !has(self.b)", {"a": None}),
        ("!has(self.a.b) || self.a.b == 1", {"a": {}}),
        ("self.i == 2 && type(self.i) == int && self.i == 2.0 && self.i < 2.5", {"i": 2}),
        ("type(self.f) == double && self.f == 2", {"f": 2.0}),
        ("self == 9007199254740993", 9007199254740993),
        ("'é'.size() == 1 && size(self) == 2 && size([1]) == 1 && size({}) == 0", "aé"),
        ("self.size == 'size(' && size('size(') == 5", {"size": "size("}),
        ("self.matches('^a+$') && !self.matches('^b')", "aa"),
        ("self.startsWith('ab') && self.endsWith('c') && self.contains('b')", "abc"),
        ("self in ['a', 'b'] && 'k' in {'k': 1}", "a"),
        ("self.all(x, x > 0) && self.exists(x, x == 2) && self.exists_one(x, x == 1)", [1, 2]),
        ("self.map(x, x * 2) == [2, 4] && self.filter(x, x > 1) == [2]", [1, 2]),
        ("self.all(k, self[k] > 0) && self.exists(k, k == 'a')", {"a": 1}),
        ("self > 1 ? true : false", 2),
        ("true || 1 / 0 == 1", None),
        ("1 / 0 == 1 || true", None),
        ("self == {'a': [1, {'b': null}]}", {"a": [1, {"b": None}]}),
        ("'A-b'.lowerAscii() == 'a-b' && 'Éa'.upperAscii() == 'ÉA'", None),
        ("'a,b,c'.split(',') == ['a', 'b', 'c'] && 'a,b,c'.split(',', 2) == ['a', 'b,c']", None),
        ("'ab'.split('') == ['a', 'b'] && 'a'.split(',', 0) == []", None),
        ("' a '.trim() == 'a' && 'aab'.replace('a', 'x', 1) == 'xab'", None),
        ("'abc'.substring(1) == 'bc' && 'abc'.substring(0, 2) == 'ab'", None),
        ("'abc'.charAt(1) == 'b' && 'abc'.charAt(3) == ''", None),
        ("'abcb'.indexOf('b') == 1 && 'abcb'.indexOf('b', 2) == 3", None),
        ("'abcb'.lastIndexOf('b') == 3 && 'a'.indexOf('z') == -1", None),
        ("['a', 'b'].join('-') == 'a-b' && ['a', 'b'].join() == 'ab'", None),
        ("[1, 2, 2].isSorted() && ![2, 1].isSorted()", None),
        ("self.sum() == 6 && self.min() == 1 && self.max() == 3", [1, 2, 3]),
        ("quantity('1Gi') == quantity('1024Mi') && quantity('1k') == quantity('1000')", None),
        ("quantity(self).isGreaterThan(quantity('1G'))", "1Gi"),
        ("quantity('100m').isLessThan(quantity('1'))", None),
        ("quantity('1').compareTo(quantity('2')) == -1 && isQuantity('1e3')", None),
        ("!isQuantity('1 Gi') && quantity('1.5Ki').asInteger() == 1536", None),
        ("duration('1h') == duration('60m')", None),
        ("timestamp('2020-01-01T00:00:00Z') < timestamp('2021-01-01T00:00:00Z')", None),
        ('self.matches(r"^\\d+$")', "12"),
    ],
)
def test_expressions_mean_what_they_mean_in_a_cluster(source: str, value: Any) -> None:
    assert evaluate(source, value) is True


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("self.missing == 1", {"a": 1}),
        ("self[5] == 1", []),
        ("1 / self == 1", 0),
        ("self + 1 > 0", 2**63 - 1),
        ("quantity(self).isGreaterThan(quantity('1'))", "1 Gi"),
        ("quantity('1.5').asInteger() == 1", None),
        ("self.substring(2, 1) == ''", "abc"),
        ("int(self) == 1", "one"),
    ],
)
def test_an_expression_without_a_value_raises(source: str, value: Any) -> None:
    with pytest.raises(cel.EvaluationFailed) as caught:
        evaluate(source, value)
    assert not isinstance(caught.value, cel.TypesMismatch)


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("self + 'a' == 'x'", 1),
        ("self && true", "x"),
        ("!self", 1),
        ("self ? true : false", 1),
        ("'a' in self", "abc"),
        ("self.matches('a')", 1),
        ("string(self) == 'true'", True),
    ],
)
def test_operands_of_wrong_types_are_told_apart(source: str, value: Any) -> None:
    with pytest.raises(cel.TypesMismatch):
        evaluate(source, value)


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("self ==", "Syntax error"),
        ("self.?a.orValue(1) == 1", "unsupported"),
        ("isURL(self)", "unknown functions ['isURL']"),
        ("true || self.nosuch(1)", "unknown functions ['nosuch']"),
        ("bool(self)", "unknown functions ['bool']"),
        ("self == other", "unknown variables ['other']"),
        ("'x.all(other, )' == other", "unknown variables ['other']"),
        ("params.x == 1", "unknown variables ['params']"),
    ],
)
def test_an_expression_with_unknown_names_does_not_compile(source: str, problem: str) -> None:
    with pytest.raises(cel.ExpressionInvalid) as caught:
        cel.compile_expression(source, variables=NAMES)
    assert problem in str(caught.value)


def test_an_expression_knows_whether_it_needs_the_old_value() -> None:
    def uses_old(source: str) -> bool:
        return cel.compile_expression(source, variables=NAMES).uses_old_self

    assert uses_old("self == oldSelf")
    assert not uses_old("self == 'oldSelf'")


def test_a_compiled_expression_may_be_used_from_any_thread() -> None:
    expression = cel.compile_expression("quantity(self) == quantity('1Ki')", variables=NAMES)
    results: list[Any] = []
    threads = [
        threading.Thread(target=lambda: results.append(expression.evaluate({"self": "1024"})))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 4


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", "5"),
        (5, "5"),
        ("-1.5Ki", "-1536"),
        (".5", "0.5"),
        ("5.", "5"),
        ("1Ei", "1152921504606846976"),
        ("1E", "1000000000000000000"),
        ("1E2", "100"),
        ("1e-3", "0.001"),
        ("100m", "0.1"),
        ("1n", "0.000000001"),
        ("2u", "0.000002"),
    ],
)
def test_quantities_are_read(text: str | int, value: str) -> None:
    assert cel.parse_quantity(text) == Decimal(value)


@pytest.mark.parametrize("text", ["", "Gi", "5 Gi", "5gi", "5Kii", "1e", "٣", "5\n", "0x5", "5K"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a quantity"):
        cel.parse_quantity(text)


@given(amount=st.integers(-(10**20), 10**20), suffix=st.sampled_from(["", "k", "Ki", "Gi", "m"]))
def test_quantities_compare_by_value_however_they_are_written(amount: int, suffix: str) -> None:
    text = f"{amount}{suffix}"
    smallest = {"": 10**9, "k": 10**12, "Ki": 1024 * 10**9, "Gi": 1024**3 * 10**9, "m": 10**6}
    written_in_nanos = f"{amount * smallest[suffix]}n"
    assert evaluate(f"quantity('{text}') == quantity('{written_in_nanos}')") is True
    assert evaluate(f"quantity('{text}').compareTo(quantity('{written_in_nanos}')) == 0") is True
