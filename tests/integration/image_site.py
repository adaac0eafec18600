"""The web edge on a real embedded API server, with a pool that the test holds.

Owns: a running pair of both. No controller runs, so objects stay as they are written.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from shorthorn.daemon.parts import Registries
from shorthorn.daemon.web import WebServer, loopback_hosts, open_everywhere, watched_of
from shorthorn.domain.image_bytes import ImageBytes
from shorthorn.kube import in_process
from shorthorn.kube.client import connect
from shorthorn.kube.user_api import UserApi
from shorthorn.standalone.apiserver.credentials import ensure_tls, ensure_token
from shorthorn.standalone.apiserver.kinds import load_default_kinds
from shorthorn.standalone.apiserver.kubeconfig import write_kubeconfig
from shorthorn.standalone.apiserver.server import ApiServer
from shorthorn.web.access import Access
from shorthorn.web.rates import Rates
from shorthorn.web.sessions import LoginLinks, Sessions, make_key
from shorthorn.web.site import Site

_NAMESPACE = "longhorn-system"


@contextlib.asynccontextmanager
async def running_edge(folder: Path, pool: ImageBytes) -> AsyncIterator[str]:
    """Serve both; yield the edge's URL. The kubeconfig is in `folder`."""
    async with contextlib.AsyncExitStack() as stack:
        tls, token = ensure_tls(folder / "tls.pem"), ensure_token(folder / "token")
        api = ApiServer(
            database=folder / "state.db",
            listen="127.0.0.1:0",
            token=token,
            kinds=load_default_kinds(),
            tls=tls,
        )
        await api.start()
        stack.push_async_callback(api.stop)
        kubeconfig = folder / "kubeconfig"
        write_kubeconfig(kubeconfig, url=api.url, token=token, authority=tls.authority)
        client = connect(kubeconfig, namespace=_NAMESPACE)
        stack.push_async_callback(client.aclose)
        registries = Registries(client, _NAMESPACE)
        watching = [asyncio.create_task(registry.run()) for registry in registries.all]
        stack.push_async_callback(_cancel, watching)
        await asyncio.gather(*(registry.wait_synced() for registry in registries.all))
        transport = in_process.transport(api.app, authority=tls.authority)
        users = UserApi(api.url, transport, client)
        stack.push_async_callback(users.aclose)
        key = make_key()
        site = Site(
            namespace=_NAMESPACE,
            driver_name="driver.longhorn.io",
            watched=watched_of(registries),
            rates=Rates(registries.copies),
            access=Access(users, namespace=_NAMESPACE),
            image_bytes=pool,
            sessions=Sessions(key),
            cookie="shorthorn",
            links=LoginLinks(key),
            links_token=token,
            metrics=_metrics,
        )
        listener = open_everywhere("127.0.0.1", 0)
        port = listener.getsockname()[1]
        server = WebServer(site, listener, hosts=loopback_hosts("127.0.0.1", port))
        await server.start()
        stack.push_async_callback(server.stop)
        yield f"http://127.0.0.1:{port}"


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def _metrics() -> bytes:
    return b""
