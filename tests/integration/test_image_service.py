"""`shorthorn image upload`, `download` and what belongs to them, on a service of the test's own.

The service, its pool and the commands are real; both ends are killed in the middle of their work.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
import zstandard
from tests.integration import storage
from tests.integration.daemon_process import ROOT, ServiceProcess, poll, running
from tests.integration.service_api import SYSTEM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.root, pytest.mark.xfs]

MIB = 1 << 20
UPLOAD = {"Content-Type": "application/offset+octet-stream"}


@pytest.fixture(scope="module")
def own_service() -> Iterator[ServiceProcess]:
    """A service that may be killed."""
    storage.require(storage.XFS)
    root = Path(tempfile.mkdtemp(prefix="shorthorn-bytes-"))
    try:
        with running(root / "data", pool_size="700M") as process:
            yield process
    finally:
        shutil.rmtree(root)


@pytest.fixture
def host(own_service: ServiceProcess) -> Iterator[Host]:
    made = Host(own_service)
    try:
        yield made
    finally:
        made.tidy_up()


class Host:
    """One host, and somebody at its shell."""

    def __init__(self, service: ServiceProcess) -> None:
        self.service = service

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return self.service.run("image", *map(str, arguments))

    def does(self, *arguments: str | Path) -> str:
        """Run a command that must succeed; return what it prints."""
        ran = self.run(*arguments)
        assert (ran.returncode, "Traceback" in ran.stderr) == (0, False), ran.stderr
        return ran.stdout

    def is_refused(self, *arguments: str | Path) -> str:
        """Run a command that must be refused; return what it says."""
        ran = self.run(*arguments)
        assert (ran.returncode, "Traceback" in ran.stderr) == (1, False), ran
        return ran.stderr

    def start(self, *arguments: str | Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self.service.command("image", *map(str, arguments)),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    @property
    def http(self) -> httpx2.Client:
        """A client of the edge, as a script is."""
        token = (self.service.data_dir / "token").read_text().strip()
        return httpx2.Client(
            base_url=(self.service.data_dir / "web.url").read_text().strip(),
            headers={"Authorization": f"Bearer {token}"},
            trust_env=False,
            timeout=60,
        )

    def offset(self, name: str) -> int:
        """How much of an upload is durable; -1: nothing awaits bytes."""
        with self.http as http:
            answer = http.head(f"/api/v1/images/{name}/upload")
        return int(answer.headers["Upload-Offset"]) if answer.status_code == 200 else -1

    def begin_upload(self, name: str, length: int, **spec: Any) -> str:
        """Make the object that awaits bytes; return the address of its upload, once it does."""
        self.service.api.create(
            {
                "apiVersion": "longhorn.io/v1beta2",
                "kind": "BackingImage",
                "metadata": {
                    "name": name,
                    "namespace": SYSTEM,
                    "annotations": {"shorthorn.io/upload-length": str(length)},
                },
                "spec": {"sourceType": "upload", **spec},
            }
        )
        poll(lambda: self.offset(name) == 0, what="the upload is not awaited")
        return f"/api/v1/images/{name}/upload"

    def failure(self, name: str) -> str:
        """Return why an image failed, once it has."""
        found = self.service.api.wait("BackingImage", SYSTEM, name, lambda o: failed(o) != "")
        return failed(found)

    def is_ready(self, name: str) -> dict[str, Any]:
        found = self.service.api.wait("BackingImage", SYSTEM, name, lambda o: is_true(o, "Ready"))
        assert found is not None
        return found

    def staged(self) -> list[str]:
        """What is half made, or on its way out."""
        staging = self.service.pool / "staging"
        return [e.name for kind in ("images", "trash") for e in (staging / kind).iterdir()]

    def tidy_up(self) -> None:
        for obj in self.service.api.list("BackingImage", SYSTEM):
            self.service.api.delete("BackingImage", SYSTEM, obj["metadata"]["name"])
            self.service.api.wait_gone("BackingImage", SYSTEM, obj["metadata"]["name"])


def conditions(obj: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    return {c["type"]: c for c in ((obj or {}).get("status") or {}).get("conditions") or ()}


def is_true(obj: dict[str, Any] | None, kind: str) -> bool:
    return bool(conditions(obj).get(kind, {}).get("status") == "True")


def failed(obj: dict[str, Any] | None) -> str:
    return str(conditions(obj)["Failed"]["message"]) if is_true(obj, "Failed") else ""


def sha512(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha512").hexdigest()


def qemu_img(*arguments: str | Path) -> str:
    argv = ["qemu-img", *map(str, arguments)]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A disk with data at its start and its end, and holes between."""
    path, dice = tmp_path / "disk.raw", random.Random(5)
    with path.open("wb") as file:
        file.write(dice.randbytes(MIB))
        file.seek(40 * MIB)
        file.write(dice.randbytes(MIB // 2))
        file.truncate(64 * MIB)
    return path


@pytest.fixture
def qcow2(tmp_path: Path, raw: Path) -> Path:
    path = tmp_path / "disk.qcow2"
    qemu_img("convert", "-f", "raw", "-O", "qcow2", raw, path)
    return path


def large(tmp_path: Path, size_bytes: int) -> Path:
    """A file without holes, whose blocks all differ."""
    path, dice = tmp_path / "large.raw", random.Random(7)
    with path.open("wb") as file:
        for _ in range(size_bytes // MIB):
            file.write(dice.randbytes(MIB))
    return path


# ---- whole -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_what_is_uploaded_comes_back_in_every_form(
    host: Host, raw: Path, qcow2: Path, tmp_path: Path, kind: str
) -> None:
    file = {"raw": raw, "qcow2": qcow2}[kind]
    assert sha512(file) in host.does("upload", "golden", file, "--checksum", sha512(file))
    artifact = tmp_path / "artifact"
    host.does("download", "golden", artifact)
    assert sha512(artifact) == sha512(file)
    back = tmp_path / "back.raw"
    host.does("download", "golden", back, "--as", "raw")
    assert sha512(back) == sha512(raw)
    assert back.stat().st_blocks * 512 <= 4 * MIB
    small = tmp_path / "back.qcow2"
    host.does("download", "golden", small, "--as", "qcow2")
    assert "identical" in qemu_img("compare", "-f", "qcow2", "-F", "raw", small, raw)
    packed = tmp_path / "back.raw.zst"
    host.does("download", "golden", packed, "--as", "raw.zst")
    with packed.open("rb") as stream, zstandard.ZstdDecompressor().stream_reader(stream) as reader:
        assert hashlib.file_digest(reader, "sha512").hexdigest() == sha512(raw)
    poll(lambda: host.staged() == [], what="a conversion stays")


# ---- interrupted -------------------------------------------------------------------------------


def test_both_ends_of_an_upload_may_be_killed(host: Host, tmp_path: Path) -> None:
    file = large(tmp_path, 200 * MIB)
    sending = host.start("upload", "golden", file)
    poll(lambda: host.offset("golden") > 0, what="nothing arrived")
    sending.kill()
    sending.communicate()
    with host.start("upload", "golden", file) as sending:
        assert sending.stdout is not None
        said = sending.stdout.readline()  # the server has been asked where to go on
        host.service.kill()
        host.service.start()
        out, _ = sending.communicate(timeout=180)
    assert sending.returncode == 0, said + out
    assert sha512(file) in out.decode()
    assert host.is_ready("golden")["status"]["checksum"] == sha512(file)


@pytest.mark.parametrize("form", ["artifact", "raw"])
def test_both_ends_of_a_download_may_be_killed(host: Host, tmp_path: Path, form: str) -> None:
    file, target = large(tmp_path, 200 * MIB), tmp_path / "back"
    part = tmp_path / "back.part"
    host.does("upload", "golden", file)

    def arrived() -> int:
        return part.stat().st_size if part.exists() else 0

    def fetch() -> subprocess.Popen[bytes]:
        return host.start("download", "golden", target, "--as", form)

    receiving = fetch()
    poll(lambda: arrived() > 0, what="nothing arrived")
    receiving.kill()
    receiving.communicate()
    assert not target.exists()
    receiving, before = fetch(), arrived()
    poll(lambda: target.exists() or arrived() > before, what="it does not go on")
    host.service.kill()
    host.service.start()
    out, _ = receiving.communicate(timeout=180)
    assert receiving.returncode == 0, out
    assert sha512(target) == sha512(file)


# ---- refused -----------------------------------------------------------------------------------


def hostile(tmp_path: Path, kind: str) -> Path:
    """A qcow2 image that would have a reader open a file of this host."""
    secret, path = tmp_path / "secret", tmp_path / "hostile.qcow2"
    secret.write_bytes(b"a secret".ljust(MIB))
    if kind == "backing file":
        qemu_img("create", "-f", "qcow2", "-b", secret, "-F", "raw", path)
    else:
        option = f"data_file={secret},data_file_raw=on"
        qemu_img("create", "-f", "qcow2", "-o", option, path, "1M")
    return path


@pytest.mark.parametrize(
    ("kind", "problem"),
    [("backing file", "backing file"), ("data file", "keeps its data in another file")],
)
def test_an_image_that_names_another_file_is_refused(
    host: Host, tmp_path: Path, kind: str, problem: str
) -> None:
    assert problem in host.is_refused("upload", "golden", hostile(tmp_path, kind))
    assert problem in host.failure("golden")
    poll(lambda: host.staged() == [], what="the refused bytes stay")


def test_bytes_that_are_not_the_expected_ones_are_refused(
    host: Host, raw: Path, tmp_path: Path
) -> None:
    said = host.is_refused("upload", "golden", raw, "--checksum", "0" * 128)
    assert "expected" in said
    assert sha512(raw)[:16] in said
    poll(lambda: host.staged() == [], what="the wrong bytes stay")
    assert "retry" in host.is_refused("upload", "golden", raw)


def test_an_upload_that_does_not_fit_says_so_and_leaves_nothing(host: Host, tmp_path: Path) -> None:
    file = large(tmp_path, 8 * MIB)
    path, filler = host.begin_upload("golden", 8 * MIB), host.service.pool / "filler"
    try:
        usage = os.statvfs(host.service.pool)
        with filler.open("wb") as others:
            os.posix_fallocate(others.fileno(), 0, usage.f_bavail * usage.f_frsize - 4 * MIB)
        assert "is full" in host.is_refused("upload", "golden", file)
        assert "is full" in host.failure("golden")
        with host.http as http:
            assert http.head(path).status_code == 404
        poll(lambda: host.staged() == [], what="what did not fit stays")
    finally:
        filler.unlink()
    host.does("retry", "golden")
    assert sha512(file) in host.does("upload", "golden", file)


def test_an_upload_larger_than_any_pool_is_not_begun(host: Host, tmp_path: Path) -> None:
    file = tmp_path / "disk"
    file.touch()
    os.truncate(file, 2 << 30)
    assert "has room" in host.is_refused("upload", "golden", file, "--retry-for", "1")


def test_an_upload_that_is_given_up_leaves_nothing(host: Host) -> None:
    path = host.begin_upload("golden", 4 * MIB)
    with host.http as http:
        sent = http.patch(path, content=bytes(MIB), headers={"Upload-Offset": "0", **UPLOAD})
        assert (sent.status_code, sent.headers["Upload-Offset"]) == (204, str(MIB))
        assert http.delete(path).status_code == 204
        assert "given up" in host.failure("golden")
        assert http.head(path).status_code == 404
    poll(lambda: host.staged() == [], what="the bytes stay")
    host.does("rm", "golden", "--yes")


# ---- made of others, looked at again, tried again ------------------------------------------------


def test_an_image_is_cloned_verified_and_tried_again(host: Host, raw: Path, tmp_path: Path) -> None:
    host.does("upload", "golden", raw)
    host.does("create", "second", "--from-image", "golden", "--wait")
    back = tmp_path / "back"
    host.does("download", "second", back)
    assert sha512(back) == sha512(raw)
    assert sha512(raw) in host.does("verify", "second", "--wait")
    artifact = next((host.service.pool / "images").glob("second/*/artifact"))
    with artifact.open("r+b") as file:
        file.write(b"x" * 512)
    assert "is damaged" in host.is_refused("verify", "second", "--wait")
    assert sha512(raw) in host.does("verify", "golden", "--wait")
    assert "not ready" in host.is_refused("download", "second", tmp_path / "bad")
    host.does("retry", "second", "--wait")
    assert sha512(raw) in host.does("verify", "second", "--wait")


def test_a_damaged_base_of_a_whole_artifact_is_told(host: Host, raw: Path, tmp_path: Path) -> None:
    image = tmp_path / "image.qcow2"
    argv = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(image)]
    subprocess.run(argv, check=True)
    host.does("upload", "golden", image)
    assert sha512(image) in host.does("verify", "golden", "--wait")
    base = next((host.service.pool / "images").glob("golden/*/base.raw"))
    with base.open("r+b") as file:
        first = file.read(1)
        file.seek(0)
        file.write(bytes([first[0] ^ 1]))
    assert "base.raw, which volumes are made of" in host.is_refused("verify", "golden", "--wait")
    assert "not ready" in host.is_refused("download", "golden", tmp_path / "bad")


def test_a_clone_that_is_made_first_waits_for_its_origin(host: Host, raw: Path) -> None:
    host.does("create", "second", "--from-image", "golden")

    def says(words: str) -> Callable[[], bool]:
        return lambda: words in host.does("show", "second")

    poll(says("waits for backing image golden, which does not exist"), what="it does not wait")
    path = host.begin_upload("golden", raw.stat().st_size)
    poll(says("waits for backing image golden to be ready"), what="it does not see its origin")
    with host.http as http:
        assert http.delete(path).status_code == 204
    assert "given up" in host.failure("second")
    host.does("retry", "golden")
    poll(says("waits for backing image golden to be ready"), what="it stays failed")
    host.does("upload", "golden", raw)
    assert sha512(raw) in host.does("verify", "second", "--wait")


def test_a_failed_upload_is_tried_again(host: Host, raw: Path) -> None:
    path = host.begin_upload("golden", raw.stat().st_size)
    with host.http as http:
        assert http.delete(path).status_code == 204
    host.failure("golden")
    host.does("retry", "golden")
    poll(lambda: host.offset("golden") == 0, what="the upload is not awaited again")
    assert sha512(raw) in host.does("upload", "golden", raw)


# ---- scripts -----------------------------------------------------------------------------------


def test_a_script_sends_pieces_and_reads_parts(host: Host, raw: Path) -> None:
    content = raw.read_bytes()
    path, etag = host.begin_upload("golden", len(content)), f'"{sha512(raw)}"'
    with host.http as http:
        for start in range(0, len(content), 16 * MIB):
            state = http.head(path)
            assert state.headers["Upload-Offset"] == str(start)
            assert state.headers["Upload-Length"] == str(len(content))
            wrong = {"Upload-Offset": str(start + 1), **UPLOAD}
            refused = http.patch(path, content=b"x", headers=wrong)
            assert (refused.status_code, refused.headers["Upload-Offset"]) == (409, str(start))
            piece = content[start : start + 16 * MIB]
            sent = http.patch(path, content=piece, headers={"Upload-Offset": str(start), **UPLOAD})
            assert sent.status_code == 204, sent.text
        host.is_ready("golden")
        file = "/api/v1/images/golden/artifact"
        head = http.head(file)
        assert head.headers["Content-Length"] == str(len(content))
        assert head.headers["ETag"] == etag
        part = http.get(file, headers={"Range": "bytes=512-1023", "If-Range": etag})
        assert (part.status_code, part.content) == (206, content[512:1024])
        assert part.headers["Content-Range"] == f"bytes 512-1023/{len(content)}"
        tail = http.get(file, headers={"Range": "bytes=-100"})
        assert tail.content == content[-100:]
        whole = http.get(file, headers={"Range": "bytes=0-1", "If-Range": '"another"'})
        assert (whole.status_code, len(whole.content)) == (200, len(content))
        beyond = http.get(file, headers={"Range": f"bytes={len(content)}-"})
        assert beyond.status_code == 416
        assert beyond.headers["Content-Range"] == f"bytes */{len(content)}"
        assert http.get(file, headers={"If-None-Match": etag}).status_code == 304
    with httpx2.Client(base_url=http.base_url, trust_env=False, timeout=60) as stranger:
        assert stranger.get(file).status_code == 401
        bad = stranger.get(file, headers={"Authorization": "Bearer nobody's"})
        assert bad.status_code == 401
