"""Image bytes through the web page's server, against nginx; and what memory that takes.

Owns one comparison: the same client (curl) fetches the same bytes from both, and sends them to
both, in turn. nginx neither hashes what it takes nor syncs it: `sync` is added to its time, a hash
is not. Must never touch another image.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import statistics
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from bench import disks
from bench.figures import Section
from bench.workspace import BenchFailed, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bench.workspace import Service

DOWNLOAD = "download of an artifact"
DOWNLOAD_NGINX = "the same from nginx"
UPLOAD = "upload, durable"
UPLOAD_NGINX = "the same by PUT to nginx, and sync"
_NGINX = """
daemon off; pid {root}/nginx.pid; error_log {root}/error.log; user root; worker_processes 2;
events {{ worker_connections 64; }}
http {{
  access_log off; sendfile on; client_max_body_size 0; client_body_temp_path {root}/body;
  server {{
    listen 127.0.0.1:{port};
    location /get/ {{ alias {root}/; }}
    location /put/ {{ alias {root}/put/; dav_methods PUT; }}
  }}
}}
"""
_PORT = 18099
_PATIENCE_S = 120.0
#: For buffers, whatever the size of the image.
_GROWTH_BYTES_MAX = 64 << 20


def compare(service: Service, *, data_bytes: int, rounds: int) -> Section:
    """Send and fetch a file of `data_bytes`, `rounds` times each way.

    Raises: BenchFailed: nginx or curl is missing.
    """
    for program in ("nginx", "curl"):
        if shutil.which(program) is None:
            raise BenchFailed(f"{program} is missing: apt-get install nginx-light curl")
    section = Section(f"{data_bytes >> 20} MiB through the web page's server")
    root = service.pool / "bench" / "web"
    (root / "put").mkdir(parents=True)
    try:
        source = root / "source"
        source.touch()
        disks.contiguous("source", data_bytes, data_bytes).write(source)
        with _nginx(root):
            for round_ in range(rounds):
                _one_round(section, service, source, round_)
    finally:
        shutil.rmtree(root)
    section.instead_of = {DOWNLOAD: [DOWNLOAD_NGINX], UPLOAD: [UPLOAD_NGINX]}
    for ours, theirs in ((DOWNLOAD, DOWNLOAD_NGINX), (UPLOAD, UPLOAD_NGINX)):
        ratio = statistics.median(section.ratios(ours, theirs))
        section.figures[f"{ours}: nginx's time by ours"] = f"{ratio:.2f}"
        section.check(
            f"{ours} has half of nginx's rate", f"{ratio:.2f}", kept=ratio >= 0.5, timing=True
        )
    return section


def _one_round(section: Section, service: Service, source: Path, round_: int) -> None:
    """Send the file to both and fetch it from both; who is first changes from round to round.

    Whoever is first gets the memory that was freed last, and the disk at rest: a third of the time.
    """
    name = f"bench-{round_}"
    image = _Image(service, name)
    begin_upload(service, name, source.stat().st_size)
    _until(["curl", "-sfI", *image.bearer, f"{image.url}/upload"])
    target = source.parent / "put" / name
    put: list[str | Path] = ["curl", "-sf", "-T", source, f"http://127.0.0.1:{_PORT}/put/{name}"]

    def ours() -> None:
        with _memory_of(section, service, "upload"):
            _timed(section, UPLOAD, image.upload(source))
        _until(["curl", "-sfI", *image.bearer, f"{image.url}/artifact"])

    _in_turn(round_, ours, lambda: _timed(section, UPLOAD_NGINX, put, ("sync", "--data", target)))
    fetch: list[str | Path] = ["curl", "-sf", "-o", "/dev/null"]

    def ours_back() -> None:
        with _memory_of(section, service, "download"):
            _timed(section, DOWNLOAD, [*fetch, *image.bearer, f"{image.url}/artifact"])

    theirs = f"http://127.0.0.1:{_PORT}/get/source"
    _in_turn(round_, ours_back, lambda: _timed(section, DOWNLOAD_NGINX, [*fetch, theirs]))
    target.unlink()
    kubectl = ["kubectl", f"--kubeconfig={service.kubeconfig}", "-n", "longhorn-system"]
    run(*kubectl, "delete", "backingimage", name)


def _in_turn(round_: int, ours: Callable[[], None], theirs: Callable[[], None]) -> None:
    for work in (ours, theirs) if round_ % 2 == 0 else (theirs, ours):
        work()


class _Image:
    """How curl is called for one image: with whose token, at which address."""

    def __init__(self, service: Service, name: str) -> None:
        base = (service.data_dir / "web.url").read_text().strip()
        config = yaml.safe_load(service.kubeconfig.read_text())
        self.url = f"{base}/api/v1/images/{name}"
        self.bearer = ["-H", f"Authorization: Bearer {config['users'][0]['user']['token']}"]

    def upload(self, source: Path) -> list[str | Path]:
        """Return the command that sends a file whole."""
        headers = ["-H", "Content-Type: application/offset+octet-stream", "-H", "Upload-Offset: 0"]
        curl = ["curl", "-sf", "-X", "PATCH", *self.bearer, *headers]
        return [*curl, "-T", source, f"{self.url}/upload"]


def begin_upload(service: Service, name: str, length: int) -> None:
    """Make a BackingImage that waits for its bytes."""
    annotations = {"shorthorn.io/upload-length": str(length)}
    meta = {"name": name, "namespace": "longhorn-system", "annotations": annotations}
    image = {"apiVersion": "longhorn.io/v1beta2", "kind": "BackingImage", "metadata": meta}
    text = json.dumps({**image, "spec": {"sourceType": "upload"}})
    argv = ["kubectl", f"--kubeconfig={service.kubeconfig}", "create", "-f", "-"]
    subprocess.run(argv, input=text, text=True, check=True, stdout=subprocess.DEVNULL)


def _timed(
    section: Section, what: str, argv: list[str | Path], then: tuple[str | Path, ...] = ()
) -> None:
    began = time.perf_counter()
    run(*argv)
    if then:
        run(*then)
    section.took(what, time.perf_counter() - began)


def _until(argv: list[str]) -> None:
    """Ask until it is answered well."""
    deadline = time.monotonic() + _PATIENCE_S
    while subprocess.run(argv, check=False, stdout=subprocess.DEVNULL).returncode != 0:
        if time.monotonic() > deadline:
            raise BenchFailed(f"not within {_PATIENCE_S:.0f} s: {argv[-1]}")
        time.sleep(0.05)


@contextlib.contextmanager
def _memory_of(section: Section, service: Service, what: str) -> Iterator[None]:
    """Note by how much the service's resident memory was larger, at most, than before."""
    process = Path(f"/proc/{service.pid}")
    (process / "clear_refs").write_text("5")  # the peak begins anew: proc(5)
    before = _resident_bytes(process, "VmRSS")
    yield
    grown = _resident_bytes(process, "VmHWM") - before
    section.figures[f"resident memory during the last {what}"] = (
        f"{before >> 20} MiB, at most {grown >> 20} more"
    )
    promise = f"memory of the server stays flat during the {what}"
    section.checks = [check for check in section.checks if check.promise != promise]
    section.check(promise, f"{grown >> 20} MiB more", kept=grown < _GROWTH_BYTES_MAX)


def _resident_bytes(process: Path, field: str) -> int:
    for line in (process / "status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise BenchFailed(f"{process} has no {field}")


@contextlib.contextmanager
def _nginx(root: Path) -> Iterator[None]:
    """Run nginx on files below `root`."""
    conf = root / "nginx.conf"
    conf.write_text(_NGINX.format(root=root, port=_PORT))
    process = subprocess.Popen(["nginx", "-c", conf, "-p", root], stderr=subprocess.DEVNULL)
    try:
        _until(["curl", "-sfI", f"http://127.0.0.1:{_PORT}/get/nginx.conf"])
        yield
    finally:
        process.terminate()
        process.wait()
