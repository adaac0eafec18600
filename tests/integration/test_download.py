"""Downloads from a server that misbehaves, over real sockets, into real files."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.fakes.image_server import Behaviour, serve

from shorthorn.domain.models import Progress
from shorthorn.images import http_source, staged_writer
from shorthorn.images.download import Downloaded, DownloadRequest, RetryPolicy, download
from shorthorn.images.download_journal import JOURNAL_NAME
from shorthorn.images.http_source import SourceRefused, SourceTroubled
from shorthorn.images.refusal import NotAcceptable

MIB = 1 << 20
CONTENT = random.Random(3).randbytes(5 * MIB + 777)
SHA512 = hashlib.sha512(CONTENT).hexdigest()
QUICK = RetryPolicy(attempts=3, restarts=2, delay_s=0.01, delay_s_max=0.05)


async def _get(url: str, staging: Path) -> Downloaded:
    return await download(DownloadRequest(url, staging, QUICK), lambda progress: None)


def _assert_complete(done: Downloaded, content: bytes = CONTENT) -> None:
    assert done.path.read_bytes() == content
    assert done.size_bytes == len(content)
    assert done.checksum == hashlib.sha512(content).hexdigest()


async def test_one_get_request_brings_a_file_its_hash_and_its_progress(tmp_path: Path) -> None:
    seen: list[Progress] = []
    with serve(CONTENT) as server:
        done = await download(DownloadRequest(server.url, tmp_path, QUICK), seen.append)
    _assert_complete(done)
    assert [(method, path) for method, path, _ in server.requests] == [("GET", "/disk.img")]
    assert server.requests[0][2]["Accept-Encoding"] == "identity"
    assert seen[-1].bytes_done == seen[-1].bytes_total == len(CONTENT)


@pytest.mark.parametrize(
    "behaviour",
    [
        pytest.param(Behaviour(chunked=True), id="chunked, no length"),
        pytest.param(Behaviour(close_delimited=True), id="ended by closing"),
        pytest.param(Behaviour(etag=None, ranges=False), id="no ranges, no ETag"),
        pytest.param(Behaviour(extra_headers={"Content-Type": "text/plain"}), id="odd type"),
        pytest.param(Behaviour(extra_headers={"Content-Encoding": "identity"}), id="identity"),
    ],
)
async def test_an_unusual_but_honest_server_is_understood(
    tmp_path: Path, behaviour: Behaviour
) -> None:
    with serve(CONTENT, behaviour) as server:
        _assert_complete(await _get(server.url, tmp_path))


@pytest.mark.parametrize(
    "validators",
    [
        pytest.param({"etag": '"one"'}, id="ETag"),
        pytest.param(
            {"etag": None, "last_modified": "Sat, 01 Jan 2022 00:00:00 GMT"}, id="Last-Modified"
        ),
        pytest.param(
            {"etag": 'W/"weak"', "last_modified": "Sat, 01 Jan 2022 00:00:00 GMT"}, id="weak ETag"
        ),
    ],
)
@pytest.mark.parametrize("ending", ["cut_after", "close_after"])
async def test_a_broken_connection_goes_on_at_the_next_byte(
    tmp_path: Path, validators: dict[str, str | None], ending: str
) -> None:
    broken = Behaviour(**validators, **{ending: 2 * MIB + 5})  # type: ignore[arg-type]
    with serve(CONTENT, broken, broken, Behaviour(**validators)) as server:  # type: ignore[arg-type]
        _assert_complete(await _get(server.url, tmp_path))
    starts = [int(asked[6:-1]) for asked in server.ranges_asked[1:]]
    if ending == "close_after":
        assert starts == [2 * MIB + 5, 4 * MIB + 10]
    else:  # a reset takes along what the kernel had received and we had not read
        assert 0 < starts[0] <= starts[1]


async def test_a_truncated_chunked_body_is_no_complete_file(tmp_path: Path) -> None:
    with serve(
        CONTENT, Behaviour(chunked=True, close_after=MIB), Behaviour(chunked=True)
    ) as server:
        _assert_complete(await _get(server.url, tmp_path))
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    "second",
    [
        pytest.param(Behaviour(etag='"two"'), id="other ETag, whole file"),
        pytest.param(Behaviour(ranges=False), id="no ranges after all"),
        pytest.param(Behaviour(etag='"two"', ignore_if_range=True), id="other ETag, range sent"),
        pytest.param(
            Behaviour(claim_total=len(CONTENT) + 1, cut_after=MIB), id="another total size"
        ),
        pytest.param(Behaviour(content=CONTENT[:MIB]), id="shorter file: 416"),
    ],
)
async def test_a_file_that_changed_meanwhile_is_taken_from_its_start(
    tmp_path: Path, second: Behaviour
) -> None:
    new = random.Random(4).randbytes(3 * MIB)
    first = Behaviour(cut_after=2 * MIB)
    with serve(CONTENT, first, second, Behaviour(etag='"two"', content=new)) as server:
        done = await _get(server.url, tmp_path)
    whole = done.path.read_bytes()
    assert whole in (CONTENT, new)
    assert done.checksum == hashlib.sha512(whole).hexdigest()


async def test_a_file_cut_where_we_are_is_not_taken_for_complete(tmp_path: Path) -> None:
    """The server ignores If-Range, and answers 416 with the shorter length: nothing is left."""
    new = random.Random(4).randbytes(3 * MIB)
    first = Behaviour(close_after=2 * MIB)
    shorter = Behaviour(content=CONTENT[: 2 * MIB], ignore_if_range=True)
    with serve(CONTENT, first, shorter, Behaviour(etag='"two"', content=new)) as server:
        _assert_complete(await _get(server.url, tmp_path), new)


async def test_a_server_without_ranges_that_always_breaks_off_is_given_up(tmp_path: Path) -> None:
    with (
        serve(CONTENT, Behaviour(etag=None, ranges=False, cut_after=MIB)) as server,
        pytest.raises(SourceTroubled, match="started over 2 times"),
    ):
        await _get(server.url, tmp_path)
    assert len(server.requests) == 3


async def test_a_server_that_sends_nothing_new_is_given_up_but_its_bytes_are_kept(
    tmp_path: Path,
) -> None:
    troubled = Behaviour(status=503, extra_headers={"Retry-After": "0"})
    with serve(CONTENT, Behaviour(close_after=3 * MIB), troubled) as server:
        with pytest.raises(SourceTroubled, match="503"):
            await _get(server.url, tmp_path)
        server.behaviours[:] = [Behaviour()]
        _assert_complete(await _get(server.url, tmp_path))
    assert server.ranges_asked == ["", *[f"bytes={3 * MIB}-"] * (QUICK.attempts)]


async def test_trouble_that_passes_is_waited_for(tmp_path: Path) -> None:
    with serve(CONTENT, Behaviour(status=500), Behaviour(status=429), Behaviour()) as server:
        _assert_complete(await _get(server.url, tmp_path))


@pytest.mark.parametrize("status", [204, 400, 401, 403, 404, 410])
async def test_an_answer_that_is_final_is_not_asked_for_again(tmp_path: Path, status: int) -> None:
    with (
        serve(CONTENT, Behaviour(status=status, error_body=b"")) as server,
        pytest.raises(SourceRefused, match=f"127.0.0.1 answered {status}"),
    ):
        await _get(server.url, tmp_path)
    assert len(server.requests) == 1


async def test_a_content_encoding_nobody_asked_for_is_refused(tmp_path: Path) -> None:
    encoded = Behaviour(extra_headers={"Content-Encoding": "gzip"})
    with (
        serve(CONTENT, encoded) as server,
        pytest.raises(SourceRefused, match="gzip-encoded although it was asked not to"),
    ):
        await _get(server.url, tmp_path)


async def test_a_rest_that_is_longer_than_promised_is_not_believed(tmp_path: Path) -> None:
    longer = Behaviour(chunked=True, content=CONTENT + b"more", claim_total=len(CONTENT))
    with serve(CONTENT, Behaviour(cut_after=2 * MIB), longer, Behaviour()) as server:
        _assert_complete(await _get(server.url, tmp_path))
    assert server.ranges_asked[2] == ""


async def test_a_range_that_was_not_asked_for_is_not_taken(tmp_path: Path) -> None:
    wrong = Behaviour(wrong_range_start=17)
    with (
        serve(CONTENT, Behaviour(cut_after=2 * MIB), wrong) as server,
        pytest.raises(SourceTroubled, match="not with the part that was asked for"),
    ):
        await _get(server.url, tmp_path)


async def test_an_error_page_is_refused_at_its_first_bytes(tmp_path: Path) -> None:
    page = b"<html><body>Please log in</body></html>" + b" " * 40 * MIB
    with serve(page) as server:
        with pytest.raises(NotAcceptable, match="an HTML page"):
            await _get(server.url, tmp_path)
        sent = server.sent
    assert sent < 20 * MIB


async def test_a_qcow2_url_that_serves_something_else_is_refused(tmp_path: Path) -> None:
    with (
        serve(CONTENT, name="image.qcow2?v=1") as server,
        pytest.raises(NotAcceptable, match="names a qcow2 image"),
    ):
        await _get(server.url, tmp_path)


async def test_redirects_are_followed(tmp_path: Path) -> None:
    with serve(CONTENT) as target:
        away = Behaviour(status=302, extra_headers={"Location": target.url})
        relative = Behaviour(status=307, extra_headers={"Location": "/other"})
        with serve(b"", relative, away) as server:
            _assert_complete(await _get(server.url, tmp_path))
    assert [path for _, path, _ in server.requests] == ["/disk.img", "/other"]


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("file:///etc/passwd", "only http and https"),
        ("/again", "more than 10 times"),
        ("", "redirects to nowhere"),
        ("http://[::1", "cannot be read"),
    ],
)
async def test_a_redirect_to_where_no_image_can_be_is_refused(
    tmp_path: Path, location: str, words: str
) -> None:
    headers = {"Location": location} if location else {}
    with (
        serve(b"", Behaviour(status=301, extra_headers=headers)) as server,
        pytest.raises(SourceRefused, match=words),
    ):
        await _get(server.url, tmp_path)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1, signed by itself, and its key."""
    directory = tmp_path_factory.mktemp("tls")
    certificate, key = directory / "certificate", directory / "key"
    options = (
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=x "
        "-addext subjectAltName=IP:127.0.0.1"
    )
    subprocess.run(
        ["openssl", *options.split(), "-keyout", str(key), "-out", str(certificate)],
        check=True,
        capture_output=True,
    )
    return certificate, key


