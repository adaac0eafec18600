"""`shorthorn up` is killed at its work, starts again, and nothing is lost or left over."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import sqlite3
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.fakes.image_server import Behaviour, serve
from tests.integration import storage
from tests.integration.conftest import leftovers
from tests.integration.daemon_process import (
    ServiceProcess,
    loops_below,
    mounts_of,
    poll,
    processes_naming,
    running,
)
from tests.integration.service_api import SYSTEM, Namespace, namespace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.root, pytest.mark.xfs]

MIB = 1 << 20
SEED = 20_261_123


@pytest.fixture(scope="module")
def crashing() -> Iterator[ServiceProcess]:
    """A service of this module's own, to be killed by its tests."""
    storage.require(storage.XFS)
    root = Path(tempfile.mkdtemp(prefix="shorthorn-crash-"))
    try:
        with running(root / "data", pool_size="700M") as service:
            yield service
    finally:
        shutil.rmtree(root)


@pytest.fixture
def own(crashing: ServiceProcess, request: pytest.FixtureRequest) -> Iterator[Namespace]:
    """A namespace of the test's own on a service that runs; at the end nothing is left."""
    if crashing.process is None or crashing.process.poll() is not None:
        crashing.start()
    name = f"test-{hashlib.sha256(request.node.name.encode()).hexdigest()[:8]}"
    with namespace(crashing.api, name) as made:
        yield made
    assert_nothing_left(crashing)


def assert_nothing_left(service: ServiceProcess) -> None:
    poll(lambda: leftovers(service) == [], what="an empty pool")
    # A loop device goes when the kernel has let go of it.
    pool_file = [str(service.data_dir / "pool.xfs")]
    poll(lambda: list(loops_below(service.data_dir).values()) == pool_file, what="no loop devices")
    assert mounts_of(service.data_dir) == [str(service.pool)]
    (server,) = processes_naming(str(service.data_dir))
    assert service.process is not None
    assert server == service.process.pid


def volume_file(service: ServiceProcess, own: Namespace, claim: str) -> Path:
    handle: str = own.volume_of(claim)["spec"]["csi"]["volumeHandle"]
    return service.pool / "volumes" / handle / "volume.raw"


def scatter(path: Path, *, blocks: int, every_bytes: int) -> None:
    """Write blocks far apart, so that converting the file takes a while."""
    with path.open("r+b") as file:
        for number in range(blocks):
            file.seek(number * every_bytes)
            file.write(number.to_bytes(8, "big") * 512)
        os.fsync(file.fileno())


