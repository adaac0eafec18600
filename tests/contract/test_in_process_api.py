"""The short way to the embedded API server is the same API: no socket, every other rule."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
import pytest_asyncio
from tests.contract.api_suite import ApiSuite, Endpoint
from tests.integration.embedded_api import embedded_api

from shorthorn.kube import in_process
from shorthorn.kube.client import connect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from shorthorn.kube.in_process import Message, Receive, Send

pytestmark = pytest.mark.asyncio(loop_scope="module")

URL = "https://127.0.0.1:1/api/v1/namespaces/default/configmaps"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def endpoint(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Endpoint]:
    async with embedded_api(tmp_path_factory.mktemp("api"), bookmark_interval_s=0.2) as server:
        client = connect(server.kubeconfig, namespace="default", transport=server.transport())
        http = httpx2.AsyncClient(
            base_url=server.url,
            headers={"Authorization": f"Bearer {server.token}"},
            transport=server.transport(),
        )
        try:
            yield Endpoint(client, http)
        finally:
            await client.close()
            await http.aclose()


class TestInProcessApi(ApiSuite):
    """The suite of every Kubernetes API server."""


class Unreachable(httpx2.AsyncBaseTransport):
    """A network that nobody may use."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectError("no network", request=request)


class SlowApp:
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()
        self.answered = asyncio.Event()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        await self.may_answer.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"late"})
        self.answered.set()


async def ask(app: Any, **options: Any) -> httpx2.Response:
    transport = in_process.InProcessTransport(app, Unreachable())
    async with httpx2.AsyncClient(transport=transport) as client:
        return await client.get(URL, **options)


async def test_a_server_that_does_not_answer_is_a_timeout():
    with pytest.raises(httpx2.ReadTimeout):
        await ask(SlowApp(), timeout=0.01)


async def test_a_caller_who_gives_up_does_not_stop_the_server_in_the_middle():
    app = SlowApp()
    asking = asyncio.create_task(ask(app))
    await asyncio.sleep(0)
    asking.cancel()
    await asyncio.wait([asking])
    assert asking.cancelled()
    app.may_answer.set()
    await asyncio.wait_for(app.answered.wait(), 60)


async def test_only_watches_go_through_the_network():
    app = SlowApp()
    app.may_answer.set()
    assert (await ask(app, params={"labelSelector": "watch=true"})).text == "late"
    with pytest.raises(httpx2.ConnectError):
        await ask(app, params={"watch": "true"})
