"""The one way to a Kubernetes API server.

Owns: how a lightkube client is made, and what the API server's refusals mean in domain errors. Must
never: know our kinds. Called by registries, informers and the standalone roles.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import httpx2
from lightkube import AsyncClient, KubeConfig
from lightkube.core.exceptions import ApiError

from shorthorn.domain import errors

_TIMEOUT_S = 10.0
"""One request to an API server; lists of 10,000 objects take below 1 s here."""


def connect(
    kubeconfig: Path, *, namespace: str, transport: httpx2.AsyncBaseTransport | None = None
) -> AsyncClient:
    """Return a client for the current context of `kubeconfig`; opens no connection yet.

    Args: transport: a way to the server other than the network (see `kube.in_process`).
    """
    config = KubeConfig.from_file(kubeconfig)
    return AsyncClient(
        config=config,
        namespace=namespace,
        timeout=httpx2.Timeout(_TIMEOUT_S),
        trust_env=False,
        transport=transport,
    )


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
    except httpx2.HTTPError as exc:
        raise errors.Unavailable("API server", f"{type(exc).__name__} {exc}".strip()) from exc


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
