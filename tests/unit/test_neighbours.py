"""How Longhorn's own images are told from ours."""

from __future__ import annotations

from typing import Any

import pytest

from shorthorn.kube.neighbours import is_longhorns


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        pytest.param({"metadata": {"name": "a"}}, False, id="a user's, new"),
        pytest.param(
            {"metadata": {"name": "a", "finalizers": ["longhorn.io"]}},
            False,
            id="ours, a moment after its finalizer",
        ),
        pytest.param(
            {"metadata": {"name": "a", "labels": None}, "status": {"uuid": "1", "ownerID": ""}},
            False,
            id="ours",
        ),
        pytest.param(
            {"metadata": {"name": "a", "labels": {"longhorn.io/component": "backing-image"}}},
            True,
            id="admitted by Longhorn's webhook",
        ),
        pytest.param(
            {"metadata": {"name": "a"}, "status": {"ownerID": "node-1"}}, True, id="owned"
        ),
    ],
)
def test_marks_of_longhorn(image: dict[str, Any], expected: bool) -> None:
    assert is_longhorns(image) is expected
