"""What a claim's phase and its events mean for people."""

from __future__ import annotations

from typing import Any

import pytest

from shorthorn.web.restoring import parse_size
from shorthorn.web.views.claim import Standing, standing_of


def claim(phase: str = "Pending", volume: str = "") -> dict[str, Any]:
    return {
        "metadata": {"uid": "u-1"},
        "spec": {"volumeName": volume} if volume else {},
        "status": {"phase": phase},
    }


def event(
    at: int, reason: str, kind: str = "Normal", uid: str = "u-1", version: int = 1
) -> dict[str, Any]:
    return {
        "metadata": {"resourceVersion": str(version)},
        "involvedObject": {"uid": uid},
        "type": kind,
        "reason": reason,
        "message": f"{reason} it is",
        "lastTimestamp": f"2026-01-01T00:00:{at:02}Z",
    }


@pytest.mark.parametrize(
    ("found", "events", "expected"),
    [
        pytest.param(None, [], Standing("gone"), id="no claim"),
        pytest.param(
            claim("Bound", "pvc-1"),
            [event(1, "ProvisioningFailed", "Warning")],
            Standing("bound", "", "pvc-1"),
            id="bound, whatever was before",
        ),
        pytest.param(claim(), [], Standing("pending"), id="nothing said yet"),
        pytest.param(
            claim(),
            [event(2, "ProvisioningFailed", "Warning"), event(1, "Provisioning")],
            Standing("failing", "ProvisioningFailed it is"),
            id="the newest event counts",
        ),
        pytest.param(
            claim(),
            [event(1, "Failed", "Warning", version=9), event(1, "Provisioning", version=10)],
            Standing("pending", "Provisioning it is"),
            id="within a second the newer version counts",
        ),
        pytest.param(
            claim(),
            [event(1, "WaitForFirstConsumer")],
            Standing("waiting", "WaitForFirstConsumer it is"),
            id="nobody uses it yet",
        ),
        pytest.param(
            claim(),
            [event(1, "ProvisioningFailed", "Warning", uid="u-0")],
            Standing("pending"),
            id="another claim had its name",
        ),
        pytest.param(
            claim("Lost", "pvc-1"), [], Standing("lost", "", "pvc-1"), id="its volume is gone"
        ),
    ],
)
def test_a_claim_stands(
    found: dict[str, Any] | None, events: list[dict[str, Any]], expected: Standing
) -> None:
    assert standing_of(found, events) == expected


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("10Gi", 10 << 30), ("1Ti", 1 << 40), ("5", 5), ("0", None), ("1G", None), ("much", None)],
)
def test_a_size_is_read(text: str, size_bytes: int | None) -> None:
    assert parse_size(text) == size_bytes
