"""Who uses a claim on this host: what a claim's annotations say of it.

Owns: the annotations by which the mount commands and the provisioner role understand each other.
Must never: do I/O. Written by `standalone.attachments`; read there, by `standalone.claims` and by
`standalone.expansion`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shorthorn.standalone.objects import annotations_of

SELECTED_NODE = "volume.kubernetes.io/selected-node"
"""Set by the first consumer of a WaitForFirstConsumer claim: here by `shorthorn mount` and `path`.
"""

PUBLISHED = "shorthorn.io/published"
"""Where a claim is mounted now, one path a line; its deletion waits for it to become empty."""


def published_paths(claim: Mapping[str, Any]) -> list[str]:
    """Return where the claim is mounted now."""
    return annotations_of(claim).get(PUBLISHED, "").split("\n") if _is_published(claim) else []


def _is_published(claim: Mapping[str, Any]) -> bool:
    return bool(annotations_of(claim).get(PUBLISHED))