async def _get_trusting(certificate: Path, url: str, staging: Path) -> str:
    """Download in a process that trusts `certificate`; return what it says."""
    script = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from shorthorn.images.download import DownloadRequest, download\n"
        "from shorthorn.images.http_source import SourceRefused\n"
        "try:\n"
        "    request = DownloadRequest(sys.argv[1], Path(sys.argv[2]))\n"
        "    print(asyncio.run(download(request, lambda progress: None)).checksum)\n"
        "except SourceRefused as exc:\n"
        "    print(exc.problem)\n"
    )
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", script, url, str(staging)),
        env=os.environ | {"SSL_CERT_FILE": str(certificate)},
        stdout=subprocess.PIPE,
    )
    said, _ = await asyncio.wait_for(child.communicate(), 60)
    return said.decode().strip()


async def test_https_is_verified_and_works(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    with serve(CONTENT, tls=certificate) as server:
        assert await _get_trusting(certificate[0], server.url, tmp_path) == SHA512
        with pytest.raises(SourceRefused, match="certificate"):
            await _get(server.url + "?again", tmp_path)


async def test_https_never_leads_to_http_but_http_may_lead_to_https(
    tmp_path: Path, certificate: tuple[Path, Path]
) -> None:
    with serve(CONTENT, tls=certificate) as secure:
        up = Behaviour(status=302, extra_headers={"Location": secure.url})
        with serve(b"", up) as plain:
            assert await _get_trusting(certificate[0], plain.url, tmp_path) == SHA512
    with serve(CONTENT) as plain:
        down = Behaviour(status=302, extra_headers={"Location": plain.url})
        with serve(b"", down, tls=certificate) as secure:
            said = await _get_trusting(certificate[0], secure.url, tmp_path)
    assert "redirects from https to http, which is refused" in said
    assert plain.requests == []


async def test_a_line_that_goes_silent_is_noticed_and_taken_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_source, "IDLE_TIMEOUT_S", 2.0)
    with serve(CONTENT, Behaviour(pause_after=MIB), Behaviour()) as server:
        _assert_complete(await _get(server.url, tmp_path))
    assert server.ranges_asked[1] == f"bytes={MIB}-"


