"""The main job's web server: real HTTP with ranges, on loopback only."""

from __future__ import annotations

from pathlib import Path

import aiohttp
import pytest

from shorthorn.demo.http_server import ImageServer


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(bytes(range(256)) * 1000)
    return path


async def test_a_file_is_served_whole_with_its_length_and_validator(file):
    async with ImageServer() as server, aiohttp.ClientSession() as session:
        url = server.offer("parrot.qcow2", file)
        assert url.startswith("http://127.0.0.1:")
        async with session.get(url) as answer:
            assert answer.status == 200
            assert answer.headers["Content-Length"] == str(file.stat().st_size)
            assert answer.headers["ETag"]
            assert await answer.read() == file.read_bytes()


async def test_a_range_is_served_and_only_that(file):
    async with ImageServer() as server, aiohttp.ClientSession() as session:
        url = server.offer("parrot.qcow2", file)
        async with session.get(url, headers={"Range": "bytes=1000-"}) as answer:
            assert answer.status == 206
            assert await answer.read() == file.read_bytes()[1000:]


async def test_what_was_not_offered_is_not_found(file):
    async with ImageServer() as server, aiohttp.ClientSession() as session:
        url = server.offer("parrot.qcow2", file)
        async with session.get(f"{url}.other") as answer:
            assert answer.status == 404