def sha512(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha512").hexdigest()


def copy_state(service: ServiceProcess) -> str:
    copies = service.api.list("ImageCopy", SYSTEM)
    return str((copies[0].get("status") or {}).get("state", "")) if copies else ""


def staged(service: ServiceProcess, name: str) -> bool:
    return any((service.pool / "staging" / "images").glob(f"*/*/{name}"))


MOMENTS: dict[str, Callable[[ServiceProcess], object]] = {
    "the snapshot is asked for": lambda service: True,
    "its copy is placed": copy_state,
    "its data is fixed": lambda service: staged(service, "base.raw"),
    "its artifact is being made": lambda service: staged(service, "artifact"),
    "it is committed": lambda service: list((service.pool / "images").glob("*/*")),
}


@pytest.mark.parametrize("moment", [pytest.param(name, id=name) for name in MOMENTS])
def test_an_export_that_is_killed_is_finished_by_the_next_process(
    crashing: ServiceProcess, own: Namespace, moment: str
) -> None:
    own.claim("source", "256Mi", volumeMode="Block")
    source = volume_file(crashing, own, "source")
    scatter(source, blocks=3000, every_bytes=64 << 10)
    before = sha512(source)
    cls = own.snapshot_class("bi", type="bi", export_type="qcow2")
    own.snapshot("s", claim="source", cls=cls)
    reached, committed = MOMENTS[moment], MOMENTS["it is committed"]
    # A fast machine may be past a moment between two looks.
    poll(lambda: reached(crashing) or committed(crashing), what=moment, interval_s=0.001)
    crashing.kill()
    is_fixed = any((crashing.pool / "staging" / "images").glob("*/*/export.json")) or list(
        (crashing.pool / "images").glob("*/*/image.json")
    )
    if is_fixed:
        scatter(source, blocks=10, every_bytes=MIB)  # behind the point in time
        with source.open("r+b") as file:
            file.write(b"written after the point in time")
    crashing.start()
    own.ready("s")
    own.claim("copy", "256Mi", snapshot="s", volumeMode="Block")
    assert sha512(volume_file(crashing, own, "copy")) == before
    (image,) = (crashing.pool / "images").glob("*/*")
    assert json.loads((image / "image.json").read_text())["format"] == "qcow2"
    compared = subprocess.run(
        ["qemu-img", "compare", "-f", "raw", "-F", "qcow2", image / "base.raw", image / "artifact"],
        capture_output=True,
        check=False,
        text=True,
    )
    assert compared.returncode == 0, compared.stdout
    assert not list((crashing.pool / "staging").glob("*/*"))


def test_a_download_that_is_killed_goes_on_where_it_was(
    crashing: ServiceProcess, own: Namespace
) -> None:
    content = random.Random(SEED).randbytes(80 * MIB)
    checksum = hashlib.sha512(content).hexdigest()
    with serve(content, Behaviour(pause_after=72 * MIB), Behaviour(), name="disk.raw") as served:
        handle = (
            "bi://backing?backingImageDataSourceType=download&backingImage=fetched"
            f"&url={served.url}&backingImageChecksum={checksum}"
        )
        own.content("c", handle, snapshot="s")
        own.snapshot("s", content=f"{own.name}-c")
        own.ready("s")
        own.claim("a", "80Mi", snapshot="s", volumeMode="Block")
        poll(lambda: durable_bytes(crashing) > 0, what="bytes on disk")
        crashing.kill()
        kept = durable_bytes(crashing)
        served.resume.set()
        crashing.start()
        assert sha512(volume_file(crashing, own, "a")) == checksum
        first, *_, last = served.ranges_asked
        assert first == ""
        start = int(last.removeprefix("bytes=").removesuffix("-"))
        assert 0 < kept <= start
    image = crashing.api.get("BackingImage", SYSTEM, "fetched")
    assert image["status"]["checksum"] == checksum
    assert not list((crashing.pool / "staging").glob("*/*"))


def durable_bytes(service: ServiceProcess) -> int:
    for journal in (service.pool / "staging" / "images").glob("*/*/download.json"):
        return int(json.loads(journal.read_text()).get("durable_bytes", 0))
    return 0


class Writer:
    """Appends numbers to a file, each synced, and counts what went wrong."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._write)
        self.written = 0
        self.longest_s = 0.0
        self.errors: list[OSError] = []

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _write(self) -> None:
        descriptor = os.open(self._path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        try:
            while not self._stop.is_set():
                began = time.monotonic()
                os.write(descriptor, b"%d\n" % self.written)
                os.fsync(descriptor)
                self.longest_s = max(self.longest_s, time.monotonic() - began)
                self.written += 1
        except OSError as exc:
            self.errors.append(exc)
        finally:
            os.close(descriptor)

    def goes_on(self) -> None:
        """Return when more has been written than before."""
        before = self.written
        poll(lambda: self.written > before + 5 or self.errors, what="the writer goes on")


def test_a_mounted_volume_is_written_through_kills_and_restarts(
    crashing: ServiceProcess, own: Namespace
) -> None:
    own.claim("a")
    own.bound("a")
    target = crashing.data_dir.parent / "written"
    assert crashing.run("mount", f"{own.name}/a", str(target)).returncode == 0
    try:
        with Writer(target / "numbers") as writer:
            for _ in range(2):
                writer.goes_on()
                crashing.kill()
                writer.goes_on()
                crashing.start()
                writer.goes_on()
            assert crashing.stop() == 0
            writer.goes_on()
            crashing.start()
        assert writer.errors == []
        lines = (target / "numbers").read_text().splitlines()
        assert lines == [str(number) for number in range(writer.written)]
    finally:
        assert crashing.run("umount", str(target)).returncode == 0


def test_a_kill_between_freeze_and_thaw_ends_in_a_thaw(
    crashing: ServiceProcess, own: Namespace
) -> None:
    own.claim("a")
    own.bound("a")
    target = crashing.data_dir.parent / "frozen"
    assert crashing.run("mount", f"{own.name}/a", str(target)).returncode == 0
    cls = own.snapshot_class("snap", type="snap")
    try:
        with Writer(target / "numbers") as writer:
            for number in range(4):
                writer.goes_on()
                own.snapshot(f"s{number}", claim="a", cls=cls)
                threading.Event().wait(number * 0.02)
                crashing.kill()
                writer.goes_on()
                crashing.start()
                own.ready(f"s{number}")
        assert writer.errors == []
    finally:
        assert crashing.run("umount", str(target)).returncode == 0


def test_random_kills_in_mixed_work_end_in_a_consistent_whole(
    crashing: ServiceProcess, own: Namespace
) -> None:
    chance = random.Random(SEED)
    bi = own.snapshot_class("bi", type="bi", export_type="qcow2")
    snap = own.snapshot_class("snap", type="snap")
    own.claim("source", "32Mi", volumeMode="Block")
    source = volume_file(crashing, own, "source")
    scatter(source, blocks=64, every_bytes=256 << 10)
    wanted = sha512(source)
    for number in range(10):
        own.snapshot(f"s{number}", claim="source", cls=chance.choice([bi, snap]))
        own.claim(f"c{number}", "32Mi", snapshot=f"s{number}", volumeMode="Block")
        if number > 2 and chance.random() < 0.5:
            own.delete_claim(f"c{number - 2}", wait=False)
        threading.Event().wait(chance.uniform(0, 0.25))
        crashing.kill()
        crashing.start()
    claims = crashing.api.list("PersistentVolumeClaim", own.name)
    alive = [c["metadata"]["name"] for c in claims if "deletionTimestamp" not in c["metadata"]]
    assert len(alive) > 5
    for name in alive:
        if name != "source":
            assert sha512(volume_file(crashing, own, name)) == wanted, name
    for number in range(10):
        own.ready(f"s{number}")
    kept = {entry.name for entry in (crashing.pool / "volumes").iterdir()}
    known = {v["metadata"]["name"] for v in crashing.api.list("Volume", SYSTEM)}
    poll(
        lambda: (
            {e.name for e in (crashing.pool / "volumes").iterdir()}
            == {own.volume_of(name)["spec"]["csi"]["volumeHandle"] for name in alive}
        ),
        what=f"data {kept} for objects {known}",
    )


def test_a_second_service_on_the_same_directory_is_refused_by_name(
    crashing: ServiceProcess, own: Namespace
) -> None:
    assert crashing.process is not None
    second = crashing.run("up")
    assert second.returncode == 1
    assert f"shorthorn (process {crashing.process.pid})" in second.stderr
    assert second.stderr.count("\n") == 1
    own.claim("a")
    assert own.bound("a")


def test_sigterm_stops_it_and_leaves_no_process(crashing: ServiceProcess, own: Namespace) -> None:
    own.claim("a")
    own.bound("a")
    assert crashing.stop() == 0
    assert processes_naming(str(crashing.data_dir)) == []
    assert not (crashing.data_dir / "csi.sock").exists()
    crashing.start()
    assert own.bound("a")


def test_down_stops_it_and_releases_the_pool(crashing: ServiceProcess) -> None:
    if crashing.process is None or crashing.process.poll() is not None:
        crashing.start()
    stopped = crashing.run("down", "--release")
    assert stopped.returncode == 0, stopped.stderr
    assert "stopped; volumes and images stay" in stopped.stdout
    assert loops_below(crashing.data_dir) == {}
    assert mounts_of(crashing.data_dir) == []
    again = crashing.run("down")
    assert (again.returncode, again.stdout.startswith("nothing runs on")) == (0, True)


def test_a_file_that_is_not_understood_is_named_and_left_alone(
    crashing: ServiceProcess, own: Namespace
) -> None:
    database, pool = crashing.data_dir / "state.db", crashing.pool / "pool.json"
    assert crashing.stop() == 0
    damages = [
        (database, b"no database at all" * 500, "state.db"),
        (database, newer(database), "newer"),
        (pool, b"{", "pool.json"),
        (pool, b'{"version": 999}', "pool.json"),
    ]
    for path, damage, expected in damages:
        original = path.read_bytes()
        path.write_bytes(damage)
        try:
            refused = crashing.run("up")
            assert (refused.returncode, path.read_bytes()) == (1, damage), refused.stderr
            assert refused.stderr.startswith("shorthorn: "), refused.stderr
            assert expected in refused.stderr
            assert "Traceback" not in refused.stderr
        finally:
            path.write_bytes(original)
    crashing.start()
    own.claim("a")
    assert own.bound("a")


def newer(database: Path) -> bytes:
    """Return the database as a later release might leave it."""
    copy = database.with_name("newer.db")
    shutil.copy(database, copy)
    with contextlib.closing(sqlite3.connect(copy)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("PRAGMA user_version = 999")
    content = copy.read_bytes()
    copy.unlink()
    return content


def test_a_full_pool_says_so_and_keeps_nothing_half_made(
    crashing: ServiceProcess, own: Namespace
) -> None:
    own.claim("source", "64Mi", volumeMode="Block")
    source = volume_file(crashing, own, "source")
    scatter(source, blocks=500, every_bytes=128 << 10)
    filler = crashing.pool / "filler"
    free_bytes = shutil.disk_usage(crashing.pool).free
    content = random.Random(SEED).randbytes(8 * MIB)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(MIB, free_bytes - 4 * MIB))
    try:
        with serve(content, name="disk.raw") as served:
            handle = (
                "bi://backing?backingImageDataSourceType=download&backingImage=large"
                f"&url={served.url}"
            )
            own.content("c", handle, snapshot="s")
            own.snapshot("s", content=f"{own.name}-c")
            own.claim("a", "8Mi", snapshot="s", volumeMode="Block")
            said = own.event("PersistentVolumeClaim", "a", "ProvisioningFailed", holding="is full")
            assert str(crashing.pool) in said
            assert not list((crashing.pool / "staging").glob("*/*"))
            assert not list((crashing.pool / "images").glob("*/*"))
            filler.unlink()
            own.delete_claim("a")
            own.delete_snapshot("s")
    finally:
        filler.unlink(missing_ok=True)
    assert sha512(source)
