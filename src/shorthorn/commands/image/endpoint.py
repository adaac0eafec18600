"""Where the bytes of images pass through, and with whose token.

Owns: finding the web edge of this host, the kubeconfig's bearer token, and what users are told
where either is missing. Must never: send the token in clear over a network. Called by `transfers`.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from shorthorn.commands.image.options import Place
from shorthorn.domain.errors import InvalidArgument

TOKEN_VARIABLE: Final = "SHORTHORN_TOKEN"

_NO_SERVER = """\
where is the web edge, which bytes pass through? There is no {file} (is this a cluster?).
In a cluster, forward its port in another shell, and name it:

  kubectl port-forward -n {namespace} deployment/shorthorn-controller 8080:{port}
  shorthorn image … --server http://127.0.0.1:8080

On one host, start the service with `shorthorn up`; give --data-dir if it is not the usual one."""
_WEB_PORT: Final = 8080

_NO_TOKEN = (
    "the user of {kubeconfig} has no bearer token ({has}), and the web edge takes nothing else; set"
    f" {TOKEN_VARIABLE}, as in {TOKEN_VARIABLE}="
    '"$(kubectl create token -n NAMESPACE SERVICEACCOUNT)"'
)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One web edge, and the user's token for it."""

    url: str
    token: str = field(repr=False)


def locator(place: Place, server: str) -> Callable[[], Endpoint]:
    """Return what finds the endpoint: asked again after a lost connection, it sees a restarted
    service's new port.

    Raises, when asked: InvalidArgument: there is none, or no token for it.
    """
    token = ""

    def locate() -> Endpoint:
        nonlocal token
        url = check_url(server or _url_of_host(place))
        token = token or read_token(place)
        return Endpoint(url, token)

    return locate


def check_url(url: str) -> str:
    """Return the URL without its last slash. Raises: InvalidArgument: it cannot be used, or would
    show the token to everybody on the way.
    """
    try:
        parts = urlsplit(url.strip())
        host = parts.hostname or ""
        parts.port  # noqa: B018  raises where it is no number
    except ValueError as exc:
        raise InvalidArgument("server", f"{url!r}: {exc}") from None
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise InvalidArgument("server", f"{url!r} is no URL such as http://127.0.0.1:8080")
    if parts.username or parts.password:
        raise InvalidArgument("server", "name no user in it; the token is the kubeconfig's")
    if parts.scheme == "http" and not _is_loopback(host):
        raise InvalidArgument(
            "server",
            f"{url!r} would send your token in clear; use https, or `kubectl port-forward` and"
            " http://127.0.0.1:PORT",
        )
    return url.strip().rstrip("/")


def read_token(place: Place) -> str:
    """Return the bearer token of the kubeconfig's user, or that of SHORTHORN_TOKEN.

    Raises: InvalidArgument: it has none, as users with a client certificate.
    """
    import httpx2
    from lightkube import KubeConfig
    from lightkube.config.client_adapter import user_auth
    from lightkube.core.exceptions import ConfigError

    given = os.environ.get(TOKEN_VARIABLE, "").strip()
    if given:
        return given
    try:
        config = KubeConfig.from_file(place.kubeconfig).get()
        user = config.user if config else None
        request = httpx2.Request("GET", "https://localhost/")
        auth = user_auth(user)
        if auth is not None:
            request = next(auth.sync_auth_flow(request))  # runs the exec plugin where there is one
    except (ConfigError, OSError, KeyError, ValueError) as exc:
        raise InvalidArgument("kubeconfig", f"{place.kubeconfig} cannot be used: {exc}") from exc
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        has = "it has a client certificate" if _has_certificate(user) else "it has no credentials"
        raise InvalidArgument("token", _NO_TOKEN.format(kubeconfig=place.kubeconfig, has=has))
    return token


def _has_certificate(user: object) -> bool:
    return bool(getattr(user, "client_cert", None) or getattr(user, "client_cert_data", None))


def _url_of_host(place: Place) -> str:
    try:
        return place.web_url_file.read_text(encoding="utf-8").strip()
    except OSError:
        raise InvalidArgument(
            "server",
            _NO_SERVER.format(file=place.web_url_file, namespace=place.namespace, port=_WEB_PORT),
        ) from None


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