async def test_a_host_that_does_not_answer_is_trouble_and_not_final(tmp_path: Path) -> None:
    with serve(b"") as server:
        url = server.url
    with pytest.raises(SourceTroubled, match=r"127\.0\.0\.1"):
        await _get(url, tmp_path)


@pytest.mark.parametrize(
    "url", ["", "disk.img", "ftp://host/x", "file:///etc/passwd", "http://", "http://h:99999/"]
)
async def test_a_url_that_is_none_of_ours_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(SourceRefused):
        await _get(url, tmp_path)


async def test_a_finished_download_is_not_asked_for_again(tmp_path: Path) -> None:
    with serve(CONTENT) as server:
        await _get(server.url, tmp_path)
        _assert_complete(await _get(server.url, tmp_path))
    assert len(server.requests) == 1


async def test_another_url_in_the_same_staging_directory_starts_over(tmp_path: Path) -> None:
    with serve(CONTENT) as server, serve(b"\0" + CONTENT) as other:
        await _get(server.url, tmp_path)
        _assert_complete(await _get(other.url, tmp_path), b"\0" + CONTENT)


async def test_a_damaged_journal_or_a_shorter_artifact_costs_only_a_new_start(
    tmp_path: Path,
) -> None:
    with serve(CONTENT) as server:
        done = await _get(server.url, tmp_path)
        (tmp_path / JOURNAL_NAME).write_text("{half")
        _assert_complete(await _get(server.url, tmp_path))
        os.truncate(done.path, 100)
        _assert_complete(await _get(server.url, tmp_path))
    assert server.ranges_asked == ["", "", ""]


