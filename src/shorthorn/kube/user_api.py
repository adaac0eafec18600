"""Requests to the API server with a user's own rights.

Owns: how a request carries a user's token and nothing of ours, the questions who a token belongs to
and what it may do, and what refusals say. Must never: decide who may what (the API server does), or
keep a token. Wired by `daemon`; called by `web.access` alone.

Our own credentials must not come along: where a kubeconfig has a client certificate, the connection
itself would be ours, whatever the token says. So users' requests have connections of their own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import httpx2
from lightkube import AsyncClient
from lightkube.config.kubeconfig import SingleConfig
from lightkube.config.models import User

from shorthorn.domain.errors import Unavailable
from shorthorn.kube.client import Network, domain_errors, read_config
from shorthorn.kube.generic import resource_class
from shorthorn.kube.informer import as_mapping

_TIMEOUT_S = 10.0
#: Objects that a page is willing to hold; more are not looked at (arbitrary: five times what we
#: promise to be fast with).
_LIST_LIMIT = 50_000
_PAGE = 2_000
_TOKEN_REVIEW = resource_class(
    "authentication.k8s.io/v1", "TokenReview", "tokenreviews", is_namespaced=False
)


@dataclass(frozen=True, slots=True)
class Resource:
    """A kind as the API server's paths name it."""

    api_version: str
    plural: str
    kind: str
    is_namespaced: bool = True

    @property
    def group(self) -> str:
        return self.api_version.rpartition("/")[0]

    def path(self, namespace: str = "", name: str = "") -> str:
        """Return the path of all objects, of a namespace's, or of one."""
        root = (
            f"/apis/{self.api_version}" if "/" in self.api_version else f"/api/{self.api_version}"
        )
        is_inside = self.is_namespaced and namespace
        inside = f"/namespaces/{quote(namespace, safe='')}" if is_inside else ""
        return f"{root}{inside}/{self.plural}" + (f"/{quote(name, safe='')}" if name else "")


IMAGES: Final = Resource("longhorn.io/v1beta2", "backingimages", "BackingImage")
VOLUMES: Final = Resource("shorthorn.io/v1alpha1", "volumes", "Volume")
SNAPSHOTS: Final = Resource("shorthorn.io/v1alpha1", "snapshots", "Snapshot")
POOLS: Final = Resource("shorthorn.io/v1alpha1", "pools", "Pool")
EVENTS: Final = Resource("v1", "events", "Event")
CLAIMS: Final = Resource("v1", "persistentvolumeclaims", "PersistentVolumeClaim")
PERSISTENT_VOLUMES: Final = Resource("v1", "persistentvolumes", "PersistentVolume", False)
_SNAPSHOT_GROUP = "snapshot.storage.k8s.io/v1"
VOLUME_SNAPSHOTS: Final = Resource(_SNAPSHOT_GROUP, "volumesnapshots", "VolumeSnapshot")
CONTENTS: Final = Resource(
    _SNAPSHOT_GROUP, "volumesnapshotcontents", "VolumeSnapshotContent", False
)
SNAPSHOT_CLASSES: Final = Resource(
    _SNAPSHOT_GROUP, "volumesnapshotclasses", "VolumeSnapshotClass", False
)
STORAGE_CLASSES: Final = Resource("storage.k8s.io/v1", "storageclasses", "StorageClass", False)


class Refused(Exception):
    """The API server says no: its code, its reason word and its sentence.

    `causes`: the sentence once more, by field, where it gave them: (field, message).
    """

    def __init__(
        self, code: int, reason: str, message: str, causes: Sequence[tuple[str, str]] = ()
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.causes = tuple(causes)


class UserApi:
    """One API server, for users with tokens. `reviewer`: our own client, which asks whose they
    are.
    """

    def __init__(
        self, base_url: str, transport: httpx2.AsyncBaseTransport, reviewer: AsyncClient
    ) -> None:
        self._reviewer: Any = reviewer
        self._http = httpx2.AsyncClient(
            base_url=base_url, transport=transport, trust_env=False, timeout=_TIMEOUT_S
        )

    async def aclose(self) -> None:
        await self._http.aclose()

    async def find_user(self, token: str) -> str | None:
        """Return the name of the token's user, None where it is nobody's. Raises: Unavailable."""
        body = _TOKEN_REVIEW({"spec": {"token": token}})
        with domain_errors("TokenReview", ""):
            answer = as_mapping(await self._reviewer.create(body))
        told = answer.get("status") or {}
        if not told.get("authenticated"):
            return None
        return str((told.get("user") or {}).get("username") or "unnamed")

    async def may(
        self, token: str, verb: str, resource: Resource, *, namespace: str = "", name: str = ""
    ) -> bool:
        """Ask, as the user, whether they may. Raises: Refused (401: no user), Unavailable."""
        asked = {"verb": verb, "group": resource.group, "resource": resource.plural}
        asked |= {"namespace": namespace, "name": name}
        attributes = {key: value for key, value in asked.items() if value}
        body = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        }
        path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        answer = await self.request(token, "POST", path, body=body)
        return bool((answer.get("status") or {}).get("allowed"))

    async def list(
        self,
        token: str,
        resource: Resource,
        *,
        namespace: str = "",
        fields: Mapping[str, str] | None = None,
    ) -> list[Mapping[str, Any]]:
        """Return the objects that the user may list. Raises: Refused, Unavailable."""
        query = {"limit": str(_PAGE)}
        if fields:
            query["fieldSelector"] = ",".join(f"{key}={value}" for key, value in fields.items())
        found: list[Mapping[str, Any]] = []
        while True:
            answer = await self.request(token, "GET", resource.path(namespace), query=query)
            found += answer.get("items") or []
            query["continue"] = str((answer.get("metadata") or {}).get("continue") or "")
            if not query["continue"] or len(found) >= _LIST_LIMIT:
                return found

    async def request(
        self,
        token: str,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> Mapping[str, Any]:
        """Send one request as the user. A PATCH is a merge patch. Raises: Refused, Unavailable."""
        headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
        content = None
        if body is not None:
            content = json.dumps(body).encode()
            kind = "merge-patch+json" if method == "PATCH" else "json"
            headers["Content-Type"] = f"application/{kind}"
        try:
            response = await self._http.request(
                method, path, params=dict(query or {}), headers=headers, content=content
            )
        except httpx2.HTTPError as exc:
            raise Unavailable("API server", f"{type(exc).__name__} {exc}".strip()) from exc
        answer = _json(response)
        if response.status_code >= 400:
            raise _refusal(response.status_code, answer)
        return answer


def connect_users(kubeconfig: Path | None, reviewer: AsyncClient) -> UserApi:
    """Return the way for users to the API server of `kubeconfig` (None: of the pod).

    Raises: InvalidArgument: there is no such file, or it cannot be used.
    """
    config = read_config(kubeconfig)
    nobody = SingleConfig(config.context_name, config.context, config.cluster, User(), config.fname)
    return UserApi(config.cluster.server, Network(nobody), reviewer)


def _json(response: httpx2.Response) -> Mapping[str, Any]:
    try:
        answer = response.json()
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _refusal(code: int, status: Mapping[str, Any]) -> Refused:
    details = status.get("details") or {}
    causes = [
        (str(cause.get("field") or ""), str(cause.get("message") or ""))
        for cause in details.get("causes") or ()
    ]
    message = str(status.get("message") or f"the API server answered {code}")
    return Refused(code, str(status.get("reason") or ""), message, causes)
