"""Who is let in, who is believed, and certificates that change under running transfers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.fakes.tcp_proxy import proxy
from tests.integration import peers
from tests.integration.peers import KEY, MIB, Tls, fetch, keep, new_leaf, node, sparse_file

from shorthorn.domain.errors import Unavailable
from shorthorn.domain.models import Peer
from shorthorn.images import peer_server
from shorthorn.kube.peer_certificates import PEER_SERVER_NAME, Leaf, issue_leaf, make_authority
from shorthorn.kube.peer_identity import make_contexts

pytestmark = pytest.mark.root
NOW = datetime.now(UTC)


async def _refused(tls: Tls, peer: Peer, staging: Path) -> str:
    with pytest.raises(Unavailable) as raised:
        await fetch(tls, [peer], staging)
    return str(raised.value)


async def _ask(address: str, context: ssl.SSLContext, name: str = PEER_SERVER_NAME) -> bytes:
    """Say a request over TLS; return the first bytes of the answer."""
    host, port = address.split(":")
    reader, writer = await asyncio.open_connection(
        host, int(port), ssl=context, server_hostname=name
    )
    try:
        writer.write(b"GET /v1/images/golden/1f0c HTTP/1.1\r\nHost: x\r\n\r\n")
        return await asyncio.wait_for(reader.read(100), 20)
    except (ConnectionError, ssl.SSLError):
        return b""  # TLS 1.3: a client hears only afterwards that it was not let in
    finally:
        writer.transport.abort()


async def test_without_a_certificate_of_the_authority_nobody_is_let_in(
    xfs_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, peer_server.__name__)
    tls, foreign = Tls(), new_leaf()
    async with node(xfs_dir / "a", tls) as a:
        bare = ssl.create_default_context(cadata=tls.leaf.bundle)
        assert await _ask(a.peer.address, bare) == b""
        assert "peer did not return a certificate" in caplog.text
        stranger = make_contexts(Leaf(foreign.certificate, foreign.key, tls.leaf.bundle))
        assert await _ask(a.peer.address, stranger.client) == b""
        assert "unable to get local issuer certificate" in caplog.text
        assert b"404" in await _ask(a.peer.address, tls.contexts.client)


async def test_a_certificate_that_is_over_is_refused_by_either_side(
    xfs_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, peer_server.__name__)
    authority = make_authority(NOW - timedelta(days=40))
    good = Tls(issue_leaf(authority, NOW))
    late = Tls(issue_leaf(authority, NOW - timedelta(days=31)))
    async with node(xfs_dir / "a", good) as a, node(xfs_dir / "b", late) as b:
        assert await _ask(a.peer.address, late.contexts.client) == b""
        assert "certificate has expired" in caplog.text
        await _refused(late, a.peer, xfs_dir / "staging")
        assert "certificate has expired" in await _refused(good, b.peer, xfs_dir / "staging")


async def test_a_server_of_another_authority_or_name_is_not_believed(xfs_dir: Path) -> None:
    ours, theirs = Tls(), Tls()
    async with node(xfs_dir / "a", theirs) as a:
        assert "certificate verify failed" in await _refused(ours, a.peer, xfs_dir / "staging")
        with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
            await _ask(a.peer.address, theirs.contexts.client, "api.example.org")


async def test_only_tls_1_3_is_spoken(xfs_dir: Path) -> None:
    tls = Tls()
    older = make_contexts(tls.leaf).client
    older.minimum_version = ssl.TLSVersion.TLSv1_2
    older.maximum_version = ssl.TLSVersion.TLSv1_2
    async with node(xfs_dir / "a", tls) as a:
        with pytest.raises(OSError):  # how it says no is between it and OpenSSL
            await _ask(a.peer.address, older)


async def test_plain_http_and_silence_are_closed(
    xfs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_server, "_HANDSHAKE_TIMEOUT_S", 0.3)
    async with node(xfs_dir / "a", Tls()) as a:
        host, port = a.peer.address.split(":")
        for said in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b""):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(said)
            with contextlib.suppress(ConnectionResetError):
                answer = await asyncio.wait_for(reader.read(), 20)
                assert b"HTTP" not in answer
            writer.transport.abort()


async def test_many_silent_connections_do_not_keep_peers_out(
    xfs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Short for those who wait for it, and long enough for an honest peer on a loaded machine.
    monkeypatch.setattr(peer_server, "_HANDSHAKE_TIMEOUT_S", 1.0)
    source = sparse_file(xfs_dir / "source", MIB, [(0, MIB)])
    tls = Tls()
    async with node(xfs_dir / "a", tls) as a:
        await keep(a.engine, source, source)
        host, port = a.peer.address.split(":")
        silent = [await asyncio.open_connection(host, int(port)) for _ in range(100)]
        await fetch(tls, [a.peer], xfs_dir / "staging")
        for _, writer in silent:
            writer.transport.abort()


async def test_no_certificate_yet_is_unavailable_on_both_sides(xfs_dir: Path) -> None:
    class NotYet(Tls):
        def server_context(self) -> ssl.SSLContext:
            raise Unavailable("peers", "Secret shorthorn-peer-tls does not exist yet")

        client_context = server_context

    source = sparse_file(xfs_dir / "source", MIB, [(0, MIB)])
    tls, not_yet = Tls(), NotYet()
    async with node(xfs_dir / "a", tls) as a, node(xfs_dir / "b", not_yet) as b:
        await keep(a.engine, source, source)
        assert "does not exist yet" in await _refused(not_yet, a.peer, xfs_dir / "staging")
        await _refused(tls, b.peer, xfs_dir / "staging")
        await fetch(tls, [b.peer, a.peer], xfs_dir / "staging")


async def test_certificates_change_under_a_running_transfer_which_goes_on(xfs_dir: Path) -> None:
    """Leaf and authority are new; who comes with the old authority's alone is let in no more."""
    source = sparse_file(xfs_dir / "source", 40 * MIB, [(0, 40 * MIB)])
    old = new_leaf()
    new = new_leaf()
    sender, receiver = Tls(old), Tls(old)
    async with node(xfs_dir / "a", sender) as a:
        sent = await keep(a.engine, source, source)
        async with proxy(a.peer.address) as line:
            line.hold_at = 8 * MIB
            via = replace(a.peer, address=line.address)
            fetching = asyncio.create_task(fetch(receiver, [via], xfs_dir / "staging"))
            await line.held.wait()
            sender.use(new)
            assert "certificate verify failed" in await _refused(
                receiver, a.peer, xfs_dir / "behind"
            )
            receiver.use(new)
            await fetch(receiver, [a.peer], xfs_dir / "beside")
            line.release()
            record = await fetching
            assert line.connections == 1
    assert peers.sha512(Path(record.artifact_path)) == sent.checksum


