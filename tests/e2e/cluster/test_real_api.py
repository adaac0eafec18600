"""A real kube-apiserver keeps the contract that the embedded one is tested by.

What the suite says is what this server does: where the two differ, the embedded one is wrong.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator

import httpx2
import pytest
import pytest_asyncio
import yaml
from tests.contract.api_suite import ApiSuite, Endpoint
from tests.e2e.cluster.control_plane import ControlPlane

from shorthorn.kube.client import connect

pytestmark = pytest.mark.asyncio(loop_scope="module")

KINDS = ("BackingImage", "ImageCopy", "Pool", "Snapshot", "Volume", "VolumeSnapshot")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def endpoint(cluster: ControlPlane) -> AsyncIterator[Endpoint]:
    for kind in KINDS:
        cluster.api.list(kind)  # waits, where the server is still busy with its storage
    token = yaml.safe_load(cluster.kubeconfig.read_text())["users"][0]["user"]["token"]
    client = connect(cluster.kubeconfig, namespace="default")
    http = httpx2.AsyncClient(
        base_url=cluster.url,
        headers={"Authorization": f"Bearer {token}"},
        verify=ssl.create_default_context(cafile=str(cluster.authority.certificate)),
        trust_env=False,
        timeout=60,
    )
    try:
        yield Endpoint(client, http)
    finally:
        await client.close()
        await http.aclose()


class TestRealApi(ApiSuite):
    """The suite on kube-apiserver with our CRDs and Kubernetes' own controllers."""
