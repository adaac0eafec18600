"""The manifests of an image as text, for the pages of images, handles and restores.

Owns: their YAML. Must never: know what is in them (`domain.manifests` does). Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from shorthorn.domain import manifests
from shorthorn.domain.manifests import Names, handle_of, quantity


def objects_for(
    handle: str, names: Names, *, driver: str, size_bytes: int, volume_mode: str = "Filesystem"
) -> tuple[dict[str, Any], ...]:
    """Return content, snapshot and claim. The content keeps the image when it is deleted."""
    claim = manifests.claim(
        names, snapshot=names.name, size_bytes=size_bytes, volume_mode=volume_mode
    )
    return manifests.content(handle, names, driver=driver), manifests.snapshot(names), claim


def to_yaml(*documents: Mapping[str, Any]) -> str:
    """Return the objects as YAML documents, in the order of their keys."""
    texts = [
        yaml.safe_dump(dict(document), sort_keys=False, width=10_000, allow_unicode=True)
        for document in documents
    ]
    return "---\n".join(texts)


__all__ = ["Names", "handle_of", "objects_for", "quantity", "to_yaml"]
