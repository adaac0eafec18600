"""Which objects the roles look at again when another one changes."""

from __future__ import annotations

from typing import Any

from shorthorn.standalone.roles import Roles


class Queue:
    """A controller that only notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def enqueue(self, key: str) -> None:
        self.told.append(key)


def test_a_claim_that_goes_before_it_was_bound_wakes_the_volume_made_for_it(
    monkeypatch: Any,
) -> None:
    """Or a volume that was made at that very moment stays for ever."""
    roles, claims, volumes = object.__new__(Roles), Queue(), Queue()
    monkeypatch.setattr(roles, "_claim_controller", claims, raising=False)
    monkeypatch.setattr(roles, "_volume_controller", volumes, raising=False)
    monkeypatch.setattr(roles, "_wake_copies_of", lambda claim: None)
    roles._claim_changed("ns/a", {"metadata": {"namespace": "ns", "uid": "1"}, "spec": {}})
    bound = {"metadata": {"namespace": "ns", "uid": "2"}, "spec": {"volumeName": "static"}}
    roles._claim_changed("ns/b", bound)
    assert claims.told == ["ns/a", "ns/b"]
    assert volumes.told == ["pvc-1", "static"]
