"""The web page of a cluster: each user has the rights of their token, and bytes go to the nodes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import httpx2
import pytest
import yaml
from tests.e2e.cluster.release import NAMESPACE, Release
from tests.e2e.cluster.test_nodes import MIB, ready_nodes
from tests.e2e.cluster.users import User
from tests.integration.daemon_process import poll

pytestmark = pytest.mark.root

#: As the chart has it.
PORT = 8090
SIZE = 24 * MIB
LOOK = {
    "longhorn.io": {"backingimages": ["get", "list"]},
    "shorthorn.io": {"volumes": ["list"], "snapshots": ["list"], "pools": ["list"]},
}
SEND = {**LOOK, "longhorn.io": {"backingimages": ["get", "list", "create", "update", "delete"]}}


def token_of(own: User, name: str, rights: dict[str, dict[str, list[str]]]) -> str:
    """Make a service account with rights in Shorthorn's namespace; return a token of it."""
    subject = {"kind": "ServiceAccount", "name": name, "namespace": own.namespace}
    meta = {"name": f"{own.namespace}-{name}", "namespace": NAMESPACE}
    group = "rbac.authorization.k8s.io"
    rules = [
        {"apiGroups": [of], "resources": [kind], "verbs": verbs}
        for of, kinds in rights.items()
        for kind, verbs in kinds.items()
    ]
    account = {"name": name, "namespace": own.namespace}
    reference = {"apiGroup": group, "kind": "Role", "name": meta["name"]}
    own.apply(
        [
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account},
            {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": meta, "rules": rules},
            {
                "apiVersion": f"{group}/v1",
                "kind": "RoleBinding",
                "metadata": meta,
                "roleRef": reference,
                "subjects": [subject],
            },
        ]
    )
    user = f"system:serviceaccount:{own.namespace}:{name}"
    for of, kinds in rights.items():
        for kind, verbs in kinds.items():
            for verb in verbs:
                poll(partial(may, own, user, verb, of, kind), what=f"{user} may {verb} {kind}")
    kubeconfig = own.release.plane.kubeconfig_for_service_account(own.namespace, name)
    return str(yaml.safe_load(kubeconfig.read_text())["users"][0]["user"]["token"])


def may(own: User, user: str, verb: str, group: str, kind: str) -> bool:
    """Whether the API server, which reads roles by and by, lets a user do something."""
    asked = {"namespace": NAMESPACE, "verb": verb, "group": group, "resource": kind}
    answer = own.api.client.post(
        "/apis/authorization.k8s.io/v1/subjectaccessreviews",
        json={"spec": {"user": user, "resourceAttributes": asked}},
    )
    assert answer.status_code == 201, answer.text
    return bool(answer.json()["status"]["allowed"])


@contextmanager
def web(release: Release, **options: Any) -> Iterator[httpx2.Client]:
    """A client of a controller's web page."""
    base = f"http://{release.controllers[0].network.address}:{PORT}"
    with httpx2.Client(base_url=base, trust_env=False, timeout=60, **options) as http:
        yield http


def image_to_send(own: User, name: str) -> str:
    """Make a BackingImage that waits for its bytes; return its name."""
    name = f"{own.namespace}-{name}"
    annotations = {"shorthorn.io/upload-length": str(SIZE)}
    own.api.create(
        {
            "apiVersion": "longhorn.io/v1beta2",
            "kind": "BackingImage",
            "metadata": {"name": name, "namespace": NAMESPACE, "annotations": annotations},
            "spec": {"sourceType": "upload"},
        }
    )
    return name


def test_the_page_shows_what_a_users_rights_allow(release: Release, own: User) -> None:
    nobody, viewer = token_of(own, "nobody", {}), token_of(own, "viewer", LOOK)
    image = image_to_send(own, "shown")
    with web(release, follow_redirects=True) as http:
        assert http.post("/login", data={"token": "of nobody"}).status_code == 403
        assert http.post("/login", data={"token": nobody}).status_code in (200, 403)
        refused = http.get("/images")
        assert refused.status_code == 403
        assert image not in refused.text
    with web(release, follow_redirects=True) as http:
        assert http.post("/login", data={"token": viewer}).status_code == 200
        shown = http.get("/images")
        assert shown.status_code == 200
        assert image in shown.text
    with web(release, headers={"Authorization": f"Bearer {viewer}"}) as http:
        assert http.head(f"/api/v1/images/{image}/upload").status_code == 403
    own.api.delete("BackingImage", NAMESPACE, image)
    own.api.wait_gone("BackingImage", NAMESPACE, image)


def test_bytes_go_to_a_node_and_come_back(release: Release, own: User) -> None:
    content = os.urandom(SIZE)
    image = image_to_send(own, "sent")
    path = f"/api/v1/images/{image}"
    sender = {"Authorization": f"Bearer {token_of(own, 'sender', SEND)}"}
    with web(release, headers=sender) as http:
        # The controller may hear of the image, and its node of the copy, later than we do.
        poll(lambda: http.head(f"{path}/upload").is_success, what="an image that takes bytes")
        for offset, piece in ((0, content[: 5 * MIB]), (5 * MIB, content[5 * MIB :])):
            headers = {
                "Content-Type": "application/offset+octet-stream",
                "Upload-Offset": str(offset),
                "Tus-Resumable": "1.0.0",
            }
            answer = http.patch(f"{path}/upload", content=piece, headers=headers)
            assert answer.status_code == 204, answer.text
        poll(lambda: ready_nodes(own, image), what="a copy of the image")
        poll(lambda: http.head(f"{path}/artifact").is_success, what="an image that gives bytes")
        assert http.get(f"{path}/artifact").content == content
        part = http.get(f"{path}/raw", headers={"Range": "bytes=1000000-1000999"})
        assert (part.status_code, part.content) == (206, content[1000000:1001000])
    own.api.delete("BackingImage", NAMESPACE, image)
    own.api.wait("BackingImage", NAMESPACE, image, lambda found: found is None)
    assert release.left() == []
