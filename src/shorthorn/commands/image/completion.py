"""Names of backing images, for the shell to complete.

Owns: asking the server quickly and in silence. Must never: print, raise, or keep a shell waiting.
Called by typer while a user presses TAB, through `options`.
"""

from __future__ import annotations

import asyncio
from typing import Final

import typer

_PATIENCE_S: Final = 1.5
"""A shell that waits longer feels broken (arbitrary)."""


def complete_image(context: typer.Context, incomplete: str) -> list[str]:
    """Return the images whose names begin so; none where they cannot be had."""
    try:
        return asyncio.run(_names(context, incomplete))
    except (Exception, SystemExit):
        return []


async def _names(context: typer.Context, incomplete: str) -> list[str]:
    from shorthorn.commands.image.cluster import open_cluster
    from shorthorn.commands.image.options import NAMESPACE, find_place

    given = context.params
    namespace = given.get("image_namespace") or given.get("namespace") or NAMESPACE
    if "image_namespace" in {p.name for p in context.command.params}:
        namespace = given.get("image_namespace") or NAMESPACE
    place = find_place(given.get("kubeconfig"), given.get("data_dir"), namespace)
    taken = set(given.get("names") or ())
    async with asyncio.timeout(_PATIENCE_S), open_cluster(place) as cluster:
        names = [obj["metadata"]["name"] for obj in await cluster.images()]
    return sorted(n for n in names if n.startswith(incomplete) and n not in taken)
