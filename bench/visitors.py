"""Clients of the running service: of its web page, signed in, and of its API server.

Owns: who asks and with which credentials, and taking the time of one answer. Bodies are read whole
and not looked into while time runs.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import httpx2

from bench.workspace import SHORTHORN, BenchFailed, run
from shorthorn.kube.client import Network, read_config

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from bench.workspace import Service

PATIENCE_S = 60.0


@contextlib.asynccontextmanager
async def signed_in(service: Service) -> AsyncIterator[httpx2.AsyncClient]:
    """Yield a client of the web page that used a login link, and has no connection open."""
    link = run(SHORTHORN, "login", "--data-dir", service.data_dir).strip()
    base = link.partition("/login")[0]
    async with httpx2.AsyncClient(trust_env=False) as first:
        await get(first, link)
        cookies = first.cookies
    timeout = httpx2.Timeout(PATIENCE_S)
    async with httpx2.AsyncClient(
        base_url=base, cookies=cookies, trust_env=False, timeout=timeout
    ) as http:
        yield http


@contextlib.asynccontextmanager
async def api_client(service: Service) -> AsyncIterator[httpx2.AsyncClient]:
    """Yield a client of the API server, with the credentials of the kubeconfig."""
    config = read_config(service.kubeconfig)
    assert config.user is not None, "checked when it was read"
    async with httpx2.AsyncClient(
        base_url=config.cluster.server,
        headers={"Authorization": f"Bearer {config.user.token}"},
        transport=Network(config),
        timeout=httpx2.Timeout(PATIENCE_S),
    ) as api:
        yield api


async def get(http: httpx2.AsyncClient, path: str) -> tuple[float, str]:
    """Return seconds until the last byte was there, and the text. Raises BenchFailed: not 200."""
    begun = time.perf_counter()
    answer = await http.get(path)
    took_s = time.perf_counter() - begun
    if answer.status_code != 200:
        raise BenchFailed(f"{path} was answered with {answer.status_code}: {answer.text[:200]}")
    return took_s, answer.text