async def test_a_transfer_that_breaks_after_a_rotation_goes_on_with_the_new_certificate(
    xfs_dir: Path,
) -> None:
    source = sparse_file(xfs_dir / "source", 40 * MIB, [(0, 40 * MIB)])
    old, new = new_leaf(), new_leaf()
    tls = Tls(old)
    async with node(xfs_dir / "a", tls) as a:
        sent = await keep(a.engine, source, source)
        async with proxy(a.peer.address) as line:
            line.hold_at = 8 * MIB
            via = replace(a.peer, address=line.address)
            fetching = asyncio.create_task(fetch(tls, [via], xfs_dir / "staging"))
            await line.held.wait()
            tls.use(new)
            line.break_off()
            line.release()
            record = await fetching
    assert peers.sha512(Path(record.artifact_path)) == sent.checksum


async def test_no_key_is_in_any_log_or_error(
    xfs_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    ours, theirs = Tls(), Tls()
    async with node(xfs_dir / "a", theirs) as a:
        said = await _refused(ours, a.peer, xfs_dir / "staging")
        await _refused(ours, replace(a.peer, address="nowhere:x"), xfs_dir / "staging")
    damaged = Leaf(ours.leaf.certificate, ours.leaf.key[:100], ours.leaf.bundle)
    for leaf in (damaged, Leaf("", "", ""), Leaf(ours.leaf.certificate, theirs.leaf.key, "")):
        with pytest.raises((ssl.SSLError, ValueError)) as raised:
            make_contexts(leaf)
        said += str(raised.value)
    keys = [line for tls in (ours, theirs) for line in tls.leaf.key.splitlines() if line[:1] != "-"]
    assert not any(line in said + caplog.text for line in keys)
    assert KEY.name in said
