"""The one way to a Kubernetes API server.

Owns: how a lightkube client is made, where its credentials come from, how a connection that died in
silence is noticed, and what the API server's refusals mean in domain errors. Must never: know our
kinds. Called by registries, informers, `daemon` and the standalone roles.

In a cluster the service account's token is a file that the kubelet replaces long before the token
ends. lightkube reads it at first use and again after each 401, so a token that was rotated costs
one refused request, and nothing has to be timed here.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
from lightkube import AsyncClient, KubeConfig
from lightkube.config.client_adapter import verify_cluster
from lightkube.config.kubeconfig import SingleConfig
from lightkube.core.exceptions import ApiError, ConfigError

from shorthorn.domain import errors

_TIMEOUT_S = 10.0
"""One request to an API server; lists of 10,000 objects take below 1 s here."""

_SILENT_S = 30
"""A connection whose other end does not acknowledge for so long is given up, as client-go does. A
watch waits for ever by itself: behind a power cut or a cut cable it would show old objects for as
long."""

_CONNECTIONS_MAX = 100


def connect(
    kubeconfig: Path | None, *, namespace: str, transport: httpx2.AsyncBaseTransport | None = None
) -> AsyncClient:
    """Return a client for the current context of `kubeconfig`; opens no connection yet.

    Args: kubeconfig: None: the service account of the pod that this process runs in. transport: a
        way to the server other than the network (see `kube.in_process`).
    Raises: InvalidArgument: there are no credentials at that place.
    """
    config = read_config(kubeconfig)
    return AsyncClient(
        config=config,
        namespace=namespace,
        timeout=httpx2.Timeout(_TIMEOUT_S),
        trust_env=False,
        transport=transport or Network(config),
    )


def read_config(kubeconfig: Path | None) -> SingleConfig:
    """Return the current context of `kubeconfig`, or of the pod. Raises: InvalidArgument."""
    try:
        return _read(kubeconfig)
    except (ConfigError, KeyError, OSError, ValueError) as exc:
        where = kubeconfig or "the service account of a pod (is this a pod?)"
        raise errors.InvalidArgument("kubeconfig", f"{where} cannot be used: {exc}") from exc


def _read(kubeconfig: Path | None) -> SingleConfig:
    read = KubeConfig.from_file(kubeconfig) if kubeconfig else KubeConfig.from_service_account()
    config = read.get()
    if config is None or config.user is None:
        raise ConfigError("it names no current context with a user")
    return config


class Network(httpx2.AsyncHTTPTransport):
    """The network, with dead connections noticed."""

    def __init__(self, config: SingleConfig) -> None:
        assert config.user is not None, "checked when it was read"
        super().__init__(
            verify=verify_cluster(config.cluster, config.user, config.abs_file, trust_env=False),
            limits=httpx2.Limits(
                max_connections=_CONNECTIONS_MAX, max_keepalive_connections=_CONNECTIONS_MAX
            ),
            socket_options=[
                (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
                (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _SILENT_S // 2),
                (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
                (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _SILENT_S * 1000),
            ],
        )

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """See httpx2. Proxies answer errors without a type, which lightkube takes for granted."""
        response = await super().handle_async_request(request)
        response.headers.setdefault("Content-Type", "application/octet-stream")
        return response


async def delete_exactly(
    client: Any, resource: Any, name: str, *, namespace: str, uid: str
) -> None:
    """Delete the object of that name if it is the one with that `uid`, which the server decides:
    between a look and a deletion there may be another one. lightkube sends no preconditions.

    Raises: ApiError: 409: it is another one.
    """
    generic = client._client  # there is no public way to send a body
    request = generic.prepare_request("delete", res=resource, name=name, namespace=namespace)
    request.data = {
        "apiVersion": "v1",
        "kind": "DeleteOptions",
        "preconditions": {"uid": uid},
    }
    answer = await generic.send(generic.build_adapter_request(request))
    generic.handle_response("delete", answer, request)


@contextlib.contextmanager
def domain_errors(kind: str, name: str) -> Iterator[None]:
    """Turn what an API server answers about `kind` `name` into domain errors.

    404 NotFound, 409 AlreadyExists or Conflict, 400 and 422 InvalidArgument; all else, and no
    answer at all, Unavailable: nothing is known of what the server did.
    """
    try:
        yield
    except ApiError as exc:
        raise _translated(exc, kind, name) from exc
    except (httpx2.HTTPError, ConfigError) as exc:
        raise errors.Unavailable("API server", _in_words(exc)) from exc


def _in_words(exc: Exception) -> str:
    """Return what a request that got no answer means to a user."""
    if isinstance(exc, httpx2.ConnectError):
        with contextlib.suppress(RuntimeError):  # it knows no request
            url = exc.request.url
            return f"no connection to {url.scheme}://{url.netloc.decode()}; is it running there?"
    return f"{type(exc).__name__} {exc}".strip()


def _translated(exc: ApiError, kind: str, name: str) -> errors.DomainError:
    status = exc.status
    message = status.message or ""
    match status.code:
        case 404:
            return errors.NotFound(kind, name)
        case 409 if status.reason == "AlreadyExists":
            return errors.AlreadyExists(kind, name, "an object of that name exists")
        case 409:
            return errors.Conflict(kind, name)
        case 400 | 422:
            return errors.InvalidArgument(f"{kind} {name}", message)
    return errors.Unavailable("API server", message or f"status {status.code}")
