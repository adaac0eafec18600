"""The two Secrets by which nodes trust each other, as values.

Owns their names, keys and encoding, and how one is read, made, replaced and followed. Must never
log or put into an error what is inside. Called by `kube.peer_authority` and `kube.peer_identity`.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lightkube import AsyncClient
from lightkube.core.exceptions import ApiError

from shorthorn.domain import errors
from shorthorn.kube.client import domain_errors
from shorthorn.kube.generic import resource_class
from shorthorn.kube.informer import as_mapping
from shorthorn.kube.peer_certificates import Authority, Leaf

AUTHORITY_SECRET = "shorthorn-peer-ca"
LEAF_SECRET = "shorthorn-peer-tls"
SECRET: Any = resource_class("v1", "Secret", "secrets", is_namespaced=True)

_LABELS = {"app.kubernetes.io/part-of": "shorthorn"}
#: A watch is closed by the server after this; then the Secret is read anew.
_WATCH_S = 300


@dataclass(frozen=True, slots=True)
class Secret:
    """`data` by key, decoded; what is no text counts as empty."""

    name: str
    type: str
    data: Mapping[str, str] = field(repr=False)
    resource_version: str = ""


class Secrets:
    """Secrets of one namespace."""

    def __init__(self, client: AsyncClient, *, namespace: str) -> None:
        self._client: Any = client
        self._namespace = namespace

    async def find(self, name: str) -> Secret | None:
        """Raises: Unavailable."""
        try:
            with domain_errors("Secret", name):
                found = await self._client.get(SECRET, name, namespace=self._namespace)
        except errors.NotFound:
            return None
        return _decoded(as_mapping(found))

    async def write(self, secret: Secret) -> None:
        """Make it, or replace the one of its resource version.

        Raises: Conflict: somebody else was first. NotFound: it is gone. Unavailable.
        """
        body = SECRET(_encoded(secret, self._namespace))
        with domain_errors("Secret", secret.name):
            if secret.resource_version:
                await self._client.replace(body, secret.name, namespace=self._namespace)
                return
            try:
                await self._client.create(body, namespace=self._namespace)
            except ApiError as exc:
                if exc.status.code == 409:
                    raise errors.Conflict("Secret", secret.name) from exc
                raise

    async def follow(self, name: str) -> AsyncIterator[Secret | None]:
        """Yield the Secret as it is (None: missing) and after every change, for some minutes.

        Needs get, list and watch of this one name only. Raises: Unavailable and others: the watch
        is broken.
        """
        fields = {"metadata.name": name}
        with domain_errors("Secret", name):
            listing = self._client.list(SECRET, namespace=self._namespace, fields=fields)
            found = [_decoded(as_mapping(obj)) async for obj in listing]
            yield found[0] if found else None
            events = self._client.watch(
                SECRET,
                namespace=self._namespace,
                fields=fields,
                resource_version=listing.resourceVersion,
                server_timeout=_WATCH_S,
            )
            async with contextlib.aclosing(events):
                async for event, obj in events:
                    if event in ("ADDED", "MODIFIED"):
                        yield _decoded(as_mapping(obj))
                    elif event == "DELETED":
                        yield None


def authority_of(secret: Secret) -> Authority:
    """Return what is in `shorthorn-peer-ca`; missing fields are empty."""
    return Authority(secret.data.get("ca.crt", ""), secret.data.get("ca.key", ""))


def authority_data(authority: Authority) -> dict[str, str]:
    return {"ca.crt": authority.bundle, "ca.key": authority.key}


def leaf_of(secret: Secret) -> Leaf:
    """Return what is in `shorthorn-peer-tls`; missing fields are empty."""
    data = secret.data
    return Leaf(data.get("tls.crt", ""), data.get("tls.key", ""), data.get("ca.crt", ""))


def leaf_data(leaf: Leaf) -> dict[str, str]:
    return {"tls.crt": leaf.certificate, "tls.key": leaf.key, "ca.crt": leaf.bundle}


def _decoded(obj: Mapping[str, Any]) -> Secret:
    meta = obj["metadata"]
    return Secret(
        name=meta["name"],
        type=obj.get("type", "Opaque"),
        data={key: _text(value) for key, value in (obj.get("data") or {}).items()},
        resource_version=meta.get("resourceVersion", ""),
    )


def _text(encoded: str) -> str:
    try:
        return base64.b64decode(encoded, validate=True).decode("ascii")
    except (binascii.Error, UnicodeDecodeError):
        return ""


def _encoded(secret: Secret, namespace: str) -> dict[str, Any]:
    meta: dict[str, Any] = {"name": secret.name, "namespace": namespace, "labels": _LABELS}
    if secret.resource_version:
        meta["resourceVersion"] = secret.resource_version
    data = {key: base64.b64encode(text.encode()).decode() for key, text in secret.data.items()}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": meta,
        "type": secret.type,
        "data": data,
    }
