"""Who may what is the API server's answer, kept for ten seconds and for one token alone."""

from __future__ import annotations

import pytest

from shorthorn.kube import user_api
from shorthorn.kube.user_api import Resource
from shorthorn.web.access import KEPT_S, Access, Forbidden
from shorthorn.web.sessions import Session

ANN, BOB = Session("ann", "token-a", "1"), Session("bob", "token-b", "2")


class Answers:
    """An API server that lets one token do some verbs."""

    def __init__(self) -> None:
        self.allowed = {("token-a", "list")}
        self.asked: list[tuple[str, str, str, str]] = []

    async def may(
        self, token: str, verb: str, resource: Resource, *, namespace: str = "", name: str = ""
    ) -> bool:
        self.asked.append((verb, resource.plural, namespace, name))
        return (token, verb) in self.allowed


@pytest.fixture
def api() -> Answers:
    return Answers()


async def test_a_right_is_asked_for_in_our_namespace_and_kept_for_a_while(api: Answers) -> None:
    now = [0.0]
    access = Access(api, namespace="ours", clock=lambda: now[0])  # type: ignore[arg-type]
    assert await access.may(ANN, "list", user_api.IMAGES)
    api.allowed.clear()
    now[0] = KEPT_S - 0.1
    assert await access.may(ANN, "list", user_api.IMAGES)
    now[0] = KEPT_S
    assert not await access.may(ANN, "list", user_api.IMAGES)
    assert api.asked == [("list", "backingimages", "ours", "")] * 2


async def test_one_users_right_is_no_others(api: Answers) -> None:
    access = Access(api, namespace="ours")  # type: ignore[arg-type]
    assert await access.may(ANN, "list", user_api.IMAGES)
    assert not await access.may(BOB, "list", user_api.IMAGES)
    assert await access.may(ANN, "list", user_api.IMAGES, "golden")
    assert api.asked[-1] == ("list", "backingimages", "ours", "golden")


async def test_what_is_not_allowed_is_refused_in_words(api: Answers) -> None:
    access = Access(api, namespace="ours")  # type: ignore[arg-type]
    with pytest.raises(Forbidden) as refused:
        await access.require(BOB, "get", user_api.IMAGES, "golden")
    assert refused.value.code == 403
    assert str(refused.value) == 'user "bob" may not get backingimages.longhorn.io "golden"'


def test_names_cannot_leave_their_place_in_a_path() -> None:
    assert user_api.IMAGES.path("ns", "../../x") == (
        "/apis/longhorn.io/v1beta2/namespaces/ns/backingimages/..%2F..%2Fx"
    )
    assert user_api.CONTENTS.path("ns", "a") == (
        "/apis/snapshot.storage.k8s.io/v1/volumesnapshotcontents/a"
    )
