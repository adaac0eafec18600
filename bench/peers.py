"""An image from a peer against the same file by plain http, and against `cp`.

Owns one comparison: the sender is a process of its own, as on another node, on the same pool and
over loopback, so both ends share the machine's processors and disk. Every contender begins with
nothing dirty and the source in the page cache, and ends when its file is durable; ours are hashed
and committed-ready as well, so `cp` is also timed with the `sha512sum` that it lacks.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bench import disks
from bench.figures import Section
from bench.workspace import BenchFailed, run, settle
from shorthorn.domain.models import ImageFormat, ImageKey, ImageRecord, Peer, Progress
from shorthorn.engines.local import LocalEngine
from shorthorn.host import extents
from shorthorn.images.checksum import sha512_now
from shorthorn.images.fetcher import WebImageFetcher
from shorthorn.images.peer_fetcher import PeerFetcher
from shorthorn.images.peer_server import PeerServer
from shorthorn.kube.peer_certificates import PEER_SERVER_NAME, Leaf, issue_leaf, make_authority
from shorthorn.kube.peer_identity import make_contexts

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Iterator

    from bench.disks import Disk

KEY = ImageKey("bench", "1")
PEER = "from a peer, mutual TLS"
HTTP = "plain http download"
COPY = "cp --reflink=never, durably"
COPY_HASHED = COPY + ", sha512sum"


class _Tls:
    """Both sides' contexts, of one certificate for the run."""

    server_name = PEER_SERVER_NAME

    def __init__(self, leaf: Leaf) -> None:
        self._contexts = make_contexts(leaf)

    def server_context(self) -> ssl.SSLContext:
        return self._contexts.server

    def client_context(self) -> ssl.SSLContext:
        return self._contexts.client


async def compare(disk: Disk, pool: Path, *, rounds: int) -> Section:
    """Bring `disk` from one directory of `pool` to another in each way, `rounds` times."""
    section = Section(f"{disk.name}, to another node")
    root = pool / "bench" / "peers"
    root.mkdir()
    try:
        await _compare(section, disk, root, rounds)
    finally:
        shutil.rmtree(root)
    section.instead_of = {PEER: [HTTP, COPY, COPY_HASHED]}
    return section


async def _compare(section: Section, disk: Disk, root: Path, rounds: int) -> None:
    source, checksum = await _make_image(disk, root / "pool")
    now = datetime.now(UTC)
    leaf = issue_leaf(make_authority(now), now)
    tls, target = _Tls(leaf), root / "target"

    async def from_peer(port: int) -> None:
        peers = [Peer("sender", "", f"127.0.0.1:{port}")]
        await PeerFetcher("bench", tls).fetch_image(KEY, peers, checksum, target, _ignore)

    async def by_http(port: int) -> None:
        url = f"http://127.0.0.1:{port}/{source.relative_to(root)}"
        await WebImageFetcher("bench").fetch(KEY, {"url": url}, checksum, target, _ignore)

    async def copied(port: int) -> None:
        run("cp", "--reflink=never", source, target / "artifact")
        run("sync", target / "artifact")

    async def copied_hashed(port: int) -> None:
        await copied(port)
        run("sha512sum", target / "artifact")

    (root / "leaf.json").write_text(json.dumps(asdict(leaf)))
    command = [sys.executable, "-m"]
    web = ["http.server", "0", "--bind", "127.0.0.1", "--directory", str(root)]
    with (
        _sender([*command, "bench.peers", str(root)]) as (peer_port, sender),
        _sender([*command, *web]) as (http_port, _),
    ):
        for number in range(rounds):
            for what, work, port in (
                (PEER, from_peer, peer_port),
                (HTTP, by_http, http_port),
                (COPY, copied, 0),
                (COPY_HASHED, copied_hashed, 0),
            ):
                await _contend(section, what, source, target, partial(work, port))
                if number == 0 and what == PEER:
                    await _judge(section, source, target)
                shutil.rmtree(target)
        section.figures["memory of the sender, at most"] = f"{_peak_mib(sender):.0f} MiB"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    section.figures["memory of the receiver (this process, all of it), at most"] = f"{peak:.0f} MiB"


async def _contend(
    section: Section, what: str, source: Path, target: Path, work: Callable[[], Awaitable[None]]
) -> None:
    target.mkdir()
    disks.warm(source)
    settle(target)
    begun = time.perf_counter()
    await work()
    section.took(what, time.perf_counter() - begun)


async def _make_image(disk: Disk, root: Path) -> tuple[Path, str]:
    """Commit the disk as a raw image of a new pool; return its artifact and checksum."""
    root.mkdir()
    engine = LocalEngine(root, owner="bench", extents_max=1 << 40)
    await engine.open()
    try:
        staging = await engine.staging_dir(KEY)
        artifact = staging / "artifact"
        with artifact.open("wb") as file:
            file.truncate(disk.size_bytes)
        disk.write(artifact)
        (staging / "base.raw").hardlink_to(artifact)
        checksum = sha512_now(artifact, lambda done, total: None)
        record = await engine.commit_image(
            ImageRecord(
                key=KEY,
                format=ImageFormat.RAW,
                size_bytes=disk.size_bytes,
                virtual_size_bytes=disk.size_bytes,
                checksum=checksum,
                source={"type": "download"},
                created_at=datetime.now(UTC),
                point_in_time=None,
                artifact_path="",
                base_path="",
            )
        )
    finally:
        await engine.close()
    return Path(record.artifact_path), checksum


async def _judge(section: Section, source: Path, target: Path) -> None:
    sent, arrived = await extents.usage(source), await extents.usage(target / "artifact")
    section.figures["data"] = (
        f"{sent.allocated_bytes / disks.MIB:.1f} MiB of {source.stat().st_size / disks.MIB:.0f} MiB"
        f" in {sent.extent_count} extents; arrived in {arrived.extent_count}"
    )
    run("cmp", source, target / "artifact")
    section.check(
        "the artifact from a peer is identical and takes the same space",
        f"{arrived.allocated_bytes} of {sent.allocated_bytes} bytes",
        kept=arrived.allocated_bytes == sent.allocated_bytes,
    )


@contextlib.contextmanager
def _sender(argv: list[str]) -> Iterator[tuple[int, int]]:
    """Run a server; yield its port and process id. It says `port N` first, as http.server does."""
    process = subprocess.Popen(
        argv,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    try:
        words = process.stdout.readline().split()
        if "port" not in words:
            raise BenchFailed(f"{' '.join(argv)} did not start")
        yield int(words[words.index("port") + 1]), process.pid
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _peak_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


def _ignore(progress: Progress) -> None:
    """Nobody watches."""


async def _serve(root: Path) -> None:
    """Be the sender: serve the pool in `root` until killed."""
    engine = LocalEngine(root / "pool", owner="bench")
    await engine.open()
    tls = _Tls(Leaf(**json.loads((root / "leaf.json").read_text())))
    server = PeerServer(engine, tls, host="127.0.0.1")
    await server.start()
    print(f"port {server.port}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1])))
