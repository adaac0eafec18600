"""What Kubernetes objects may be called, and that all who look at a name mean the same rule.

Verdicts are Kubernetes' own (apimachinery, IsDNS1123Subdomain).
"""

from __future__ import annotations

import re
from importlib.resources import files

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shorthorn.domain.errors import InvalidArgument
from shorthorn.domain.handle_traps import TrapKind, find_traps
from shorthorn.domain.names import is_label, is_object_name, object_name, problem_of_name
from shorthorn.engines import layout
from shorthorn.services import image_requests
from shorthorn.standalone.apiserver import objectmeta

SOUND = [
    *("ab", "a-b", "a--b", "a.b", "1.2.3", "0-0.0-0", "a.b-c.d"),
    # A part between dots may be longer than a DNS label.
    *("a" * 64, f"{'a' * 100}.{'b' * 152}", "x" * 253),
]
LETTERS = "use lower-case letters, digits, '-' and '.'"
PARTS = "each part between dots"
UNSOUND = [
    *((text, LETTERS) for text in ("Ab", "a_b", "a/b", "a b", "ä.b", "ab\n", "a%2e")),
    *((text, PARTS) for text in ("a..b", "..", ".ab", "ab.", "-ab", "ab-", "a-.b", "a.-b")),
    ("x" * 254, "at most 253 characters, this one has 254"),
]


@pytest.mark.parametrize("name", [*SOUND, "a"])
def test_what_an_object_can_be_called_has_no_problem(name):
    assert is_object_name(name)
    assert problem_of_name(name) == ""


@pytest.mark.parametrize(("name", "says"), [*UNSOUND, ("", LETTERS)])
def test_what_no_object_can_be_called_is_refused_with_the_reason(name, says):
    assert not is_object_name(name)
    assert says in problem_of_name(name)


@pytest.mark.parametrize(("name", "is_one"), [(name, True) for name in SOUND] + [
    (name, False) for name, _ in UNSOUND
])  # fmt: skip
def test_handles_requests_the_api_server_pools_and_the_page_judge_alike(name, is_one):
    handle = f"bi://b?backingImage={name}&backingImageDataSourceType=upload"
    if not re.search(r"[\n %]", name):
        traps = {trap.kind for trap in find_traps(handle)}
        assert (TrapKind.IMAGE_NAME not in traps) == is_one
    assert (not list(objectmeta.problems({"name": name}))) == is_one
    assert layout.is_name(name) == is_one
    assert (_refusal_of_request(name) == "") == is_one
    form = (files("shorthorn.web") / "templates/create/form.html").read_text()
    found = re.search(r'id="name" .*maxlength="(\d+)" pattern="([^"]+)"', form)
    assert found
    in_the_page = len(name) <= int(found[1]) and re.fullmatch(found[2], name)
    assert bool(in_the_page) == is_one


def _refusal_of_request(name: str) -> str:
    try:
        image_requests.check_name(name)
    except InvalidArgument as exc:
        return str(exc)
    return ""


@given(st.text(max_size=200))
def test_whatever_a_caller_says_becomes_a_label(text):
    assert is_label(object_name(text))
    assert is_object_name(object_name(text))


@pytest.mark.parametrize("name", ["a", "a-b", "x" * 63, "pvc-0f7cbf55-52a5-4e9c-a0ba-2f6e2d2a4f0b"])
def test_a_label_names_its_object_itself(name):
    assert is_label(name)
    assert object_name(name) == name


@pytest.mark.parametrize("name", ["", "a.b", "x" * 64, "-a", "a-", "A"])
def test_what_is_no_label_is_told_from_one(name):
    assert not is_label(name)
