"""What a program says of itself over HTTP."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING

import httpx2
import pytest

from shorthorn.domain.errors import Unavailable
from shorthorn.domain.image_bytes import Direction
from shorthorn.domain.models import (
    CopyState,
    ImageCopy,
    ImageCopySpec,
    ImageCopyStatus,
    Meta,
    Pool,
    PoolSpec,
    PoolStatus,
)
from shorthorn.telemetry import Metrics, TelemetryServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

POOL = Pool(Meta("uuid"), PoolSpec("node-a", "uuid", "/pool"), PoolStatus(100, 40, 60, 500))


def copy_in(state: CopyState) -> ImageCopy:
    spec = ImageCopySpec(f"image-{state}", "u", "node-a", "uuid", "download")
    return ImageCopy(Meta(f"copy-{state}"), spec, ImageCopyStatus(state, real_size_bytes=7))


@contextlib.asynccontextmanager
async def serving(metrics: Metrics, obstacles: list[str]) -> AsyncIterator[httpx2.AsyncClient]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = TelemetryServer(
        "127.0.0.1", port, metrics, obstacles=lambda: obstacles, notes=lambda: ["leader: me"]
    )
    await server.start()
    try:
        async with httpx2.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", trust_env=False
        ) as client:
            yield client
    finally:
        await server.stop()


async def test_readiness_says_what_is_in_the_way() -> None:
    obstacles = ["waiting for the API server"]
    async with serving(Metrics(), obstacles) as http:
        assert (await http.get("/healthz")).status_code == 200
        answer = await http.get("/readyz")
        assert answer.status_code == 503
        assert answer.text == "waiting for the API server\nleader: me\n"
        obstacles.clear()
        answer = await http.get("/readyz")
        assert (answer.status_code, answer.text) == (200, "ok\nleader: me\n")
        assert (await http.get("/other")).status_code == 404


async def test_metrics_are_read_when_they_are_asked_for() -> None:
    metrics = Metrics()
    metrics.watch_node(lambda: [POOL], lambda: [copy_in(state) for state in CopyState])
    metrics.watch_leading(lambda: True)
    metrics.reconciled("volume", 0.02, "ok")
    metrics.reconciled("volume", 0.02, "InUse")
    metrics.count_image_bytes(Direction.UPLOAD, 0)
    metrics.count_image_bytes(Direction.DOWNLOAD, 500)
    metrics.count_image_bytes(Direction.DOWNLOAD, 23)
    async with serving(metrics, []) as http:
        text = (await http.get("/metrics")).text
    lines = text.splitlines()
    for line in (
        'shorthorn_reconciles_total{controller="volume",outcome="ok"} 1.0',
        'shorthorn_reconciles_total{controller="volume",outcome="InUse"} 1.0',
        'shorthorn_reconcile_duration_seconds_count{controller="volume"} 2.0',
        "shorthorn_leading 1.0",
        'shorthorn_image_bytes_total{direction="upload"} 0.0',
        'shorthorn_image_bytes_total{direction="download"} 523.0',
        'shorthorn_pool_capacity_bytes{node="node-a",pool="uuid"} 100.0',
        'shorthorn_pool_promised_bytes{node="node-a",pool="uuid"} 500.0',
        'longhorn_backing_image_state{backing_image="image-ready",disk="uuid",node="node-a"} 4.0',
        'longhorn_backing_image_state{backing_image="image-unknown",disk="uuid",node="node-a"} 7.0',
    ):
        assert line in lines
    assert "longhorn_backing_image_actual_size_bytes{" in text
    assert "process_cpu_seconds_total" in text


async def test_an_address_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = TelemetryServer("127.0.0.1", port, Metrics(), obstacles=list)
        with pytest.raises(Unavailable, match=rf"address 127\.0\.0\.1:{port}"):
            await server.start()
