"""The web page on a real embedded API server, without the rest of a service.

Owns: a running pair of both, and a browser's behaviour over HTTP: cookies, form tokens. No
controller runs, so objects stay as they are written.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from lightkube import AsyncClient
from tests.integration.embedded_api import embedded_api

from shorthorn.daemon.parts import Registries
from shorthorn.daemon.web import WebServer, loopback_hosts, watched_of
from shorthorn.domain.image_bytes import Direction, ImageBytes
from shorthorn.kube.client import connect
from shorthorn.kube.registry import KubeRegistry
from shorthorn.kube.user_api import UserApi
from shorthorn.standalone.apiserver.listening import TcpAddress, open_socket
from shorthorn.web.access import Access
from shorthorn.web.rates import STALE_S, Rates
from shorthorn.web.sessions import Clock, LoginLinks, Sessions, make_key
from shorthorn.web.site import Site

NAMESPACE = "longhorn-system"


@dataclass
class Running:
    """A site that answers at `url`."""

    site: Site
    url: str
    token: str
    client: AsyncClient
    registries: Registries
    links: LoginLinks
    counted: Counter[Direction]

    def browser(self) -> httpx2.AsyncClient:
        """Return a client without a session."""
        return httpx2.AsyncClient(base_url=self.url, trust_env=False, timeout=60)

    @contextlib.asynccontextmanager
    async def signed_in(self) -> AsyncIterator[Browser]:
        """A client that used a login link."""
        async with self.browser() as http:
            answer = await http.get(f"/login?once={self.links.make()}")
            assert answer.status_code == 200
            yield Browser(http)

    async def until(self, registry: KubeRegistry[Any], holds: Callable[[], object]) -> None:
        """Wait until the watch of a kind shows something."""
        async with asyncio.timeout(60), registry.subscribe() as names:
            while not holds():
                await anext(names)


@dataclass
class Browser:
    """A signed-in client that sends forms as a page of ours does."""

    http: httpx2.AsyncClient

    async def form_token(self) -> str:
        page = await self.http.get("/new-image")
        found = re.search(r'name="csrf_token" value="([^"]+)"', page.text)
        assert found is not None
        return found[1]

    async def post(self, path: str, **fields: str) -> httpx2.Response:
        return await self.http.post(path, data={"csrf_token": await self.form_token(), **fields})


@contextlib.asynccontextmanager
async def running_site(
    folder: Path,
    *,
    clock: Clock | None = None,
    image_bytes: ImageBytes | None = None,
    stale_s: float = STALE_S,
) -> AsyncIterator[Running]:
    """Serve a site over an empty API server. `clock`: of sessions; `stale_s`: of rates."""
    async with contextlib.AsyncExitStack() as stack:
        api = await stack.enter_async_context(embedded_api(folder))
        client = connect(api.kubeconfig, namespace=NAMESPACE, transport=api.transport())
        stack.push_async_callback(client.close)
        registries = Registries(client, NAMESPACE)
        for registry in registries.all:
            watching = asyncio.create_task(registry.run())
            stack.push_async_callback(_cancel, watching)
        await asyncio.gather(*(registry.wait_synced() for registry in registries.all))
        users = UserApi(api.url, api.transport(), client)
        stack.push_async_callback(users.aclose)
        rates = Rates(registries.copies, stale_s=stale_s)
        sampling = asyncio.create_task(rates.run())
        stack.push_async_callback(_cancel, sampling)
        key = make_key()
        timing = {"clock": clock} if clock is not None else {}
        links = LoginLinks(key, **timing)
        passed: Counter[Direction] = Counter()
        site = Site(
            namespace=NAMESPACE,
            driver_name="driver.longhorn.io",
            watched=watched_of(registries),
            rates=rates,
            access=Access(users, namespace=NAMESPACE),
            image_bytes=image_bytes,
            sessions=Sessions(key, **timing),
            cookie="shorthorn",
            links=links,
            links_token=api.token,
            metrics=_metrics,
            count_bytes=lambda direction, count: passed.update({direction: count}),
        )
        listener = open_socket(TcpAddress("127.0.0.1", 0))
        port = listener.getsockname()[1]
        server = WebServer(site, listener, hosts=loopback_hosts("127.0.0.1", port))
        await server.start()
        stack.push_async_callback(server.stop)
        yield Running(
            site, f"http://127.0.0.1:{port}", api.token, client, registries, links, passed
        )


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


async def _metrics() -> bytes:
    return b"up 1\n"
