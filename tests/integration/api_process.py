"""An embedded API server in a process of its own: `python -m tests.integration.api_process DIR
PORT`.

Serves DIR/state.db at 127.0.0.1:PORT until it is ended; DIR holds its token and certificate, too.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from shorthorn.standalone.apiserver.credentials import ensure_tls, ensure_token
from shorthorn.standalone.apiserver.kinds import load_default_kinds
from shorthorn.standalone.apiserver.server import ApiServer


async def serve(folder: Path, port: int) -> None:
    """Serve for ever; say when it is up."""
    server = ApiServer(
        database=folder / "state.db",
        listen=f"127.0.0.1:{port}",
        token=ensure_token(folder / "token"),
        tls=ensure_tls(folder / "tls.pem"),
        kinds=load_default_kinds(),
    )
    await server.start()
    print("up", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), int(sys.argv[2])))
