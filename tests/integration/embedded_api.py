"""An embedded API server in the test's own process, as `shorthorn up` puts one together."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shorthorn.kube import in_process
from shorthorn.standalone.apiserver.credentials import ensure_tls, ensure_token
from shorthorn.standalone.apiserver.kinds import load_default_kinds
from shorthorn.standalone.apiserver.kubeconfig import write_kubeconfig
from shorthorn.standalone.apiserver.server import ApiServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


#: Read once: every test has a server of its own.
_KINDS = load_default_kinds()


@dataclass(frozen=True)
class EmbeddedApi:
    """A server that runs, with all default kinds. `authority`: PEM of who signed its certificate;
    `kubeconfig`: lets in whoever reads it.
    """

    server: ApiServer
    kubeconfig: Path
    token: str
    authority: str

    @property
    def url(self) -> str:
        return self.server.url

    def transport(self) -> in_process.InProcessTransport:
        """The way to it without a socket."""
        return in_process.transport(self.server.app, authority=self.authority)


@contextlib.asynccontextmanager
async def embedded_api(folder: Path, **options: Any) -> AsyncIterator[EmbeddedApi]:
    """Run a server that keeps its files in `folder`. `options`: more of ApiServer's."""
    tls, token = ensure_tls(folder / "tls.pem"), ensure_token(folder / "token")
    server = ApiServer(
        database=folder / "state.db",
        listen="127.0.0.1:0",
        token=token,
        kinds=_KINDS,
        tls=tls,
        **options,
    )
    await server.start()
    try:
        kubeconfig = folder / "kubeconfig"
        write_kubeconfig(kubeconfig, url=server.url, token=token, authority=tls.authority)
        yield EmbeddedApi(server, kubeconfig, token, tls.authority)
    finally:
        await server.stop()
