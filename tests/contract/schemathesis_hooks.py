"""What schemathesis cannot know by itself: how an upload is sent. Loaded by its runs."""

from __future__ import annotations

from typing import Any

import schemathesis


@schemathesis.serializer("application/offset+octet-stream")
def send_bytes(ctx: Any, value: Any) -> bytes:
    """Return the body as it is."""
    return value if isinstance(value, bytes) else str(value).encode()
