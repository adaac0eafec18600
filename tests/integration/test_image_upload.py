"""`shorthorn image upload` against an edge that cuts, holds and refuses."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import pty
import random
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.fakes.byte_edge import Trouble
from tests.integration.daemon_process import poll
from tests.integration.image_shell import condition, ended, killed, shell

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.integration.image_shell import Shell

MIB = 1 << 20


@pytest.fixture
async def user(tmp_path: Path) -> AsyncIterator[Shell]:
    async with shell(tmp_path) as made:
        yield made


def a_file(user: Shell, length: int = 3 * MIB, name: str = "disk.qcow2") -> bytes:
    content = random.Random(length).randbytes(length)
    (user.folder / name).write_bytes(content)
    return content


async def test_a_file_becomes_an_image_with_its_bytes_and_checksum(user: Shell) -> None:
    content = a_file(user)
    ran = await user.does("upload", "golden", "disk.qcow2", "--copies", "2")
    checksum = hashlib.sha512(content).hexdigest()
    assert ran.out == f"golden is ready, SHA-512 {checksum}\n"
    assert "golden: 3MiB of 3MiB (100 %)" in ran.err
    assert bytes(user.edge.uploads["golden"]) == content
    image = await user.image("golden")
    assert image["metadata"]["annotations"] == {"shorthorn.io/upload-length": str(len(content))}
    assert image["spec"]["sourceType"] == "upload"
    assert image["spec"]["minNumberOfCopies"] == 2


async def test_uploading_again_sends_nothing(user: Shell) -> None:
    a_file(user)
    await user.does("upload", "golden", "disk.qcow2")
    user.edge.requests.clear()
    ran = await user.does("upload", "golden", "disk.qcow2", "-o", "json")
    assert json.loads(ran.out)["metadata"]["name"] == "golden"
    assert user.edge.requests == []


async def test_a_connection_that_is_cut_costs_only_what_was_not_there_yet(user: Shell) -> None:
    content = a_file(user)
    user.edge.troubles = [Trouble(cut_after=MIB), Trouble(cut_after=MIB + 5)]
    ran = await user.does("upload", "golden", "disk.qcow2")
    assert user.edge.offsets == [0, MIB, 2 * MIB + 5]
    assert bytes(user.edge.uploads["golden"]) == content
    assert "connection lost" in ran.err


async def test_a_server_that_is_busy_is_asked_again(user: Shell) -> None:
    content = a_file(user)
    user.edge.troubles = [Trouble(status=503, message="a copy is moving")]
    await user.does("upload", "golden", "disk.qcow2")
    assert bytes(user.edge.uploads["golden"]) == content


async def test_a_killed_upload_goes_on_where_it_was(user: Shell) -> None:
    content = a_file(user)
    user.edge.troubles = [Trouble(hold_after=MIB, cut_after=MIB)]
    process = await user.start("upload", "golden", "disk.qcow2")
    await asyncio.wait_for(user.edge.held.wait(), 60)
    await killed(process)
    user.edge.go_on.set()
    await asyncio.to_thread(poll, lambda: len(user.edge.uploads["golden"]) == MIB)
    await user.does("upload", "golden", "disk.qcow2")
    assert user.edge.offsets == [0, MIB]
    assert bytes(user.edge.uploads["golden"]) == content


async def test_ctrl_c_says_that_the_same_command_goes_on(user: Shell) -> None:
    content = a_file(user)
    user.edge.troubles = [Trouble(hold_after=MIB, cut_after=MIB)]
    process = await user.start("upload", "golden", "disk.qcow2")
    await asyncio.wait_for(user.edge.held.wait(), 60)
    process.send_signal(signal.SIGINT)
    ran = await ended(process)
    user.edge.go_on.set()
    assert ran.code == 130
    assert "interrupted; the same command goes on with the upload" in ran.err
    assert "Traceback" not in ran.err
    await asyncio.to_thread(poll, lambda: len(user.edge.uploads["golden"]) == MIB)
    await user.does("upload", "golden", "disk.qcow2")
    assert bytes(user.edge.uploads["golden"]) == content


async def test_an_edge_that_stays_away_ends_it_with_what_to_do(user: Shell) -> None:
    a_file(user)
    (user.folder / "web.url").write_text("http://127.0.0.1:9\n")
    said = await user.is_refused("upload", "golden", "disk.qcow2", "--retry-for", "1")
    assert "the same command takes it up again" in said
    assert "http://127.0.0.1:9: Connection refused; is the service running there" in said
    assert "Connector" not in said


async def test_a_service_that_restarts_on_another_port_is_found_again(user: Shell) -> None:
    content = a_file(user)
    (user.folder / "web.url").write_text("http://127.0.0.1:9\n")
    process = await user.start("upload", "golden", "disk.qcow2")
    assert process.stderr is not None
    while b"Connect" not in await process.stderr.readline():
        pass
    (user.folder / "web.url").write_text(user.edge.url)
    assert (await ended(process)).code == 0
    assert bytes(user.edge.uploads["golden"]) == content


async def test_a_file_of_another_length_is_refused_before_a_byte_is_sent(user: Shell) -> None:
    a_file(user)
    a_file(user, 2 * MIB, "other.qcow2")
    user.edge.troubles = [Trouble(status=403, message="not today")]
    assert "not today" in await user.is_refused("upload", "golden", "disk.qcow2")
    user.edge.requests.clear()
    said = await user.is_refused("upload", "golden", "other.qcow2")
    assert f"an upload of {3 * MIB} bytes, and other.qcow2 has {2 * MIB}" in said
    assert user.edge.requests == []


async def test_a_file_that_is_another_one_is_found_out_at_the_end(user: Shell) -> None:
    a_file(user)
    user.false_checksums["golden"] = "0" * 128
    said = await user.is_refused("upload", "golden", "disk.qcow2")
    assert "it has other bytes than disk.qcow2" in said
    assert "shorthorn image rm golden" in said


async def begun(user: Shell, name: str) -> None:
    """Let an upload of `name` stop after a MiB."""
    user.edge.troubles = [Trouble(cut_after=MIB), Trouble(status=403, message="not today")]
    assert "not today" in await user.is_refused("upload", "golden", name)
    assert len(user.edge.uploads["golden"]) == MIB


async def test_an_upload_does_not_go_on_with_another_file(user: Shell) -> None:
    content = a_file(user)
    other = random.Random("other").randbytes(len(content))
    (user.folder / "other.qcow2").write_bytes(other)
    await begun(user, "disk.qcow2")
    said = await user.is_refused("upload", "golden", "other.qcow2")
    assert f"the {MIB} bytes that it has are of another file than other.qcow2" in said
    assert "shorthorn image rm golden" in said
    assert bytes(user.edge.uploads["golden"]) == content[:MIB]
    await user.does("upload", "golden", "disk.qcow2")
    assert bytes(user.edge.uploads["golden"]) == content


async def test_what_somebody_else_sends_meanwhile_is_compared_as_well(user: Shell) -> None:
    content = a_file(user)
    user.edge.troubles = [Trouble(hold_after=MIB, cut_after=MIB)]
    process = await user.start("upload", "golden", "disk.qcow2")
    await asyncio.wait_for(user.edge.held.wait(), 60)
    user.edge.uploads["golden"][:] = random.Random("other").randbytes(2 * MIB)
    user.edge.go_on.set()
    ran = await ended(process)
    assert ran.code == 1
    assert "are of another file than disk.qcow2" in ran.err
    assert len(content) > len(user.edge.uploads["golden"])


async def test_a_name_that_means_something_else_is_refused(user: Shell) -> None:
    a_file(user)
    await user.does("create", "golden", "--url", "http://example.org/golden.qcow2")
    said = await user.is_refused("upload", "golden", "disk.qcow2")
    assert "it is made otherwise (download)" in said


async def test_a_failed_upload_says_why_and_how_to_try_again(user: Shell) -> None:
    a_file(user)
    user.edge.troubles = [Trouble(status=403, message="not today")]
    await user.is_refused("upload", "golden", "disk.qcow2")
    failed = [condition("Failed", "True", "UploadAbandoned", "nothing came for a day")]
    await user.set_status("golden", {"conditions": failed})
    said = await user.is_refused("upload", "golden", "disk.qcow2")
    assert "nothing came for a day" in said
    assert "shorthorn image retry golden" in said


async def test_an_image_that_fails_meanwhile_ends_the_upload(user: Shell) -> None:
    a_file(user)
    (user.folder / "web.url").write_text("http://127.0.0.1:9")
    process = await user.start("upload", "golden", "disk.qcow2")
    assert process.stderr is not None
    while b"Connect" not in await process.stderr.readline():
        pass
    failed = [condition("Failed", "True", "NoSpace", "the pool is full")]
    await user.set_status("golden", {"conditions": failed})
    ran = await ended(process)
    assert ran.code == 1
    assert "the pool is full" in ran.err


async def test_without_an_edge_the_user_is_told_how_to_reach_it(user: Shell) -> None:
    a_file(user)
    (user.folder / "web.url").unlink()
    said = await user.is_refused("upload", "golden", "disk.qcow2")
    assert "kubectl port-forward -n longhorn-system" in said
    assert (await user.http.get("/apis/longhorn.io/v1beta2/backingimages")).json()["items"] == []


async def test_a_token_is_not_sent_in_clear_over_a_network(user: Shell) -> None:
    a_file(user)
    server = ("--server", "http://shorthorn.example.org")
    said = await user.is_refused("upload", "golden", "disk.qcow2", *server)
    assert "would send your token in clear" in said


async def test_a_user_with_a_certificate_is_told_that_a_token_is_needed(user: Shell) -> None:
    a_file(user)
    config = json.loads((user.folder / "kubeconfig").read_text())
    token = config["users"][0]["user"].pop("token")
    config["users"][0]["user"]["client-certificate-data"] = ""
    (user.folder / "kubeconfig").write_text(json.dumps(config))
    said = await user.is_refused("upload", "golden", "disk.qcow2")
    assert "SHORTHORN_TOKEN=" in said
    assert token not in said


async def test_a_wrong_token_is_said_so(user: Shell) -> None:
    a_file(user)
    env = {"SHORTHORN_TOKEN": "another-users-token"}
    said = await user.is_refused("upload", "golden", "disk.qcow2", env=env)
    assert "the web edge does not know your token" in said


async def test_a_terminal_gets_a_bar(user: Shell) -> None:
    a_file(user)
    screen, terminal = pty.openpty()
    try:
        process = await user.start("upload", "golden", "disk.qcow2", stderr=terminal)
        os.close(terminal)
        drawn = await asyncio.to_thread(everything_from, screen)
        assert (await process.wait()) == 0
    finally:
        os.close(screen)
    assert b"golden" in drawn
    assert b"MiB" in drawn
    assert "━".encode() in drawn


def everything_from(screen: int) -> bytes:
    """Read a terminal until nobody writes to it any more."""
    drawn = b""
    with contextlib.suppress(OSError):
        while block := os.read(screen, 4096):
            drawn += block
    return drawn


async def test_a_raw_file_of_any_length_is_taken_and_its_padding_said(user: Shell) -> None:
    content = a_file(user, 3_000_000, "odd.img")
    ran = await user.does("upload", "golden", "odd.img")
    assert "3000000 bytes are no whole sectors of 512" in ran.err
    assert bytes(user.edge.uploads["golden"]) == content
    (user.folder / "odd.qcow2").write_bytes(b"QFI\xfb" + content)
    assert "sectors" not in (await user.does("upload", "other", "odd.qcow2")).err


async def test_lines_come_in_the_order_of_what_happened(user: Shell) -> None:
    a_file(user)
    await begun(user, "disk.qcow2")
    lines = (await user.does("upload", "golden", "disk.qcow2")).err.splitlines()
    whole = next(i for i, line in enumerate(lines) if "(100 %)" in line)
    assert whole < lines.index("golden: sent; waiting until the image is checked")


async def test_wrong_usage_ends_with_two(user: Shell) -> None:
    a_file(user)
    await user.is_refused("upload", "golden", "missing.qcow2", code=2)
    await user.is_refused("upload", "golden", "disk.qcow2", "--checksum", "abc", code=2)
    (user.folder / "empty").touch()
    assert "is empty" in await user.is_refused("upload", "golden", "empty")
