"""Creates ConfigMaps in an embedded API server of its own until it is killed.

Run by `test_api_server.py` as a process: prints the name of each object after the server has said
that it is stored, so whatever was printed must be there afterwards.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import httpx2

from shorthorn.standalone.apiserver.kinds import load_default_kinds
from shorthorn.standalone.apiserver.server import ApiServer

TOKEN = "a-token-for-tests-only"


async def main(folder: Path) -> None:
    """Serve on a socket in `folder` and write to it from eight clients."""
    socket = folder / "api.sock"
    server = ApiServer(
        database=folder / "state.db",
        listen=f"unix:{socket}",
        token=TOKEN,
        kinds=load_default_kinds(),
    )
    await server.start()
    async with httpx2.AsyncClient(
        transport=httpx2.AsyncHTTPTransport(uds=str(socket)),
        base_url=server.url,
        headers={"Authorization": f"Bearer {TOKEN}"},
        timeout=60,
    ) as http:
        await asyncio.gather(*(write(http, client) for client in range(8)))


async def write(http: httpx2.AsyncClient, client: int) -> None:
    """Create objects without end."""
    number = 0
    while True:
        name = f"c{client}-{number}"
        body = {"metadata": {"name": name}, "data": {"pad": "x" * 2000}}
        answer = await http.post("/api/v1/namespaces/default/configmaps", json=body)
        answer.raise_for_status()
        sys.stdout.write(f"{name}\n")
        sys.stdout.flush()
        number += 1


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
