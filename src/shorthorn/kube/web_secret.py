"""The key of the web page's cookies, which all replicas of a cluster share.

Owns: the Secret `shorthorn-web`. Must never log what is in it. Called by `daemon.controller`.
"""

from __future__ import annotations

from collections.abc import Callable

from lightkube import AsyncClient

from shorthorn.domain.errors import Conflict
from shorthorn.kube.peer_secrets import Secret, Secrets

WEB_SECRET = "shorthorn-web"
_KEY = "session.key"


async def ensure_web_key(
    client: AsyncClient,
    *,
    namespace: str,
    make: Callable[[], str],
    is_usable: Callable[[str], bool],
) -> str:
    """Return the key, made by the first replica that needs it. Raises: Unavailable, Conflict.

    A Secret whose key cannot be used gets a new one: deleting the value is how to end all sessions.
    """
    secrets = Secrets(client, namespace=namespace)
    found = await secrets.find(WEB_SECRET)
    if found is not None and is_usable(found.data.get(_KEY, "")):
        return found.data[_KEY]
    key = make()
    version = found.resource_version if found is not None else ""
    try:
        await secrets.write(Secret(WEB_SECRET, "Opaque", {_KEY: key}, version))
    except Conflict:  # another replica was first
        other = await secrets.find(WEB_SECRET)
        if other is None or not is_usable(other.data.get(_KEY, "")):
            raise
        return other.data[_KEY]
    return key
