"""The two Secrets over a real API server: made once, renewed, followed, and no key shown."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from cryptography import x509
from tests.integration.embedded_api import embedded_api
from tests.integration.peers import wait_trusted

from shorthorn.domain.errors import Conflict, Unavailable
from shorthorn.kube.client import connect
from shorthorn.kube.peer_authority import PeerAuthority
from shorthorn.kube.peer_identity import PeerIdentity
from shorthorn.kube.peer_secrets import (
    AUTHORITY_SECRET,
    LEAF_SECRET,
    SECRET,
    Secret,
    Secrets,
    authority_of,
    leaf_of,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine
    from pathlib import Path

    from lightkube import AsyncClient

NAMESPACE = "longhorn-system"
START = datetime.now(UTC)


@pytest_asyncio.fixture
async def client(tmp_path: Path) -> AsyncIterator[AsyncClient]:
    """A client of an embedded API server."""
    async with embedded_api(tmp_path, homes={"longhorn.io": NAMESPACE}) as api:
        made = connect(api.kubeconfig, namespace=NAMESPACE)
        yield made
        await made.close()


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


@contextlib.asynccontextmanager
async def running(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def stored(client: AsyncClient, name: str) -> Secret:
    found = await Secrets(client, namespace=NAMESPACE).find(name)
    assert found is not None
    return found


async def changed_from(identity: PeerIdentity, context: ssl.SSLContext) -> None:
    while identity.server_context() is context:  # noqa: ASYNC110 - asked at each connection
        await asyncio.sleep(0.01)


async def test_both_secrets_are_made_once_and_stay(client: AsyncClient) -> None:
    authority = PeerAuthority(client, namespace=NAMESPACE)
    look_again_at = await authority.ensure()
    first = [await stored(client, name) for name in (AUTHORITY_SECRET, LEAF_SECRET)]
    assert set(first[0].data) == {"ca.crt", "ca.key"}
    assert first[1].type == "kubernetes.io/tls"
    assert set(first[1].data) == {"tls.crt", "tls.key", "ca.crt"}
    assert first[1].data["ca.crt"] == first[0].data["ca.crt"]
    assert await authority.ensure() == look_again_at
    again = [await stored(client, name) for name in (AUTHORITY_SECRET, LEAF_SECRET)]
    assert again == first


async def test_ten_controllers_at_once_end_with_one_authority(client: AsyncClient) -> None:
    await asyncio.gather(*(PeerAuthority(client, namespace=NAMESPACE).ensure() for _ in range(10)))
    authority = authority_of(await stored(client, AUTHORITY_SECRET))
    leaf = leaf_of(await stored(client, LEAF_SECRET))
    [issuer] = x509.load_pem_x509_certificates(authority.bundle.encode())
    assert leaf.bundle == authority.bundle
    x509.load_pem_x509_certificate(leaf.certificate.encode()).verify_directly_issued_by(issuer)


async def test_a_late_write_over_somebody_elses_is_refused(client: AsyncClient) -> None:
    await PeerAuthority(client, namespace=NAMESPACE).ensure()
    secrets = Secrets(client, namespace=NAMESPACE)
    old = await stored(client, LEAF_SECRET)
    await secrets.write(Secret(old.name, old.type, {**old.data, "x": "y"}, old.resource_version))
    with pytest.raises(Conflict):
        await secrets.write(old)
    with pytest.raises(Conflict):
        await secrets.write(Secret(old.name, old.type, old.data))


async def test_a_year_of_renewals_keeps_old_authorities_as_long_as_they_count(
    client: AsyncClient,
) -> None:
    clock = Clock()
    authority = PeerAuthority(client, namespace=NAMESPACE, now=clock)
    sizes, leaves = [], set()
    while clock.now < START + timedelta(days=400):
        clock.now = await authority.ensure()
        secret = await stored(client, LEAF_SECRET)
        leaves.add(secret.data["tls.crt"])
        sizes.append(secret.data["ca.crt"].count("BEGIN"))
    assert sizes[0] == sizes[-1] == 1
    assert max(sizes) == 2
    assert 18 <= len(leaves) <= 24


async def test_a_deleted_authority_is_made_anew_and_so_is_what_it_signed(
    client: AsyncClient,
) -> None:
    authority = PeerAuthority(client, namespace=NAMESPACE)
    await authority.ensure()
    before = await stored(client, LEAF_SECRET)
    await client.delete(SECRET, AUTHORITY_SECRET, namespace=NAMESPACE)
    await authority.ensure()
    after = await stored(client, LEAF_SECRET)
    assert after.data["ca.crt"] != before.data["ca.crt"]
    assert after.data["ca.crt"].count("BEGIN") == 1


async def test_a_node_waits_for_the_secret_and_uses_each_new_one(
    client: AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    clock = Clock()
    identity = PeerIdentity(client, namespace=NAMESPACE)
    authority = PeerAuthority(client, namespace=NAMESPACE, now=clock)
    for context in (identity.server_context, identity.client_context):
        with pytest.raises(Unavailable, match="Secret shorthorn-peer-tls does not exist yet"):
            context()
    async with running(identity.run()), asyncio.timeout(30):
        await authority.ensure()
        await wait_trusted(identity)
        first = identity.server_context()
        assert identity.server_context() is first
        clock.now += timedelta(days=21)
        await authority.ensure()
        await changed_from(identity, first)
        second = identity.server_context()
        assert second is not first
        broken = await stored(client, LEAF_SECRET)
        damaged = {**broken.data, "tls.key": "x"}
        await Secrets(client, namespace=NAMESPACE).write(
            Secret(broken.name, broken.type, damaged, broken.resource_version)
        )
        while "is of no use" not in caplog.text:  # noqa: ASYNC110 - a log cannot signal
            await asyncio.sleep(0.01)
        assert identity.server_context() is second
        await authority.ensure()
        await changed_from(identity, second)
    keys = [await stored(client, name) for name in (AUTHORITY_SECRET, LEAF_SECRET)]
    shown = caplog.text + repr(keys)
    for secret in keys:
        for text in secret.data.values():
            assert "PRIVATE" not in text or text.splitlines()[1] not in shown


async def test_the_controllers_loop_makes_them_when_the_api_server_is_there(
    client: AsyncClient,
) -> None:
    identity = PeerIdentity(client, namespace=NAMESPACE)
    authority = PeerAuthority(client, namespace=NAMESPACE)
    async with running(authority.run()), running(identity.run()), asyncio.timeout(30):
        await wait_trusted(identity)
