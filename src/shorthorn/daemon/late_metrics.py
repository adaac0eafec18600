"""Metrics of one host, made when somebody first asks for them.

Owns: what happened before that. prometheus-client costs every start time and memory that most hosts
never get anything for. Called by `daemon.standalone`.
"""

from __future__ import annotations

import asyncio
import importlib
from collections import deque
from typing import TYPE_CHECKING

from shorthorn.domain.image_bytes import Direction

if TYPE_CHECKING:
    from shorthorn.daemon.parts import Registries
    from shorthorn.telemetry import Metrics

_EARLY_MAX = 10_000
"""Reconciles that are remembered until then; older ones go uncounted."""


class LateMetrics:
    """Counts reconciles and bytes; `watch` once, before `text`."""

    def __init__(self) -> None:
        self._early: deque[tuple[str, float, str]] = deque(maxlen=_EARLY_MAX)
        self._early_bytes = dict.fromkeys(Direction, 0)
        self._metrics: Metrics | None = None
        self._registries: Registries | None = None

    def watch(self, registries: Registries) -> None:
        """Tell of the pool and copies that these registries know."""
        self._registries = registries

    def reconciled(self, controller: str, seconds: float, outcome: str) -> None:
        """Count one reconcile."""
        if self._metrics is None:
            self._early.append((controller, seconds, outcome))
        else:
            self._metrics.reconciled(controller, seconds, outcome)

    def count_image_bytes(self, direction: Direction, count: int) -> None:
        """Count bytes of images that have passed."""
        if self._metrics is None:
            self._early_bytes[direction] += count
        else:
            self._metrics.count_image_bytes(direction, count)

    async def text(self) -> bytes:
        """Return all metrics in the format that Prometheus reads."""
        await asyncio.to_thread(importlib.import_module, "shorthorn.telemetry")
        from shorthorn.telemetry import Metrics

        if self._metrics is None:
            self._metrics = Metrics()
            if self._registries is not None:
                pools, copies = self._registries.pools, self._registries.copies
                self._metrics.watch_node(pools.cached, copies.cached)
            while self._early:
                self._metrics.reconciled(*self._early.popleft())
            for direction, count in self._early_bytes.items():
                self._metrics.count_image_bytes(direction, count)
        return self._metrics.text()
