"""`shorthorn image` in processes of its own, beside an API server and an edge that the test holds.

Owns: the API server, the edge, and the commands that are run. What no controller does here, the
test does: `make_ready` writes an image's status.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import os
import signal
import ssl
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from tests.fakes import byte_edge
from tests.fakes.byte_edge import ByteEdge
from tests.integration.embedded_api import embedded_api

NAMESPACE = "longhorn-system"
IMAGES = f"/apis/longhorn.io/v1beta2/namespaces/{NAMESPACE}/backingimages"
_WHEN = "2026-01-02T03:04:05Z"


@dataclass
class Ran:
    """A command that has ended."""

    code: int
    out: str
    err: str
    raw: bytes = field(repr=False, default=b"")


@dataclass
class Shell:
    """One user at a shell, with a data directory of a host that this test plays."""

    folder: Path
    http: httpx2.AsyncClient
    edge: ByteEdge
    #: Checksums that images get by an upload, instead of their own.
    false_checksums: dict[str, str] = field(default_factory=dict)

    async def start(self, *arguments: str | Path, **options: Any) -> asyncio.subprocess.Process:
        """Start `shorthorn image …`; it is not waited for."""
        env = {k: v for k, v in os.environ.items() if not k.startswith(("SHORTHORN", "KUBE"))}
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "shorthorn", "image", *map(str, arguments)),
            *("--kubeconfig", str(self.folder / "kubeconfig")),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=options.pop("stdout", asyncio.subprocess.PIPE),
            stderr=options.pop("stderr", asyncio.subprocess.PIPE),
            cwd=self.folder,
            env={**env, **options.pop("env", {})},
            **options,
        )

    async def run(self, *arguments: str | Path, **options: Any) -> Ran:
        """Run `shorthorn image …` to its end."""
        return await ended(await self.start(*arguments, **options))

    async def does(self, *arguments: str | Path) -> Ran:
        """Run a command that must succeed."""
        ran = await self.run(*arguments)
        assert (ran.code, "Traceback" in ran.err) == (0, False), ran
        return ran

    async def is_refused(self, *arguments: str | Path, code: int = 1, **options: Any) -> str:
        """Run a command that must be refused; return what it says."""
        ran = await self.run(*arguments, **options)
        assert (ran.code, "Traceback" in ran.err) == (code, False), ran
        return ran.err

    async def image(self, name: str) -> dict[str, Any]:
        answer = await self.http.get(f"{IMAGES}/{name}")
        answer.raise_for_status()
        return dict(answer.json())

    async def make_image(self, name: str, content: bytes, **spec: Any) -> None:
        """Make an image that is ready, whose file is `content`."""
        body = {
            "apiVersion": "longhorn.io/v1beta2",
            "kind": "BackingImage",
            "metadata": {"name": name},
            "spec": {"sourceType": "upload", **spec},
        }
        answer = await self.http.post(IMAGES, json=body)
        assert answer.status_code == 201, answer.text
        self.edge.images[name, "artifact"] = content
        await self.make_ready(name, content)

    async def make_ready(self, name: str, content: bytes) -> None:
        """Write the status that an image has when it is ready."""
        own = hashlib.sha512(content).hexdigest()
        status = {
            "uuid": f"uuid-{name}",
            "size": len(content),
            "virtualSize": len(content),
            "format": "qcow2",
            "checksum": self.false_checksums.get(name, own),
            "conditions": [condition("Ready", "True"), condition("ChecksumVerified", "True")],
        }
        await self.set_status(name, status)

    async def set_status(self, name: str, status: dict[str, Any]) -> None:
        answer = await self.http.patch(
            f"{IMAGES}/{name}/status",
            json={"status": status},
            headers={"Content-Type": "application/merge-patch+json"},
        )
        assert answer.status_code == 200, answer.text

    async def find_length(self, name: str) -> int | None:
        """What the edge does: an upload is awaited where an object says so."""
        answer = await self.http.get(f"{IMAGES}/{name}")
        if answer.status_code != 200:
            return None
        annotations = answer.json()["metadata"].get("annotations") or {}
        length = annotations.get("shorthorn.io/upload-length")
        return int(length) if length else None


def condition(kind: str, status: str, reason: str = "Because", message: str = "") -> dict[str, str]:
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": _WHEN,
    }


async def ended(process: asyncio.subprocess.Process) -> Ran:
    """Wait for a command's end."""
    out, err = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode is not None
    return Ran(process.returncode, out.decode(errors="replace"), err.decode(), out)


async def killed(process: asyncio.subprocess.Process) -> None:
    """End a command as `kill -9` does."""
    process.send_signal(signal.SIGKILL)
    await process.communicate()


@contextlib.asynccontextmanager
async def shell(folder: Path) -> AsyncIterator[Shell]:
    """A user, an API server and an edge."""
    async with (
        embedded_api(folder, homes={"longhorn.io": NAMESPACE}) as api,
        byte_edge.serve(api.token) as edge,
        shell_of_site(folder, edge.url) as made,
    ):
        made.edge = edge
        edge.find_length, edge.completed = made.find_length, made.make_ready
        yield made


@contextlib.asynccontextmanager
async def shell_of_site(folder: Path, url: str) -> AsyncIterator[Shell]:
    """A user of an API server, whose kubeconfig is in `folder`, and of a web edge at `url`."""
    config = json.loads((folder / "kubeconfig").read_text())
    cluster = config["clusters"][0]["cluster"]
    authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
    token = config["users"][0]["user"]["token"]
    http = httpx2.AsyncClient(
        base_url=cluster["server"],
        headers={"Authorization": f"Bearer {token}"},
        verify=ssl.create_default_context(cadata=authority),
        trust_env=False,
        timeout=60,
    )
    (folder / "web.url").write_text(f"{url}\n")
    async with http:
        yield Shell(folder, http, ByteEdge(token))
