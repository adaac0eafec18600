"""Questions to the API server that are asked by creating an object: who is this, and may they?

Owns TokenReview and SelfSubjectAccessReview. There is one token, and it may do everything, so the
answers are short; nothing is stored. Called by `app` for requests that carry that token.
Source: authentication.k8s.io/v1, authorization.k8s.io/v1.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Any

from shorthorn.standalone.apiserver import status

if TYPE_CHECKING:
    from collections.abc import Mapping

_TOKEN = ("authentication.k8s.io", "TokenReview", "tokenreviews")
_ACCESS = ("authorization.k8s.io", "SelfSubjectAccessReview", "selfsubjectaccessreviews")
_BY_PATH = {f"/apis/{group}/v1/{plural}": kind for group, kind, plural in (_TOKEN, _ACCESS)}
_USER = {"username": "shorthorn-admin", "groups": ["system:masters", "system:authenticated"]}


def find_kind(path: str) -> str | None:
    """Return which review is asked for at `path`, if any."""
    return _BY_PATH.get(path)


def find_document(path: str) -> dict[str, Any] | None:
    """Return what discovery says at `/apis/GROUP` or `/apis/GROUP/v1`, None for other paths."""
    for group, kind, plural in (_TOKEN, _ACCESS):
        if path == f"/apis/{group}":
            version = {"groupVersion": f"{group}/v1", "version": "v1"}
            described = {"name": group, "versions": [version], "preferredVersion": version}
            return {"kind": "APIGroup", "apiVersion": "v1"} | described
        if path == f"/apis/{group}/v1":
            entry = {"name": plural, "singularName": kind.lower(), "namespaced": False}
            entry |= {"kind": kind, "verbs": ["create"]}
            about = {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": f"{group}/v1"}
            return about | {"resources": [entry]}
    return None


def review(kind: str, body: Mapping[str, Any], *, token: str) -> dict[str, Any]:
    """Answer one review of a caller who presented `token`. Raises: StatusError 400, 422."""
    group = next(group for group, name, _ in (_TOKEN, _ACCESS) if name == kind)
    if body.get("kind", kind) != kind or body.get("apiVersion", f"{group}/v1") != f"{group}/v1":
        raise status.bad_request(f"the object is no {kind} of {group}/v1")
    spec = body.get("spec")
    if not isinstance(spec, dict):
        spec = {}
    answer = _token_status(spec, token) if kind == "TokenReview" else _access_status(spec)
    about = {"kind": kind, "apiVersion": f"{group}/v1"}
    return about | {"metadata": {"creationTimestamp": None}, "spec": spec, "status": answer}


def _token_status(spec: Mapping[str, Any], token: str) -> dict[str, Any]:
    presented = spec.get("token")
    if not isinstance(presented, str) or not presented:
        raise status.bad_request("token is required for TokenReview in authentication")
    if hmac.compare_digest(presented.encode(), token.encode()):
        return {"authenticated": True, "user": _USER}
    return {"user": {}, "error": "invalid bearer token"}


def _access_status(spec: Mapping[str, Any]) -> dict[str, Any]:
    asked = [spec.get("resourceAttributes"), spec.get("nonResourceAttributes")]
    if sum(value is not None for value in asked) != 1:
        raise status.StatusError(
            422,
            "Invalid",
            "SelfSubjectAccessReview.authorization.k8s.io is invalid: spec: exactly one of"
            " nonResourceAttributes or resourceAttributes must be specified",
        )
    return {"allowed": True}
