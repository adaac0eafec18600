"""What a program says of itself over HTTP: /healthz, /readyz and /metrics.

Owns: the metrics' names and labels, and the small server that gives them out. Those of images are
called as Longhorn's are, so that its dashboards work. Must never: decide whether a program is
ready, or change anything. Wired by `daemon`; nobody else records a metric.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from shorthorn.domain.errors import Unavailable
from shorthorn.domain.image_bytes import Direction
from shorthorn.domain.models import CopyState, ImageCopy, Pool
from shorthorn.kit.guest_server import GuestServer

_STATE_NUMBERS = {
    CopyState.PENDING: 0,
    CopyState.STARTING: 1,
    CopyState.IN_PROGRESS: 2,
    CopyState.READY_FOR_TRANSFER: 3,
    CopyState.READY: 4,
    CopyState.FAILED: 5,
    CopyState.FAILED_AND_CLEANUP: 6,
    CopyState.UNKNOWN: 7,
}
"""Longhorn's numbers."""

_BUCKETS_S = (0.002, 0.01, 0.05, 0.25, 1.0, 5.0, 30.0)
_GRACE_S = 1


class Metrics:
    """The metrics of one program, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._reconciles = Counter(
            "shorthorn_reconciles_total",
            "Reconciles that ended, by outcome: ok, conflict, or an error's reason.",
            ("controller", "outcome"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "shorthorn_reconcile_duration_seconds",
            "How long one reconcile took.",
            ("controller",),
            buckets=_BUCKETS_S,
            registry=self.registry,
        )
        self._leading = Gauge(
            "shorthorn_leading",
            "1 while this controller holds the lease.",
            registry=self.registry,
        )

        self._image_bytes = Counter(
            "shorthorn_image_bytes_total",
            "Bytes of images that the web page and /api/v1 took (upload) and sent (download).",
            ("direction",),
            registry=self.registry,
        )

    def count_image_bytes(self, direction: Direction, count: int) -> None:
        """Count bytes that have passed; 0 has the series begin, which nodes have not."""
        self._image_bytes.labels(direction.value).inc(count)

    def reconciled(self, controller: str, seconds: float, outcome: str) -> None:
        """Count one reconcile."""
        self._reconciles.labels(controller, outcome).inc()
        self._seconds.labels(controller).observe(seconds)

    def text(self) -> bytes:
        """Return all metrics in the format that Prometheus reads."""
        return generate_latest(self.registry)

    def watch_leading(self, is_leading: Callable[[], bool]) -> None:
        """Tell of leadership, asked whenever metrics are read."""
        self._leading.set_function(lambda: float(is_leading()))

    def watch_node(
        self, pools: Callable[[], Sequence[Pool]], copies: Callable[[], Sequence[ImageCopy]]
    ) -> None:
        """Tell of a node's pool and image copies, asked whenever metrics are read."""
        self.registry.register(_NodeCollector(pools, copies))


class _NodeCollector:
    """Metrics read from what is known of a node's objects (`prometheus_client.Collector`)."""

    def __init__(
        self, pools: Callable[[], Sequence[Pool]], copies: Callable[[], Sequence[ImageCopy]]
    ) -> None:
        self._pools = pools
        self._copies = copies

    def collect(self) -> Iterator[Any]:
        """Yield the metric families."""
        yield from self._pool_metrics()
        yield from self._copy_metrics()

    def _pool_metrics(self) -> Iterator[Any]:
        labels = ("node", "pool")
        families = {
            "capacity_bytes": "Size of the pool.",
            "allocated_bytes": "What of the pool is used.",
            "available_bytes": "What of the pool is free.",
            "promised_bytes": "Sum of the capacities of its volumes.",
        }
        for name, help_text in families.items():
            family = GaugeMetricFamily(f"shorthorn_pool_{name}", help_text, labels=labels)
            for pool in self._pools():
                value = getattr(pool.status, name)
                family.add_metric([pool.spec.node_id, pool.spec.pool_uuid], value)
            yield family

    def _copy_metrics(self) -> Iterator[Any]:
        labels = ("backing_image", "disk", "node")
        states = GaugeMetricFamily(
            "longhorn_backing_image_state",
            "State of a backing image's copy: 0 pending, 1 starting, 2 in progress, 3 ready for"
            " transfer, 4 ready, 5 failed, 6 failed and cleaned up, 7 unknown.",
            labels=labels,
        )
        sizes = GaugeMetricFamily(
            "longhorn_backing_image_actual_size_bytes",
            "What a backing image's copy takes on its disk.",
            labels=labels,
        )
        for copy in self._copies():
            values = [copy.spec.image, copy.spec.pool_uuid, copy.spec.node_id]
            states.add_metric(values, _STATE_NUMBERS[copy.status.state])
            sizes.add_metric(values, copy.status.real_size_bytes)
        yield states
        yield sizes


class TelemetryServer:
    """Serves on HOST:PORT. `start` once, `stop` once.

    Args: obstacles: what keeps the program from being ready, in words; none: it is. notes: what
        else /readyz says.
    """

    def __init__(
        self,
        host: str,
        port: int,
        metrics: Metrics,
        *,
        obstacles: Callable[[], Sequence[str]],
        notes: Callable[[], Sequence[str]] = lambda: (),
    ) -> None:
        self._address = (host, port)
        self._metrics = metrics
        self._obstacles = obstacles
        self._notes = notes
        self._server: GuestServer | None = None

    async def start(self) -> None:
        """Answer requests from here on. Raises: Unavailable: the address cannot be had."""
        routes = [
            Route("/healthz", self._healthz),
            Route("/readyz", self._readyz),
            Route("/metrics", self._scrape),
        ]
        try:
            listener = _open(*self._address)
        except OSError as exc:
            where = ":".join(map(str, self._address))
            raise Unavailable(f"address {where}", f"it cannot be listened at: {exc}") from exc
        self._server = GuestServer(Starlette(routes=routes), listener, grace_s=_GRACE_S)
        await self._server.start()

    async def stop(self) -> None:
        """End."""
        if self._server is not None:
            await self._server.stop()

    async def _healthz(self, request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def _readyz(self, request: Request) -> Response:
        obstacles = self._obstacles()
        lines = (*(obstacles or ("ok",)), *self._notes())
        return PlainTextResponse("\n".join(lines) + "\n", 503 if obstacles else 200)

    async def _scrape(self, request: Request) -> Response:
        return Response(self._metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _open(host: str, port: int) -> socket.socket:
    if not host and socket.has_dualstack_ipv6():
        listener = socket.create_server(
            ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=64
        )
    else:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=64)
    listener.setblocking(False)
    return listener
