"""What tests of the web page, and its screenshots, find in a service: images, volumes, claims.

Made through the API server, as users make them, with bytes from a real HTTP server.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import subprocess
from pathlib import Path
from typing import Any

from tests.fakes.image_server import Behaviour, Served, serve
from tests.integration.daemon_process import ServiceProcess
from tests.integration.service_api import SYSTEM, Object

MIB = 1 << 20
#: For each 64 KiB: 8 MiB take two and a half seconds, in which progress is told five times.
_SLOW_S = 0.02
_SEED = 20_261_124


def url_of(service: ServiceProcess) -> str:
    """Return where the service's pages begin."""
    return (service.data_dir / "web.url").read_text().strip()


def disk(size_bytes: int = 4 * MIB, *, seed: int = _SEED) -> bytes:
    """Return a raw image: a quarter of noise, the rest zeros."""
    noise = random.Random(seed).randbytes(size_bytes // 4)
    return noise + bytes(size_bytes - len(noise))


def qcow2(folder: Path, content: bytes) -> bytes:
    """Return a raw image as qcow2."""
    raw, made = folder / "scenery.raw", folder / "scenery.qcow2"
    raw.write_bytes(content)
    command = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(made)]
    subprocess.run(command, check=True)
    return made.read_bytes()


def manifest(name: str, url: str, **spec: Any) -> Object:
    """Return a BackingImage that is downloaded."""
    return {
        "apiVersion": "longhorn.io/v1beta2",
        "kind": "BackingImage",
        "metadata": {"name": name, "namespace": SYSTEM},
        "spec": {"sourceType": "download", "sourceParameters": {"url": url}, **spec},
    }


def has_condition(obj: Object | None, kind: str, status: str = "True") -> bool:
    """Whether an object says so of itself."""
    conditions = ((obj or {}).get("status") or {}).get("conditions") or []
    return any((c["type"], c["status"]) == (kind, status) for c in conditions)


def _wait(served: Served) -> None:
    served.resume.wait(_SLOW_S)


def _files(image: Object | None) -> Object:
    return dict(((image or {}).get("status") or {}).get("diskFileStatusMap") or {})


class Images:
    """Makes images in a service, and takes all away that were not there before."""

    def __init__(self, service: ServiceProcess) -> None:
        self.api = service.api
        self._before = {i["metadata"]["name"] for i in self.api.list("BackingImage")}
        self._servers = contextlib.ExitStack()

    def serve(self, content: bytes, *behaviours: Behaviour, name: str = "disk.img") -> Served:
        """Serve bytes until the end of the test."""
        return self._servers.enter_context(serve(content, *behaviours, name=name))

    def serve_slowly(self, content: bytes, *, name: str, pause_after: int) -> Served:
        """Serve bytes slowly enough for progress to be seen, and stop until `resume` is set."""
        served = self.serve(content, Behaviour(pause_after=pause_after), Behaviour(), name=name)
        served.on_sent = lambda sent: _wait(served)
        return served

    def begin(self, name: str, url: str, **spec: Any) -> None:
        """Make an image, and do not wait for its bytes."""
        self.api.create(manifest(name, url, **spec))

    def begin_upload(self, name: str, length_bytes: int, **spec: Any) -> None:
        """Make an image that waits for bytes, and wait until a pool does."""
        obj = manifest(name, "", **spec)
        obj["metadata"]["annotations"] = {"shorthorn.io/upload-length": str(length_bytes)}
        obj["spec"] |= {"sourceType": "upload", "sourceParameters": {}}
        self.api.create(obj)
        self.api.wait("BackingImage", SYSTEM, name, lambda i: bool(_files(i)))

    def ready(self, name: str) -> Object:
        """Return an image as soon as it is ready."""
        found = self.api.wait("BackingImage", SYSTEM, name, lambda i: has_condition(i, "Ready"))
        assert found is not None
        return found

    def make(self, name: str, content: bytes | None = None, **spec: Any) -> Object:
        """Make an image and wait until it is ready."""
        content = disk() if content is None else content
        spec.setdefault("checksum", hashlib.sha512(content).hexdigest())
        self.begin(name, self.serve(content, name=f"{name}.img").url, **spec)
        return self.ready(name)

    def remove(self, name: str) -> None:
        """Delete an image and wait until it is gone."""
        self.api.delete("BackingImage", SYSTEM, name)
        self.api.wait_gone("BackingImage", SYSTEM, name)

    def remove_all(self) -> None:
        self._servers.close()
        new = {i["metadata"]["name"] for i in self.api.list("BackingImage")} - self._before
        for name in new:
            self.api.delete("BackingImage", SYSTEM, name)
        for name in new:
            self.api.wait_gone("BackingImage", SYSTEM, name)