async def test_kill_9_in_mid_download_costs_at_most_what_follows_the_last_checkpoint(
    tmp_path: Path,
) -> None:
    """Another process downloads, is killed at several places, and the last one finishes."""
    content = random.Random(5).randbytes(12 * MIB)
    script = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from shorthorn.images import staged_writer\n"
        "from shorthorn.images.download import DownloadRequest, download\n"
        "staged_writer.CHECKPOINT_BYTES = 1 << 20\n"
        "request = DownloadRequest(sys.argv[1], Path(sys.argv[2]))\n"
        "asyncio.run(download(request, lambda progress: None))\n"
    )
    pauses = [Behaviour(pause_after=part * MIB) for part in (4, 3, 2)]
    with serve(content, *pauses, Behaviour()) as server:
        for kill in range(len(pauses)):
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-c", script, server.url, str(tmp_path)
            )
            before = _durable_bytes(tmp_path) if kill else 0
            async with asyncio.timeout(60):
                while _durable_bytes(tmp_path) <= before:  # noqa: ASYNC110 - a file cannot signal
                    await asyncio.sleep(0.01)
            child.send_signal(signal.SIGKILL)
            await child.wait()
        durable = _durable_bytes(tmp_path)
        _assert_complete(await _get(server.url, tmp_path), content)
    starts = [int(asked[6:-1]) for asked in server.ranges_asked[1:]]
    assert starts == sorted(starts)
    assert starts[-1] == durable > 4 * MIB


def _durable_bytes(staging: Path) -> int:
    try:
        return int(json.loads((staging / JOURNAL_NAME).read_bytes())["durable_bytes"])
    except FileNotFoundError:
        return 0


async def test_a_cancelled_download_can_be_taken_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staged_writer, "CHECKPOINT_BYTES", MIB)
    with serve(CONTENT, Behaviour(pause_after=4 * MIB), Behaviour()) as server:
        first = asyncio.create_task(_get(server.url, tmp_path))
        async with asyncio.timeout(60):
            while _durable_bytes(tmp_path) < 2 * MIB:  # noqa: ASYNC110 - a file cannot signal
                await asyncio.sleep(0.01)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        _assert_complete(await _get(server.url, tmp_path))
    assert server.ranges_asked[1] != ""


async def test_zeros_on_the_line_are_holes_on_the_disk(tmp_path: Path) -> None:
    content = bytes(20 * MIB) + b"x" * 4096 + bytes(20 * MIB)
    with serve(content) as server:
        done = await _get(server.url, tmp_path)
    _assert_complete(done, content)
    assert done.path.stat().st_blocks * 512 < MIB
