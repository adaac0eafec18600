"""How many bytes of images pass through the edge.

Owns: when a byte counts: sent to us, when whoever keeps it has taken it; fetched, when the network
has. Must never: know what becomes of the count. Called by `web.api`; `daemon` counts.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from shorthorn.domain.image_bytes import Direction

CountBytes = Callable[[Direction, int], None]
"""Called from the event loop for each piece; must return at once."""


def uncounted(direction: Direction, count: int) -> None:
    """Count nothing."""


async def counted(
    chunks: AsyncIterator[bytes], direction: Direction, count: CountBytes
) -> AsyncIterator[bytes]:
    """Yield the pieces, and count each once its taker comes back: one that is refused does not."""
    async for chunk in chunks:
        yield chunk
        count(direction, len(chunk))
