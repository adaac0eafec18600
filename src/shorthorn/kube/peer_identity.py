"""A node's side of trust between nodes: its certificate, always the current one.

Owns the watch of Secret `shorthorn-peer-tls` and the TLS contexts made of it. Must never let
anybody in, or be let in, without a certificate of our authority; never write a key to a disk, nor
log it. Run by the node's daemon; `images.peer_server` and `images.peer_client` ask for a context at
every connection, so a new one is used from the next on, and those that run go on with theirs.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx2
from lightkube.core.exceptions import ApiError

from shorthorn.domain.errors import DomainError, Unavailable
from shorthorn.kube.peer_certificates import PEER_SERVER_NAME
from shorthorn.kube.peer_secrets import LEAF_SECRET, Secret, Secrets, leaf_of

if TYPE_CHECKING:
    from lightkube import AsyncClient

    from shorthorn.kube.peer_certificates import Leaf

_logger = logging.getLogger(__name__)

_RETRY_S = 0.5
_RETRY_S_MAX = 30.0


@dataclass(frozen=True, slots=True)
class Contexts:
    """One certificate as both sides of a connection use it."""

    server: ssl.SSLContext
    client: ssl.SSLContext


class PeerIdentity:
    """The contexts of both sides. `run` must be running."""

    def __init__(self, client: AsyncClient, *, namespace: str) -> None:
        self._secrets = Secrets(client, namespace=namespace)
        self._contexts: Contexts | None = None

    @property
    def server_name(self) -> str:
        """The name in every peer's certificate."""
        return PEER_SERVER_NAME

    def server_context(self) -> ssl.SSLContext:
        """Return what the next connection from a peer is to use. Raises Unavailable."""
        return self._current().server

    def client_context(self) -> ssl.SSLContext:
        """Return what the next connection to a peer is to use. Raises Unavailable."""
        return self._current().client

    async def run(self) -> None:
        """Follow the Secret until cancelled. What was read last stays in use while the API server
        is away, or the Secret gone.
        """
        delay_s = _RETRY_S
        while True:
            try:
                async for secret in self._secrets.follow(LEAF_SECRET):
                    delay_s = _RETRY_S
                    self._take(secret)
            except (ApiError, DomainError, httpx2.HTTPError, ValueError) as exc:
                # ValueError: a line of the watch that was cut off.
                _logger.warning("watch of Secret %s broken: %s", LEAF_SECRET, exc)
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, _RETRY_S_MAX)

    def _take(self, secret: Secret | None) -> None:
        if secret is None:
            _logger.info("Secret %s does not exist (yet)", LEAF_SECRET)
            return
        try:
            contexts = make_contexts(leaf_of(secret))
        except (OSError, ValueError) as exc:  # ssl.SSLError is an OSError; it quotes nothing
            _logger.error("Secret %s is of no use: %s", LEAF_SECRET, exc)  # noqa: TRY400
            return
        self._contexts = contexts

    def _current(self) -> Contexts:
        if self._contexts is None:
            raise Unavailable("peers", f"Secret {LEAF_SECRET} does not exist yet")
        return self._contexts


def make_contexts(leaf: Leaf) -> Contexts:
    """Return contexts of a certificate. Raises: ssl.SSLError, ValueError: it is of no use."""
    contexts = Contexts(
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    )
    for context in (contexts.server, contexts.client):
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        context.load_verify_locations(cadata=leaf.bundle)
        _load_key_pair(context, leaf.certificate + leaf.key)
    # A session that is resumed skips the look at the certificate, which may be over by then.
    contexts.server.num_tickets = 0
    return contexts


def _load_key_pair(context: ssl.SSLContext, pem: str) -> None:
    """Load by way of a file in memory: ssl reads files only, and a key belongs on no disk."""
    descriptor = os.memfd_create("peer-tls", os.MFD_CLOEXEC)
    with open(descriptor, "wb", buffering=0) as file:
        file.write(pem.encode())
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
